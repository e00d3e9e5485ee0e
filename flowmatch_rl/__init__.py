"""Flow-based reinforcement learning on PyTorch Lightning and TorchRL."""

__version__ = "0.2.0"
