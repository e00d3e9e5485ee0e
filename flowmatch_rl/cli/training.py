"""The commands that run one model: LightningCLI with run folders, tracking, figures, video and a summary."""

import contextlib
import inspect
import json
import shlex
import signal
import time
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import SIGTERMException

from flowmatch_rl.callbacks import (
    AtomicCheckpointIO,
    Progress,
    QuietProfiler,
    RunLogger,
    RunRecord,
    RunResult,
    Throughput,
    header,
    summary,
)
from flowmatch_rl.checks import UserError
from flowmatch_rl.cli.arguments import compose
from flowmatch_rl.cli.fitting import check_command, check_fit
from flowmatch_rl.cli.folders import run_folder, sole_run
from flowmatch_rl.cli.names import known_names
from flowmatch_rl.cli.overview import overview, without_all
from flowmatch_rl.cli.parser import ALLOW_IMPORTS, CommandParser, user_errors
from flowmatch_rl.cli.precision import RunTrainer, choose_precision
from flowmatch_rl.cli.requests import request_words
from flowmatch_rl.cli.resuming import LAST, check_arguments, folder_of_run, last_checkpoint, read_chosen
from flowmatch_rl.cli.signals import Ending, ended_by_signals
from flowmatch_rl.cli.wiring import WITH_OPTIONS, giver, model_wiring, wiring
from flowmatch_rl.configuration import DIMENSIONS, flatten
from flowmatch_rl.files import RUN_TIME
from flowmatch_rl.redaction import redact, redact_all
from flowmatch_rl.trust import allow_imports, check_object, in_file, name_functions, reading_file
from flowmatch_rl.zoo import checkpoint_path

_CHECKPOINT_WORDS = ("best", "hpc")


