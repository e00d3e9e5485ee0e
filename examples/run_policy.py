"""Run an exported policy at 50 Hz, with NumPy and ONNX Runtime alone: python examples/run_policy.py policy.onnx."""

import json
import sys
import time
from collections.abc import Callable

import numpy as np
import onnxruntime


def load(path: str, seed: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    """The policy of a file with fixed noise: the same observation gives the same action."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    known = session.get_modelmeta().custom_metadata_map
    random, scale = np.random.default_rng(seed), float(known["evaluation_noise"] == "normal")
    shapes = {name: shape[1:] for name, shape in json.loads(known["inputs"]).items() if name.endswith("noise")}
    noise = {name: (scale * random.standard_normal((1, *shape))).astype("f4") for name, shape in shapes.items()}
    return lambda observation: session.run(None, {"observation": observation[None].astype("f4"), **noise})[0][0]


def control(policy: Callable, observe: Callable, act: Callable, steps: int, rate: float = 50.0) -> int:
    """Act at a rate in Hz; returns how many steps came too late."""
    late, tick = 0, time.perf_counter()
    for _ in range(steps):
        act(policy(observe()))
        tick += 1.0 / rate
        late += time.perf_counter() > tick
        time.sleep(max(0.0, tick - time.perf_counter()))
    return late


if __name__ == "__main__":
    # In place of a robot: observations of zeros, and actions that go nowhere.
    policy, steps = load(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 250
    size = json.loads(onnxruntime.InferenceSession(sys.argv[1]).get_modelmeta().custom_metadata_map["inputs"])
    late = control(policy, lambda: np.zeros(size["observation"][1]), lambda action: None, steps)
    print(f"{steps} steps at 50 Hz, {late} of them late")
