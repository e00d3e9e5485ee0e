"""Runs the commands of a page one after the other in a folder, with tiny sizes, and checks what each leaves."""

import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flowmatch_rl.callbacks import Tracker
from flowmatch_rl.checkpoints import read_checkpoint
from tests.cli.support import Outcome, call, default_signals, environment
from tests.docs.blocks import ROOT, Command
from tests.docs.sizes import NETWORKS, configuration, limited, options
from tests.docs.test_command_blocks import divided
from tests.processes import free_port

PACKAGE = (sys.executable, "-m", "flowmatch_rl")
LAST = "checkpoints/last.ckpt"
READ_TRACKED = ("flowmatch-rl ui", "flowmatch-rl deliver", "mlflow", "make ui")
"""Beginnings of commands that read what MLflow tracked: it tracks the runs that come before them on their page."""

CHECKSUMS = "SHA256SUMS"
REPORT = ("report.html", "results.csv")  # and report.png, or samples.png of bandits
LEFT = {
    "collect": ("dataset.json", CHECKSUMS, "transitions/meta.json"),
    "convert": ("dataset.json", CHECKSUMS, "transitions/meta.json"),
    "estimators": ("estimators.csv", "estimators.png"),
    "compare": REPORT,
    "report": REPORT,
    "sweep": ("report.html", "report.png", "trials.csv", "best.yaml", "study.db"),
    "export": ("",),
}
"""Files that commands leave in their output, by the names of commands; "" is the output itself."""


@dataclass(frozen=True)
class Run:
    """A run of a page: the command that made it, and its folder."""

    command: Command
    folder: Path