class Parser(CommandParser, LightningArgumentParser):
    """The parser of LightningCLI, with short errors."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Without abbreviations: a misspelt option must not pass for another.
        super().__init__(*args, **{"prog": "flowmatch-rl", "allow_abbrev": False} | kwargs)


def train(command: str, args: list[str]) -> int:
    """Run a command of LightningCLI.

    Args:
        command: Its name.
        args: Arguments after it.

    Returns:
        Exit status: 0; 129, 130 and 143 for an interruption, which the checkpoint callback reports.
    """
    if (page := overview(command, args)) is not None:
        print(page)
        return 0
    with ended_by_signals() as ending:
        try:
            FlowMatchCLI([command, *without_all(args)], ending=ending)
        except SIGTERMException:
            # The status is that of the first process, which Lightning kills as soon as another one ends with not 0.
            return ending.said(ending.status) if _is_first() else ending.status_of_others
        except SystemExit as end:
            # Lightning ends an interrupted run with status 1, from inside the handler of the interruption.
            if not isinstance(end.__context__, KeyboardInterrupt):
                return int(end.code or 0)
            return ending.said(128 + signal.SIGINT) if _is_first() else 128 + signal.SIGINT
    return 0


def _is_first() -> bool:
    return rank_zero_only.rank == 0  # pyright: ignore[reportFunctionMemberAccess]


class FlowMatchCLI(LightningCLI):
    """Wires data, module, callbacks and tracking from YAML files and options.

    Dimensions flow from the data to the model. Without ``trainer.default_root_dir`` a run gets a folder of its own,
    ``runs/<label of the data>/<time>``, for checkpoints, figures, video and configuration.

    Args:
        args: Arguments, the command first if ``run``.
        run: Whether to run a command; otherwise model, data and trainer are made only.
        ending: The signal that ends the run; None where nothing listens to signals.

    Raises:
        UserError: If arguments, files or a checkpoint do not fit.
    """

    def __init__(self, args: list[str], run: bool = True, ending: Ending | None = None) -> None:
        self._given = args
        self._ending = ending or Ending()
        self._overlays: list[Any] = []
        self._checkpoint: str | None = None
        self._other = ""
        self._folder: Path | None = None
        self._saved: dict[str, Any] | None = None
        self._folders = contextlib.ExitStack()
        with self._folders if run else contextlib.nullcontext():
            super().__init__(
                LightningModule,
                LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                parser_class=Parser,
                trainer_class=RunTrainer,
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
            )

    def subcommands(self) -> dict[str, set[str]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Those of Lightning, or only the given one: the parser of each takes a fifth of a second to build."""
        known = LightningCLI.subcommands()
        return {name: known[name] for name in self._given[:1]} if self._has_command else known

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make a parser that knows the package's names, and what is about to be parsed."""
        parser: Any = super().init_parser(**kwargs)
        parser.known_names, parser.overlays = known_names(), self._overlays
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link dimensions from data to model and add the options of the callbacks."""
        for name in DIMENSIONS:
            give = giver(name, lambda: self._section(self.config)["model"].class_path)
            parser.link_arguments("data", f"model.init_args.{name}", compute_fn=give, apply_on="instantiate")
        for callback, group in WITH_OPTIONS.items():
            parser.add_lightning_class_args(callback, group)
        parser.add_argument("--allow_imports", type=list[str], default=[], help=ALLOW_IMPORTS)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments, and take those of a trained model from its checkpoint."""
        with user_errors():
            command = args[:1] if self._has_command else []
            words, overlays = compose(args[len(command) :])
            self._overlays.extend(overlays)
            if command == ["predict"]:
                words = [*request_words(overlays), *words]
            self.config = parser.parse_args([*command, *words])
            self._overlays.clear()
        section = self._section(self.config)
        allow_imports(section["allow_imports"])
        if section.get("weights_only") is False:  # an option of Lightning
            raise UserError("weights_only must be true, got false: no code is run that comes with a checkpoint")
        # LightningCLI would let the arguments in a checkpoint win over those that are given; here they do not.
        self._checkpoint = section.pop("ckpt_path", None)
        if self._checkpoint == LAST:
            self._find_last(section)
        if command == ["test"] and not any(isinstance(overlay, dict) and "verbose" in overlay for overlay in overlays):
            section["verbose"] = False  # the summary says it
        if self._checkpoint is None:
            if self._has_command and command != ["fit"]:
                raise UserError(f"{command[0]} needs a trained model; name its checkpoint with --ckpt_path")
            return
        if self._checkpoint in _CHECKPOINT_WORDS:
            return
        self._checkpoint = checkpoint_path(self._checkpoint)
        self._saved = read_chosen(self._checkpoint, self._given[0], self._given[1:])
        name_functions(section.as_dict())
        self._take_arguments(self._saved["hyper_parameters"])

    def before_instantiate_classes(self) -> None:
        """Give the path of the checkpoint back, which the Trainer needs, and dump the configuration.

        Lightning would dump it for the hyperparameters, and check it once more, which takes as long as parsing.
        """
        if self._has_command:
            self._section(self.config)["ckpt_path"] = self._checkpoint
        dump = self.parser.dump(self.config, format="json", skip_unset=False, skip_validation=True)
        self.config_dump = self._section(json.loads(dump))

    def instantiate_classes(self) -> None:
        """Make data, model and trainer, and check that they fit each other and the checkpoint."""
        # The functions that the user names have been imported; those that remain are named by the checkpoint.
        limit = reading_file() if self._saved is not None else contextlib.nullcontext()
        with limit:
            try:
                with user_errors(MisconfigurationException):
                    super().instantiate_classes()
            except UserError as error:
                raise UserError(f"{self._other}{error}") from error
            if self._saved is not None:
                with in_file(self._checkpoint):
                    self._check_weights(self._saved)
                self._saved = None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer with the run's folder, its length in environment steps, and the callbacks."""
        self._other = ""  # model and data go together
        options = self._section(self.config_init)["trainer"]
        _, remark = choose_precision(options.get("precision"), str(options.get("accelerator")))
        check_fit(self.model, self.datamodule)
        check_command(self.model, self.subcommand)
        if remark:
            rank_zero_only(print)(f"precision    {remark}")
        # A link leaves its target's name among the hyperparameters of models that have no such argument.
        for name in set(DIMENSIONS) - inspect.signature(type(self.model)).parameters.keys():
            self.model.hparams.pop(name, None)
        data: Any = self.datamodule
        if options.get("max_epochs") is None and options.get("max_steps", -1) == -1:
            kwargs["max_epochs"] = getattr(data, "num_epochs", None)
        label = getattr(data, "label", type(data).__name__)
        chosen = options.get("default_root_dir")
        folder = Path(chosen or self._folder or run_folder(label))
        kwargs["default_root_dir"] = str(folder)
        if not options.get("fast_dev_run"):
            self._claim(folder)
        kwargs["plugins"] = [*_as_list(options.get("plugins")), AtomicCheckpointIO()]
        if options.get("profiler") is None:
            kwargs["profiler"] = QuietProfiler()
        parts, own = wiring(data), model_wiring(self.model)
        # The bar comes first: it is closed before others print what they wrote.
        bar = [] if options.get("enable_progress_bar") is False else [Progress()]
        callbacks = [Throughput(), *parts.added, *own.added, self._record()]
        kwargs["callbacks"] = [*bar, *_as_list(options.get("callbacks")), *callbacks]
        trainer: Any = super().instantiate_trainer(**kwargs)
        # Several processes end together, where Lightning lets them.
        if self.subcommand not in (None, "fit"):
            self._ending.remark = f"interrupted; repeat with: flowmatch-rl {shlex.join(self._given)}"
        is_fit = self.subcommand == "fit"
        self._ending.may_end_at_once = lambda: not is_fit or (trainer.world_size == 1 and not trainer.training)
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                name = f"{label}/{time.strftime(RUN_TIME) if chosen else folder.name}"
                begun = self._checkpoint is not None or self._folder is not None
                resumes = self.subcommand == "fit" and begun
                logger.begin_in(folder, name, self.subcommand or "run", resumes)
                self._folders.callback(logger.close)
        kept = [callback for callback in trainer.callbacks if not isinstance(callback, (*parts.dropped, *own.dropped))]
        # The result is written after what all others do, such as the video: it says that a run is done.
        trainer.callbacks = [*kept, RunResult()]
        return trainer

    def before_fit(self) -> None:
        """Print the header, and what is learned from the data, and what is not; from now on interrupts may wait."""
        self._ending.is_updating = lambda: self.trainer.training
        if self.trainer.is_global_zero:
            print(redact(header(self.trainer, self.model, self.datamodule, self._checkpoint)))
            if introduction := wiring(self.datamodule).introduction:
                print(introduction)
            print(flush=True)

    def after_fit(self) -> None:
        """Test the trained policy, draw it, film it, and print the summary."""
        trainer: Any = self.trainer
        self._ending.is_updating = lambda: False
        self._ending.remark = "interrupted in the test after training; the last checkpoint is complete"
        if not trainer.fast_dev_run and trainer.state.finished:
            # The last policy: the best of several evaluations on ten episodes is a matter of luck as well.
            trainer.test(self.model, datamodule=self.datamodule, verbose=False)
            self.after_test()

    def after_test(self) -> None:
        """Print the summary."""
        if self.trainer.is_global_zero:
            print("\n" + redact(summary(self.trainer)))

    @property
    def _has_command(self) -> bool:
        return bool(self._given) and self._given[0] in LightningCLI.subcommands()

    def _section(self, config: Any) -> Any:
        """What a configuration says about the command."""
        return config[self._given[0]] if self._has_command else config

    def _claim(self, folder: Path) -> None:
        """Keep other runs out of the folders, on the first process: the others belong to the same run."""
        if _is_first():
            fits = self.subcommand == "fit"
            chosen = self._section(self.config_init)["checkpoints"].dirpath
            checkpoints = Path(chosen) if chosen else folder / "checkpoints"
            is_new = fits and not self._checkpoint
            self._folders.enter_context(sole_run(folder, checkpoints if fits else None, is_new))

    def _take_arguments(self, saved: dict[str, Any]) -> None:
        """Take the model's arguments from a checkpoint, but for those that the command line gives: they win."""
        paths = [path for argument in self._given if (path := _model_argument(argument)) is not None]
        if "_class_path" not in saved or [] in paths:
            return
        kept = {name: value for name, value in saved.items() if not name.startswith("_") and name not in DIMENSIONS}
        given = self._section(self.config)["model"]
        if given.class_path not in (None, saved["_class_path"]):
            names = [path.rpartition(".")[2] for path in (saved["_class_path"], given.class_path)]
            self._other = "{} is a checkpoint of {}, the configuration is for {}: ".format(self._checkpoint, *names)
        stated = given.init_args.as_dict() if given.class_path == saved["_class_path"] else {}
        model = {"class_path": saved["_class_path"], "dict_kwargs": _without_given(kept, stated, paths)}
        with in_file(self._checkpoint):
            check_object(LightningModule, model)
            check_arguments(saved["_class_path"], kept)
        with user_errors():
            self.config = self.parser.parse_object({self._given[0]: {"model": model}}, self.config)

    def _check_weights(self, saved: dict[str, Any]) -> None:
        """Load the weights as the Trainer will, so that a checkpoint of another model is refused here, by its name."""
        kind = type(self.model).__name__
        try:
            self.model.on_load_checkpoint(saved)
            with user_errors(RuntimeError):
                self.model.load_state_dict(saved["state_dict"])
        except KeyError as error:
            raise UserError(f"not a checkpoint of {kind}: it holds no {error}") from error

    def _find_last(self, section: Any) -> None:
        """Find the newest whole checkpoint of the run that this command continues; none to begin the run."""
        self._folder = folder_of_run(section, self._given)
        chosen = section["checkpoints"].dirpath
        found = last_checkpoint(Path(chosen) if chosen else self._folder / "checkpoints")
        self._checkpoint = None if found is None else str(found)

    def _record(self) -> RunRecord:
        config = redact_all(self.config_dump)
        if config.get("ckpt_path") is None:  # as an overlay over --ckpt_path it would take that away
            config.pop("ckpt_path", None)
        parameters = {
            key.replace("init_args.", ""): value
            for part in ("model", "data")
            for key, value in flatten(self._section(self.config)[part].as_dict(), f"{part}.").items()
        }
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        return RunRecord(text, parameters, config.get("seed_everything"))


def _model_argument(argument: str) -> list[str] | None:
    """Path of names to the model's argument that an option sets, empty for the whole; None for another option."""
    option = argument.partition("=")[0].replace(".init_args.", ".")
    if option == "--model":
        return []
    return option.removeprefix("--model.").split(".") if option.startswith("--model.") else None


def _without_given(saved: dict[str, Any], stated: dict[str, Any], paths: list[list[str]]) -> dict[str, Any]:
    """Saved arguments but for those that options give; of an object that groups arguments, only some may be given."""
    kept = dict(saved)
    for name in {path[0] for path in paths} & saved.keys():
        inner = [path[1:] for path in paths if path[0] == name]
        groups = all(isinstance(value, dict) and "class_path" not in value for value in (saved[name], stated.get(name)))
        if groups and all(inner):
            kept[name] = stated[name] | _without_given(saved[name], stated[name], inner)
        else:
            del kept[name]
    return kept


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list) else [value]
