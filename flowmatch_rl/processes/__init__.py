from flowmatch_rl.processes.base import Process

__all__ = ["Process"]
