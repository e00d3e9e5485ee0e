"""The command line: LightningCLI with run folders, tracking, figures, video and a summary."""

import inspect
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities.exceptions import SIGTERMException

import flowmatch_rl.callbacks
import flowmatch_rl.couplings
import flowmatch_rl.data
import flowmatch_rl.envs
import flowmatch_rl.estimators
import flowmatch_rl.evaluation
import flowmatch_rl.inference
import flowmatch_rl.models
import flowmatch_rl.modules
import flowmatch_rl.nets
import flowmatch_rl.objectives
import flowmatch_rl.paths
import flowmatch_rl.samplers
import flowmatch_rl.solvers
import flowmatch_rl.testbeds
from flowmatch_rl.callbacks import (
    AtomicCheckpointIO,
    Checkpoints,
    FlowFigures,
    OccupancyFigures,
    Progress,
    RunRecord,
    RunResult,
    SampleWriter,
    Throughput,
    Video,
    summary,
)
from flowmatch_rl.checks import RunError
from flowmatch_rl.cli.commands import COMMANDS, COMMANDS_HELP, run_command
from flowmatch_rl.cli.fitting import check_fit
from flowmatch_rl.cli.messages import Parser, report
from flowmatch_rl.cli.wiring import giver, wiring
from flowmatch_rl.configuration import DIMENSIONS, flatten, shorten

_ROOMS = (
    "callbacks",
    "couplings",
    "data",
    "envs",
    "estimators",
    "evaluation",
    "inference",
    "models",
    "modules",
    "nets",
    "objectives",
    "paths",
    "samplers",
    "solvers",
    "testbeds",
)
_WITH_OPTIONS = {
    Checkpoints: "checkpoints",
    Video: "video",
    SampleWriter: "samples",
    FlowFigures: "figures",
    OccupancyFigures: "occupancy_figures",
}
_RUN_DIR = "FLOWMATCH_RL_RUN_DIR"
_CHECKS = (
    "_parse_ckpt_path",
    "instantiate_classes",
    "instantiate_trainer",
    "_call_setup_hook",
    "_restore_modules_and_callbacks",
    "_request_dataloader",
)
"""Functions, on the way to an error, in which arguments, files and checkpoints are still being checked."""


