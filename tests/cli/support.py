"""Tiny runs of the command line."""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flowmatch_rl.cli import run

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
PENDULUM = CONF / "actor_critic" / "pendulum.yaml"
TWO_MOONS = CONF / "flow" / "two_moons.yaml"
MAZE_LOOP = CONF / "occupancy" / "maze_loop.yaml"

SIZES = {
    "data.total_env_steps": 40,
    "data.warmup_env_steps": 32,
    "data.epoch_env_steps": 8,
    "data.batch_size": 8,
    "data.eval_episodes": 1,
    "data.test_episodes": 1,
    "data.max_episode_steps": 5,
    "model.estimator.init_args.num_samples": 4,
    "model.policy.network.hidden_dim": 16,
    "model.critics.architecture.hidden_dim": 16,
    "model.acting.train_particles": 2,
    "model.acting.collect_particles": 2,
    "model.acting.eval_particles": 2,
    "model.policy.sampler.init_args.solver.init_args.num_steps": 2,
    "video.enabled": "false",
    "trainer.enable_progress_bar": "false",
    "trainer.accelerator": "cpu",
}

BANDIT_SIZES = {
    "data.num_updates": 4,
    "data.epoch_updates": 2,
    "data.batch_size": 8,
    "data.eval_samples": 20,
    "model.policy.network.hidden_dim": 16,
    "trainer.logger": "false",
    "trainer.enable_progress_bar": "false",
    "trainer.accelerator": "cpu",
}

FLOW_SIZES = {
    "data.num_updates": 12,
    "data.epoch_updates": 6,
    "data.batch_size": 16,
    "data.eval_samples": 60,
    "data.predict_samples": 20,
    "model.network.hidden_dim": 16,
    "model.network.num_blocks": 1,
    "model.likelihood.solver.init_args.num_steps": 2,
    "model.tests.likelihood_samples": 4,
    "model.tests.transport_samples": 20,
    "figures.enabled": "false",
    "trainer.logger": "false",
    "trainer.enable_progress_bar": "false",
    "trainer.accelerator": "cpu",
}

COLLECT_SIZES = {"num_transitions": 400, "num_envs": 8, "block_steps": 50, "progress": "false"}

OCCUPANCY_SIZES = {
    "data.num_updates": 6,
    "data.epoch_updates": 3,
    "data.batch_size": 16,
    "data.eval_states": 2,
    "data.test_states": 3,
    "data.eval_steps": 300,
    "model.network": "VelocityArchitecture",
    "model.network.init_args.hidden_dim": 16,
    "model.network.init_args.num_blocks": 1,
    "model.likelihood.solver.init_args.num_steps": 2,
    "model.tests.val_samples": 4,
    "model.tests.test_samples": 6,
    "model.tests.value_samples": 8,
    "model.tests.likelihood_samples": 6,
    "model.tests.predict_samples": 5,
    "model.tests.num_actions": 2,
    "occupancy_figures.enabled": "false",
    "trainer.logger": "false",
    "trainer.enable_progress_bar": "false",
    "trainer.accelerator": "cpu",
}

DYNAMICS_SIZES = {
    "data.num_updates": 6,
    "data.epoch_updates": 3,
    "data.batch_size": 16,
    "data.eval_states": 2,
    "data.test_states": 3,
    "data.eval_steps": 6,
    "trainer.logger": "false",
    "trainer.enable_progress_bar": "false",
    "trainer.accelerator": "cpu",
}


@dataclass
class Outcome:
    """What a command returned and printed."""

    code: int
    out: str
    err: str

    @property
    def error_lines(self) -> list[str]:
        """Lines on standard error that are not empty."""
        return [line for line in self.err.splitlines() if line.strip()]

    @property
    def last_words(self) -> list[str]:
        """First words of the lines that end a run; an empty line divides them from those that begin it."""
        return [line.split()[0] for line in self.out.partition("\n\n")[2].splitlines() if line]


def arguments(command: str, *configs: Path, **changes: object) -> list[str]:
    """A command with configurations and tiny sizes; ``changes`` name options with ``__`` for a dot."""
    return _arguments(command, configs, SIZES, changes)


def flow_arguments(command: str, *configs: Path, **changes: object) -> list[str]:
    """As ``arguments``, for the generative model; None leaves an option out."""
    return _arguments(command, configs, FLOW_SIZES, changes)


def occupancy_arguments(command: str, *configs: Path, **changes: object) -> list[str]:
    """As ``arguments``, for the occupancy; None leaves an option out."""
    stated = [path.read_text() for path in configs if "segments:" in path.read_text()]
    expands = bool(stated) and "class_path: Expansion" in stated[-1]
    short = {"num_updates": 20, "pool_batches": 2} if expands else {}
    short = {f"model.segments.init_args.{name}": value for name, value in short.items()}
    return _arguments(command, configs, OCCUPANCY_SIZES | short, changes)


def dynamics_arguments(command: str, *configs: Path, **changes: object) -> list[str]:
    """As ``arguments``, for the one-step model."""
    return _arguments(command, configs, DYNAMICS_SIZES, changes)


def collect(output: Path, name: str, **changes: object) -> Path:
    """A few rows of a configuration in ``conf/collect``, in a new folder, which is returned."""
    outcome = call(
        _arguments("collect", [CONF / "collect" / f"{name}.yaml"], COLLECT_SIZES, changes | {"output": output})
    )
    assert outcome.code == 0, outcome.err
    return output


def _arguments(command: str, configs: Iterable[Path], sizes: dict, changes: dict) -> list[str]:
    options = sizes | {name.replace("__", "."): value for name, value in changes.items()}
    # An option that names a class must come before those of its arguments: they are forgotten when the class changes.
    named = sorted(((k, v) for k, v in options.items() if v is not None), key=lambda option: option[0].count("."))
    return [command, *(f"-c={path}" for path in configs), *(f"--{k}={v}" for k, v in named)]


def call(args: list[str]) -> Outcome:
    """Run a command in this process; an exit and a returned status look alike."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), run_folder():
        try:
            code = run(args)
        except SystemExit as end:
            code = int(end.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def run_folder() -> Iterator[None]:
    """Forget the folder of this run afterwards, as the end of its process would; keep process-wide settings."""
    saved, argv = dict(os.environ), sys.argv
    try:
        yield
    finally:
        sys.argv = argv
        os.environ.clear()
        os.environ.update(saved)


@contextlib.contextmanager
def default_signals() -> Iterator[None]:
    """Handle signals as a command in the foreground does, in this process and in its children.

    A test run in the background ignores SIGINT, and one under nohup SIGHUP, which its children inherit; and Lightning
    ignores SIGINT once it has come.
    """
    defaults = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    handlers = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def environment(**changes: str) -> dict[str, str]:
    """Variables of a subprocess."""
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
    settings = {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONPATH": path}
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_TRACKING", "FLOWMATCH_RL"))}
    return kept | settings | changes
