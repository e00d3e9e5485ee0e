"""A program that looks like ``flowmatch-rl fit`` to a comparison, and takes a fraction of a second.

Its option ``--act`` says what it does: ``end`` writes a result, ``fail`` prints lines and ends with status 3, ``wait``
waits for a signal unless it resumes from a checkpoint, ``wait_first`` does so in the first trial of a sweep, ``linger``
waits after its evaluations if it scores less than 7, ``signal`` sends its parent the number in ``--signal`` and
waits. It refuses to start where another one lives.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

options = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[2:] if argument.startswith("--"))
folder = Path(options["trainer.default_root_dir"])
alive = folder / "alive"
checkpoint = folder / "checkpoints" / "last.ckpt"


def save(number: int, frame: FrameType | None) -> None:
    checkpoint.parent.mkdir(exist_ok=True)
    checkpoint.touch()
    alive.unlink()
    print("interrupted")
    sys.exit(128 + number)


with (folder / "starts.jsonl").open("a") as file:
    context = os.environ.get("MLFLOW_RUN_CONTEXT")
    threads = os.environ.get("OMP_NUM_THREADS"), os.environ.get("OMP_WAIT_POLICY")
    file.write(json.dumps({"pid": os.getpid(), "options": options, "context": context, "threads": threads}) + "\n")
signal.signal(signal.SIGTERM, save)
alive.touch(exist_ok=False)  # an error where another one lives
act = options.get("act", "end")
if act == "fail" and "ckpt_path" not in options:
    print("\n".join(f"line {number}" for number in range(20)))
    checkpoint.parent.mkdir(exist_ok=True)
    checkpoint.touch()
    alive.unlink()
    sys.exit(3)
if act == "wait_first":
    act = "wait" if folder.parent.name == "0" else "end"
if act in ("wait", "signal") and "ckpt_path" not in options:
    if act == "signal":
        os.kill(os.getppid(), int(options["signal"]))
    time.sleep(300)
(folder / "figures").mkdir(exist_ok=True)
score = float(options.get("score", 1.0)) + int(options["seed_everything"])
rows = [f"{step},{score * step / 40},{step / 10}" for step in (10, 20, 40)]
(folder / "figures" / "learning_curve.csv").write_text("\n".join(["env_steps,return_mean,seconds", *rows]) + "\n")
if act == "linger" and score < 7.0 and "ckpt_path" not in options:
    time.sleep(60)
result = {"task": "Stand-in", "env_steps": 40, "gradient_steps": 30, "return_range": None, "commit": "abc"}
(folder / "result.json").write_text(json.dumps(result | {"metrics": {"test/return_mean": score}}))
alive.unlink()