class FlowMatchCLI(LightningCLI):
    """Wires data, module, callbacks and tracking from YAML files and options.

    Dimensions flow from the data to the model. Without ``trainer.default_root_dir`` a run gets a folder of its own,
    ``runs/<label of the data>/<time>``, for checkpoints, figures, video and configuration.
    """

    def __init__(self, args: list[str] | None = None, run: bool = True) -> None:
        Parser.known_names = _known_names()
        Parser.arguments = tuple(sys.argv[1:] if args is None else args)
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            parser_class=Parser,
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults={
                "logger": {"class_path": "flowmatch_rl.callbacks.Tracker"},
                "accelerator": "auto",
                "devices": 1,
                "num_sanity_val_steps": 0,
                "log_every_n_steps": 100,
                "enable_model_summary": False,
            },
            args=args,
            run=run,
            parser_kwargs={"epilog": COMMANDS_HELP},
        )

    def subcommands(self) -> dict[str, set[str]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Those of Lightning, or only the given one: the parser of each takes a fifth of a second to build."""
        known = LightningCLI.subcommands()
        given = Parser.arguments[:1]
        return {name: known[name] for name in given} if given and given[0] in known else known

    def add_arguments_to_parser(self, parser: Parser) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Link dimensions from data to model and add the options of the callbacks."""
        for name in DIMENSIONS:
            give = giver(name, self._chosen_model)
            parser.link_arguments("data", f"model.init_args.{name}", compute_fn=give, apply_on="instantiate")
        for callback, group in _WITH_OPTIONS.items():
            parser.add_lightning_class_args(callback, group)

    def instantiate_classes(self) -> None:
        """Make data, model and trainer."""
        super().instantiate_classes()
        check_fit(self.model, self.datamodule)
        # A link leaves its target's name among the hyperparameters of models that have no such argument.
        known = inspect.signature(type(self.model)).parameters
        for name in DIMENSIONS:
            if name not in known:
                self.model.hparams.pop(name, None)

    def _parse_ckpt_path(self) -> None:
        """Take the model's arguments from a checkpoint, but for those the command line gives: they win."""
        subcommand = self.config.get("subcommand")
        path = self.config[subcommand].get("ckpt_path") if subcommand else None
        if subcommand in ("validate", "test", "predict") and not path:
            raise ValueError(f"{subcommand} needs a trained model; name its checkpoint with --ckpt_path")
        if not (path and Path(path).is_file()):
            return
        try:
            saved = torch.load(path, weights_only=True, map_location="cpu")["hyper_parameters"]
        except Exception as error:  # a damaged file may raise anything
            raise ValueError(f"{path} is not a checkpoint of flowmatch-rl") from error
        given = {_model_argument(argument) for argument in Parser.arguments}
        if "_class_path" in saved and "" not in given:
            kept = {k: v for k, v in saved.items() if not k.startswith("_") and k not in given.union(DIMENSIONS)}
            model = {"class_path": saved["_class_path"], "dict_kwargs": kept}
            self.config = self.parser.parse_object({subcommand: {"model": model}}, self.config)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer with the run's folder, its length in environment steps, and the callbacks."""
        options = self._get(self.config_init, "trainer", default={})
        data: Any = self.datamodule
        if options.get("max_epochs") is None and options.get("max_steps", -1) == -1:
            kwargs["max_epochs"] = getattr(data, "num_epochs", None)
        folder = options.get("default_root_dir")
        if folder and self.subcommand == "fit" and not self._get(self.config_init, "ckpt_path"):
            _check_unused(Path(folder))
        kwargs["default_root_dir"] = folder or _run_directory(getattr(data, "label", type(data).__name__))
        kwargs["plugins"] = [*_as_list(options.get("plugins")), AtomicCheckpointIO()]
        parts = wiring(data)
        callbacks = [Throughput(), *parts.added, self._record()]
        if options.get("enable_progress_bar") is not False:
            callbacks.append(Progress())
        kwargs["callbacks"] = [*_as_list(options.get("callbacks")), *callbacks]
        trainer = super().instantiate_trainer(**kwargs)
        kept = [callback for callback in trainer.callbacks if not isinstance(callback, parts.dropped)]  # pyright: ignore[reportAttributeAccessIssue]
        # The result is written after what all others do, such as the video: it says that a run is done.
        trainer.callbacks = [*kept, RunResult()]  # pyright: ignore[reportAttributeAccessIssue]
        return trainer

    def after_fit(self) -> None:
        """Test the trained policy, draw it, film it, and print the summary."""
        if not self.trainer.fast_dev_run and self.trainer.state.finished:  # pyright: ignore
            # The last policy: the best of several evaluations on ten episodes is a matter of luck as well.
            self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
            self.after_test()

    def after_test(self) -> None:
        """Print the summary."""
        if self.trainer.is_global_zero:
            print("\n" + summary(self.trainer))

    def _chosen_model(self) -> str:
        return self._get(self.config, "model").class_path

    def _record(self) -> RunRecord:
        config = self.config.get(str(self.subcommand), self.config)
        text = self._parser(self.subcommand).dump(config, skip_none=False)
        parameters = {
            key.replace("init_args.", ""): value
            for part in ("model", "data")
            for key, value in flatten(config[part].as_dict(), f"{part}.").items()
        }
        return RunRecord(text, parameters, config.get("seed_everything"))


def run(args: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments; those of the process if None.

    Returns:
        Exit status: 0; 1 for a run that could not go on, 2 for wrong arguments, 130 and 143 for an interruption.
    """
    _quieten()
    given = sys.argv[1:] if args is None else args
    if given and given[0] in COMMANDS:
        Parser.known_names, Parser.arguments = _known_names(), tuple(given)
        return run_command(given)
    debug = bool(os.environ.get("FLOWMATCH_RL_DEBUG"))
    try:
        FlowMatchCLI(args)
    except SIGTERMException:
        return 128 + signal.SIGTERM
    except SystemExit as end:
        # Lightning ends an interrupted run with status 1, from inside the handler of the interruption.
        return 128 + signal.SIGINT if isinstance(end.__context__, KeyboardInterrupt) else int(end.code or 0)
    except RunError as error:
        if debug:
            traceback.print_exc()
        return report(str(error), code=1)
    except (ValueError, OSError, MisconfigurationException, RuntimeError) as error:
        if debug or not _is_users(error):
            raise
        short = shorten(str(error))
        return report(short)
    return 0


def _is_users(error: BaseException) -> bool:
    """Whether an error was raised while arguments were checked, not in the middle of a run."""
    frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, RuntimeError):  # from weights of other shapes
        return "load_state_dict" in frames
    return any(check in frames for check in _CHECKS)


def _quieten() -> None:
    """Leave out what libraries say about themselves."""
    for name in ("lightning.pytorch", "lightning.fabric", "torchrl"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for category in (DeprecationWarning, FutureWarning, UserWarning):
        warnings.filterwarnings(
            "ignore",
            category=category,
            module=r"(torch|tensordict|torchrl|lightning|mlflow|gymnasium|jsonargparse|pydantic)",
        )


def _check_unused(folder: Path) -> None:
    """Refuse to write a new run over another one."""
    last = folder / "checkpoints" / "last.ckpt"
    if last.exists():
        raise ValueError(f"{folder} holds a run already; go on with --ckpt_path {last}, or choose another folder")


def _run_directory(label: str) -> str:
    """A new folder for a run, the same on all its processes."""
    if _RUN_DIR not in os.environ:
        parent = Path("runs") / label
        name = time.strftime("%Y-%m-%d_%H-%M-%S")
        folder, copies = parent / name, 1
        while folder.exists():
            copies += 1
            folder = parent / f"{name}-{copies}"
        folder.mkdir(parents=True)
        # Processes that Lightning launches inherit it.
        os.environ[_RUN_DIR] = str(folder)
    return os.environ[_RUN_DIR]


def _known_names() -> frozenset[str]:
    """Names of the package's classes and of their arguments, and of Lightning's commands."""
    names = {"fit", "validate", "test", "predict", "class_path", "init_args", "model", "data", "trainer"}
    names |= COMMANDS.keys()
    for room in (getattr(flowmatch_rl, name) for name in _ROOMS):
        # The parser finds classes by their names among those that are imported.
        for name, value in ((name, getattr(room, name)) for name in room.__all__):
            if inspect.isclass(value):
                names |= {name, *inspect.signature(value).parameters}
    return frozenset(names - {"args", "kwargs"})


def _model_argument(argument: str) -> str | None:
    """Name of the model's argument that an option sets: "" for the whole model, None for another option."""
    option = argument.partition("=")[0]
    if option == "--model":
        return ""
    return (
        option.removeprefix("--model.").removeprefix("init_args.").partition(".")[0] if "--model." in option else None
    )


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list) else [value]