class Walk:
    """The way through the commands of a page, in the working folder.

    Args:
        commands: The commands that will be taken.
    """

    def __init__(self, commands: list[Command]) -> None:
        self.folder = Path.cwd()
        readers = [command for command in commands if command.text.startswith(READ_TRACKED)]
        self.last_reader = max((command.line for command in readers), default=-1)
        self.runs: list[Run] = []
        self.data = Path()  # the latest data set
        self.said = ""  # what the last command printed
        self.run_id = ""  # of the latest run that MLflow has the model of
        self.port = free_port()
        self.server: subprocess.Popen[str] | None = None

    def take(self, command: Command) -> None:
        """Run a command to its end.

        Raises:
            AssertionError: If it fails, or does not leave what it promises.
        """
        self.command = command
        words = self.filled(command.words)
        other: dict[str, Callable[[list[str], Command], None]] = {
            "torchrun": self.take_nodes,
            "make": self.take_target,
            "python": self.take_program,
            "sha256sum": self.take_checksums,
            "mlflow": self.take_model_server,
            "curl": self.take_request,
            "tensorboard": self.take_tensorboard,
        }
        if command.program == "flowmatch-rl":
            self.take_own(words[1:])
        else:
            other[command.program](words, command)

    def filled(self, words: tuple[str, ...]) -> list[str]:
        """Words with what stands for a run replaced by one of this page, and folders brought into this one."""
        found = []
        for before, word in itertools.pairwise(("", *words)):
            word = f"<run>/{LAST}" if (before, word) == ("--ckpt_path", "...") else word
            if mark := re.search("/?<(run|time)>", word):
                below = Path(word[: mark.start()] or "runs")
                word = f"{self.run_below(below, set(words))}{word[mark.end() :]}"
            word = word.replace("<run_id>", self.run_id)
            found.append(f"{self.folder}{word}" if word.startswith("/") else word)
        return found

    def run_below(self, folder: Path, words: set[str]) -> Path:
        """The run below a folder that a reader would take: the latest of the block, or else of some of these words."""
        runs = [run for run in reversed(self.runs) if folder in run.folder.parents]
        assert runs, f"no command of the page has left a run in {folder}"
        block = self.command.block
        return max(runs, key=lambda run: (run.command.block == block, {*run.command.words[2:]} <= words)).folder

    # Commands of this package

    def take_own(self, words: list[str]) -> None:
        """Run a command of this package, smaller, and look at what it leaves."""
        name = words[0]
        if {"--help", "--help=all", "--print_config", "--model.help"} & {*words}:
            assert self.call(words).out.count("\n") > 10
        elif name == "ui":
            port = free_port()
            with served([*PACKAGE, *words, f"--port={port}", "--browser=false"], port) as server:
                pass
            assert server.returncode == 0
        elif name in ("fit", "test", "validate", "predict"):
            self.take_run(words)
        elif name == "improve":
            _, others = divided(words[1:])
            whole = configuration(["fit", *others])
            draws = {"draws.num_states": 40, "draws.num_members": 2, "draws.num_samples": 3}
            small = options([*limited(whole), *draws.items()])
            self.check_fit(self.call([*words, *small, *self.trackers(whole)]))
        elif name in LEFT:
            self.call([*words, *SMALLER.get(name, lambda words: [])(words)])
            folder = Path(words[words.index("--output") + 1] if "--output" in words else words[1])
            missing = [
                file for file in LEFT[name] if not (folder / file).is_file() or not (folder / file).stat().st_size
            ]
            assert not missing, f"{missing} missing in {folder}: {sorted(path.name for path in folder.glob('*'))}"
            self.data = folder if (folder / CHECKSUMS).exists() else self.data
        else:
            assert name in ("deliver", "doctor"), f"no test knows how to run {name}"
            self.call(words)

    def call(self, words: list[str]) -> Outcome:
        """Run a command of this package in this process; it must end well."""
        outcome = call(words)
        self.said = outcome.out
        assert outcome.code == 0, f"exit status {outcome.code}: {outcome.err}{outcome.out[-500:]}"
        return outcome

    def trackers(self, whole: dict[str, Any]) -> list[str]:
        """An option that turns MLflow off where no later command of the page reads what it tracks."""
        logger = whole["trainer"]["logger"]
        is_default = isinstance(logger, dict) and logger["class_path"].endswith(f".{Tracker.__name__}")
        return ["--trainer.logger=false"] if is_default and self.command.line > self.last_reader else []

    def take_run(self, words: list[str]) -> None:
        """Train or evaluate; in processes of their own where there are several."""
        whole = configuration(words)
        kept = () if words[0] == "fit" else NETWORKS
        # The one-step model of an occupancy must have the sizes that it was trained with.
        small = (
            (name, value)
            for name, value in limited(whole)
            if name.rpartition(".")[2] not in kept or ".dynamics." in name
        )
        words = [*words, *options(small), *self.trackers(whole)]
        if str(whole["trainer"]["devices"]) not in ("1", "auto"):
            outcome = finished([*PACKAGE, *words], environment())
        else:
            outcome = self.call(words)
        if words[0] == "fit":
            self.check_fit(outcome)
        elif words[0] == "predict":
            named = re.findall(r"\bin (\S+)$", outcome.out, re.MULTILINE)
            assert named, outcome.out
            assert all(Path(path).stat().st_size for path in named), outcome.out
        else:
            assert re.search(r"\d", outcome.out), outcome.out

    def check_fit(self, outcome: Outcome) -> None:
        """A run leaves its configuration, a checkpoint that was trained, its result, and the files that it names."""
        (folder,) = (Path(path) for path in re.findall(r"^run +(\S+)$", outcome.out, re.MULTILINE))
        for name in ("config.yaml", "result.json", LAST):
            assert (folder / name).is_file(), f"{name} is missing in {folder}"
        assert json.loads((folder / "result.json").read_text())
        assert read_checkpoint(folder / LAST)["global_step"] > 0
        named = re.findall(r"^(?:checkpoint|figure|video|animation) +(\S+)$", outcome.out, re.MULTILINE)
        assert any(path.endswith(".png") for path in named), outcome.out
        missing = [path for path in named if not Path(path).is_file()]
        assert not missing, missing
        self.runs.append(Run(self.command, folder))
        if models := re.findall(r"runs:/(\w+)/", outcome.out):
            self.run_id = models[-1]

    # Other programs

    def take_target(self, words: list[str], command: Command) -> None:
        """The commands of a target of the Makefile that is set up."""
        (self.folder / "venv").mkdir(exist_ok=True)
        (self.folder / "venv" / ".ready").touch()
        recipe = subprocess.check_output(
            ["make", "--dry-run", "--no-print-directory", "-C", ROOT, f"VENV={self.folder / 'venv'}", *words[1:]],
            text=True,
        )
        lines = [Command.read(command.page, command.block, command.line, line) for line in recipe.splitlines()]
        assert any(lines)
        for line in lines:
            if line is not None:
                assert line.program == "flowmatch-rl", recipe
                self.take_own([*line.words[1:]])

    def take_program(self, words: list[str], command: Command) -> None:
        """A program in Python."""
        self.said = finished([sys.executable, *words[1:]], environment()).out
        assert self.said

    def take_checksums(self, words: list[str], command: Command) -> None:
        """In the folder of a data set."""
        subprocess.run(words, cwd=self.data, check=True, capture_output=True)

    def take_nodes(self, words: list[str], command: Command) -> None:
        """Two nodes on this machine, each with one process in place of several."""
        port = free_port()
        for name, value in (("--nproc-per-node", "1"), ("--master-port", str(port))):
            words[words.index(name) + 1] = value
        words = ["127.0.0.1" if word == "<first_node>" else word for word in words]
        whole = configuration(words[words.index("flowmatch_rl") + 1 :])
        small = [word for word in options(limited(whole)) if "devices" not in word]
        started = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "torch.distributed.run"),
                    *(node if word == "N" else word for word in words[1:]),
                    *(*small, "--trainer.devices=1", *self.trackers(whole)),
                ],
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for node in ("0", "1")
        ]
        outcomes = [process.communicate(timeout=500) for process in started]
        assert [process.returncode for process in started] == [0, 0], outcomes
        self.check_fit(Outcome(0, outcomes[0][0], ""))

    def take_model_server(self, words: list[str], command: Command) -> None:
        """It serves until the end of the page."""
        words[words.index("--port") + 1] = str(self.port)
        self.server = start([sys.executable, "-m", *words], environment(**command.settings))
        wait_for(self.server, self.port)

    def take_request(self, words: list[str], command: Command) -> None:
        """A request to the server of the page."""
        words[-1] = re.sub(r":\d+/", f":{self.port}/", words[-1])
        done = subprocess.run([*words, "--silent", "--fail-with-body"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "predictions" in json.loads(done.stdout)

    def take_tensorboard(self, words: list[str], command: Command) -> None:
        """It answers."""
        port = free_port()
        with served([sys.executable, "-m", "tensorboard.main", *words[1:], f"--port={port}"], port):
            pass

    def end(self) -> None:
        """End what still runs."""
        if self.server is not None:
            stop(self.server)


def cut_comparison(words: list[str]) -> list[str]:
    """Leave one task, two methods and one seed in the file of a comparison, with tiny sizes."""
    path = Path(words[words.index("-c") + 1])
    plan = yaml.safe_load(path.read_text())
    plan["tasks"] = dict([*plan["tasks"].items()][:1])
    plan["methods"] = dict([*plan["methods"].items()][:2])
    plan |= {"seeds": [0], "tracking": False}
    path.write_text(yaml.safe_dump(plan, sort_keys=False))
    outcome = call([*words, "--dry_run"])
    assert outcome.code == 0, outcome.err
    for method, line in zip(plan["methods"].values(), outcome.out.splitlines(), strict=True):
        job = shlex.split(line, comments=True)[len(PACKAGE) :]
        method.setdefault("options", {}).update(limited(configuration(job)))
    path.write_text(yaml.safe_dump(plan, sort_keys=False))
    return ["--workers=1"]


def cut_sweep(words: list[str]) -> list[str]:
    """Two trials with tiny sizes, but for what the sweep searches for."""
    path = Path(words[words.index("-c") + 1])
    plan = yaml.safe_load(path.read_text())
    small = limited(configuration(["fit", *(f"-c={file}" for file in plan["base"])]))
    plan["options"] |= {name: value for name, value in small if name not in plan["space"]}
    path.write_text(yaml.safe_dump(plan, sort_keys=False))
    return ["--trials=2", "--tracking=false"]


SMALLER: dict[str, Callable[[list[str]], list[str]]] = {
    "collect": lambda words: options(limited(configuration(words))),
    "estimators": lambda words: options(limited(configuration(words))),
    "compare": cut_comparison,
    "sweep": cut_sweep,
}
"""Options that make commands small, by the names of commands; the others take no time."""


def finished(words: list[str], variables: dict[str, str]) -> Outcome:
    """A process that ends well."""
    done = subprocess.run(words, env=variables, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stdout[-1000:]}{done.stderr[-2000:]}"
    return Outcome(0, done.stdout, done.stderr)


def start(words: list[str], variables: dict[str, str]) -> subprocess.Popen[str]:
    """A server, which may be interrupted as one in the foreground, in a group of its own."""
    with default_signals():
        return subprocess.Popen(
            words, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )


@contextmanager
def served(words: list[str], port: int) -> Iterator[subprocess.Popen[str]]:
    """A server that answers, and ends when it is interrupted."""
    server = start(words, environment())
    try:
        wait_for(server, port)
        yield server
    finally:
        stop(server)


def wait_for(server: subprocess.Popen[str], port: int, seconds: float = 180.0) -> None:
    """Wait until a server answers a request on this machine."""
    end = time.monotonic() + seconds
    while server.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10.0):
                return
        except urllib.error.HTTPError:
            return  # it answers, if not this address
        except OSError:
            time.sleep(0.3)
    stop(server)
    raise AssertionError(f"no answer, status {server.returncode}: {server.stdout.read() if server.stdout else ''}")


def stop(server: subprocess.Popen[str]) -> None:
    """Interrupt a server with all that it has started, as Ctrl-C does, and wait until it ends."""
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGINT)
    try:
        server.wait(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        raise
