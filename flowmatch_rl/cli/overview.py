"""Help on one page: what this package adds to Lightning, before the list of all options."""

import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning.pytorch import LightningDataModule, LightningModule

from flowmatch_rl.cli.main import COMMANDS
from flowmatch_rl.cli.messages import EXAMPLES
from flowmatch_rl.cli.names import known_classes
from flowmatch_rl.cli.wiring import WITH_OPTIONS

CONF = "conf"
"""Folder of configuration files, below the working folder."""

_WIDTH, _INDENT = 110, 26
_OTHERS = ("improve",)
"""Folders of files whose sections have the same names, for other commands."""

_SECTIONS = {"model", "data", "trainer", "optimizer", "lr_scheduler", "seed_everything", "checkpoints", "video"}

OPTIONS = {
    "-c, --config FILE": "Configuration, complete or an overlay; may be repeated, later files win.",
    "--ckpt_path PATH": "Checkpoint to begin from; 'last' for the newest of the run's folder.",
    "--seed_everything N": "Seed of everything that is drawn at random.",
    "--trainer.default_root_dir FOLDER": "Folder of the run; runs/<task>/<time> if not given.",
    "--trainer.accelerator NAME": "cpu, gpu, or auto.",
    "--trainer.devices N": "Processes, one for each device; with -c conf/trainer/ddp.yaml.",
    "--trainer.precision NAME": "32-true, bf16-mixed, or auto for what is fast here.",
    "--trainer.logger CLASS": "Tracker, TensorBoardTracker, WandbTracker or CsvTracker, or false for none.",
    "--trainer.enable_progress_bar BOOL": "Whether to show how far the run is.",
    "--trainer.fast_dev_run BOOL": "Try one update and one evaluation, and write nothing.",
    "--data.init_args.NAME VALUE": "An argument of the data, such as total_env_steps or batch_size.",
    "--model.init_args.NAME VALUE": "An argument of the model, such as temperature or discount.",
    "--print_config": "Print the whole configuration and end.",
}
"""The options used most, as they are shown, and what they do."""


def overview(command: str, args: Sequence[str]) -> str | None:
    """The page, if arguments ask for it with ``-h`` or ``--help``; else None.

    Args:
        command: Name of the command.
        args: Arguments after it.
    """
    if not any(word in ("-h", "--help") for word in args):
        return None
    known = [kind for kind in known_classes().values() if not inspect.isabstract(kind)]
    parts = [
        [f"usage: flowmatch-rl {command} -c FILE [-c FILE ...] [--OPTION VALUE ...]", "", COMMANDS[command][0]],
        ["begin with:", f"  flowmatch-rl {command} {EXAMPLES[command]}"],
        [f"files in {CONF}, complete:", *file_lines(Path(CONF), complete=True)],
        [f"files in {CONF}, overlays:", *file_lines(Path(CONF), complete=False)],
        ["models (--model):", *_classes(known, LightningModule)],
        ["data (--data):", *_classes(known, LightningDataModule)],
        ["options used most:", *(_item(name, text) for name, text in OPTIONS.items())],
        ["options of callbacks:", *(_group(name, kind) for kind, name in WITH_OPTIONS.items())],
        [
            "more:",
            _item("--model.help CLASS", "The options of a model; --data.help CLASS, those of data."),
            _item("--help=all", "All options, those of Lightning included."),
        ],
    ]
    return "\n\n".join("\n".join(part) for part in parts if len(part) > 1)


def file_lines(folder: Path, complete: bool) -> list[str]:
    """Configurations for training, a line for each folder; none where the folder is not there.

    Args:
        folder: Folder of configurations.
        complete: Whether to list those that a run needs no other for, or the overlays on them.
    """
    found: dict[Path, list[str]] = {}
    for path in sorted(folder.rglob("*.yaml")):
        keys = set(re.findall(r"^(\w+):", path.read_text(encoding="utf-8"), re.MULTILINE))
        is_complete = {"model", "data"} <= keys and path.parent.parent == folder
        if keys <= _SECTIONS and is_complete == complete and path.parent.name not in _OTHERS:
            found.setdefault(path.parent, []).append(path.stem)
    return [_item(str(place.relative_to(folder)), ", ".join(names)) for place, names in found.items()]


def without_all(args: Sequence[str]) -> list[str]:
    """Arguments as the parser knows them, which has one kind of help, the list of all options.

    Args:
        args: Arguments after the command.
    """
    return ["--help" if word in ("--help=all", "--help_all") else word for word in args]


def _classes(known: Sequence[type], base: type) -> Iterator[str]:
    for kind in sorted((kind for kind in known if issubclass(kind, base)), key=lambda kind: kind.__name__):
        yield _item(kind.__name__, _first_line(kind))


def _group(name: str, kind: type) -> str:
    arguments = ", ".join(inspect.signature(kind).parameters)
    return _item(f"--{name}.NAME", f"{_first_line(kind)} NAME: {arguments}.")


def _first_line(kind: type) -> str:
    return (inspect.getdoc(kind) or "").partition("\n")[0].replace("`", "")


def _item(name: str, text: str) -> str:
    """A name and what it stands for, beside it or below."""
    lines = textwrap.wrap(text, _WIDTH - _INDENT)
    name = f"  {name}"
    begin = [name] if len(name) > _INDENT - 2 else []
    first = [] if begin else [f"{name:<{_INDENT}}{lines.pop(0)}"]
    return "\n".join([*begin, *first, *(" " * _INDENT + line for line in lines)])
