"""Comparisons of stand-ins for runs."""

import json
from pathlib import Path
from typing import Any

import yaml

from tests.cli.support import Outcome, call

STAND_IN = Path(__file__).with_name("stand_in_run.py")


def write_names(folders: list[Path], output: Path) -> list[Path]:
    path = output / "report.html"
    path.write_text("\n".join(map(str, folders)))
    return [path]


def definition(folder: Path, **changes: Any) -> Path:
    """A file that defines two methods on one task, with two seeds."""
    (folder / "task.yaml").write_text("data: {class_path: OnlineData}\n")
    (folder / "method.yaml").write_text("model: {init_args: {temperature: 1.0}}\n")
    content = {
        "tasks": {"swing": {"config": [str(folder / "task.yaml")], "return_range": [0.0, 10.0]}},
        "methods": {"plain": {"options": {"score": 2}}, "layered": {"config": [str(folder / "method.yaml")]}},
        "seeds": [0, 1],
        "tracking": False,
        "workers": 2,
    }
    path = folder / "comparison.yaml"
    path.write_text(yaml.safe_dump(content | changes, sort_keys=False))
    return path


def compare(folder: Path, *options: str, **changes: Any) -> Outcome:
    return call(["compare", f"-c={definition(folder, **changes)}", f"--output={folder / 'out'}", *options])


def starts(folder: Path, run: str) -> list[dict[str, Any]]:
    path = folder / "out" / run / "starts.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
