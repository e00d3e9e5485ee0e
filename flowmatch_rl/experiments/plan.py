"""The plan of a comparison: methods, tasks and seeds, and the job of each combination."""

import functools
import importlib
import inspect
import json
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flowmatch_rl.checks import UserError
from flowmatch_rl.configuration import flatten, read_overlay
from flowmatch_rl.files import RESULT
from flowmatch_rl.redaction import redact, redact_all

Options = dict
"""Values by name, left as they are written: in a ``dict[str, Any]`` the parser makes objects of what names a class."""

OUTPUT = "output.log"
"""What a job printed, in its folder."""

PROGRAM = (sys.executable, "-m", "flowmatch_rl")

_NAME = re.compile(r"[\w+=-][\w.+=-]*")
_OWN_OPTIONS = ("seed_everything", "trainer.default_root_dir", "ckpt_path")


@dataclass(frozen=True)
class Method:
    """A method: what is laid over a task.

    Args:
        config: Configuration files, in the order in which they are laid over each other.
        options: Further options of ``fit``, by name.
    """

    config: list[str] = field(default_factory=list)
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A task: what a method is laid over.

    Args:
        config: Configuration files, in the order in which they are laid over each other.
        options: Further options of ``fit``, by name.
        return_range: Returns that count as 0 and as 1 where several tasks are brought to one scale, such as those of a
            random and of a good policy; what the environment states if None.
        keeps_model: Whether the class of the task's model stays. Of a method's files only those model arguments count
            that this class has too, with the same name and type: ``BanditFlow`` takes path, objective, estimator and
            sampler from an actor-critic's file, but no critic.
    """

    config: list[str]
    options: Options = field(default_factory=dict)
    return_range: tuple[float, float] | None = None
    keeps_model: bool = False

    def __post_init__(self) -> None:
        if self.return_range is not None and not self.return_range[0] < self.return_range[1]:
            raise UserError(f"return_range must ascend, got {self.return_range}")


@dataclass(frozen=True)
class Job:
    """One run of a comparison or a sweep: a process ``flowmatch-rl fit`` in a folder of its own.

    Attributes:
        task: Name of the task.
        method: Name of the method.
        seed: Seed.
        folder: Its folder.
        arguments: Arguments of ``fit``.
        remark: What to say of it when it begins; may be empty.
        tags: Tags of its MLflow run, names and values.
    """

    task: str
    method: str
    seed: int
    folder: Path
    arguments: tuple[str, ...]
    remark: str = ""
    tags: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """Task, method and seed."""
        return f"{self.task}/{self.method}/{self.seed}"

    @property
    def last(self) -> Path:
        """Its last checkpoint."""
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def finished(self) -> bool:
        """Whether it was trained to its end and tested: the result is written last, whole or not at all."""
        return (self.folder / RESULT).is_file()

    def command(self) -> list[str]:
        """The command that begins the run, or resumes it."""
        resume = [option("ckpt_path", str(self.last))] if self.last.is_file() else []
        return [*PROGRAM, "fit", *self.arguments, *resume]

    def describe(self) -> str:
        """The command as a shell takes it, without passwords, behind a comment sign if there is nothing to do."""
        return ("# finished: " if self.finished else "") + redact(shlex.join(self.command()))


@dataclass(frozen=True)
class Plan:
    """Every method on every task with every seed.

    Args:
        tasks: Tasks by name.
        methods: Methods by name.
        seeds: Seeds, each a run of every method on every task.
        options: Options of ``fit`` for all runs, by name; those of a task, and then of a method, come after them.
        tracking: Whether MLflow tracks the runs, under a common parent.

    Raises:
        UserError: If an entry or a file does not fit.
    """

    tasks: dict[str, Task]
    methods: dict[str, Method]
    seeds: Sequence[int] = (0,)
    options: Options = field(default_factory=dict)
    tracking: bool = True

    def __post_init__(self) -> None:
        check_names("tasks", self.tasks)
        check_names("methods", self.methods)
        for where, options in self._options():
            check_options(where, options, "compare")
        for where, path in self._files():
            read_file(where, path)
        check_seeds(self.seeds)

    def jobs(self, output: Path) -> list[Job]:
        """The jobs, one seed of everything before the next.

        Args:
            output: Folder of the comparison.
        """
        quiet = {"trainer.enable_progress_bar": False} | ({} if self.tracking else {"trainer.logger": False})
        jobs = []
        for seed in self.seeds:
            for task_name, task in self.tasks.items():
                for name, method in self.methods.items():
                    folder = output / task_name / name / str(seed)
                    # A dictionary keeps the place at which a key first came; options keep the order of their overlays.
                    overlays = [quiet, self.options, task.options, method.options]
                    overlays += [{"seed_everything": seed, "trainer.default_root_dir": str(folder)}]
                    arguments = [
                        *(f"-c={path}" for path in task.config),
                        *self._method_files(task_name, name),
                        *(option(key, value) for overlay in overlays for key, value in overlay.items()),
                    ]
                    jobs.append(Job(task_name, name, seed, folder, tuple(arguments)))
        return jobs

    def definition(self) -> dict[str, Any]:
        """What the runs are made with, with the contents of the files and without passwords; no comments, no layout."""

        def with_contents(entry: Task | Method) -> dict[str, Any]:
            layers = {str(place): read_file("config", path) for place, path in enumerate(entry.config, 1)}
            set_only = {key: value for key, value in asdict(entry).items() if key != "keeps_model" or value}
            return set_only | {"layers": layers}

        definition = {
            "tasks": {name: with_contents(task) for name, task in self.tasks.items()},
            "methods": {name: with_contents(method) for name, method in self.methods.items()},
            "options": self.options,
        }
        return redact_all(definition)

    def contents(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Options by name, and contents of files, each with the entry of the plan that has it."""
        yield from self._options()
        yield from ((where, read_file(where, path)) for where, path in self._files())

    def _entries(self) -> Iterator[tuple[str, Task | Method]]:
        for kind, entries in (("tasks", self.tasks), ("methods", self.methods)):
            for name, entry in entries.items():
                yield f"{kind}.{name}", entry

    def _options(self) -> Iterator[tuple[str, Options]]:
        yield "options", self.options
        for where, entry in self._entries():
            yield f"{where}.options", entry.options

    def _files(self) -> Iterator[tuple[str, str]]:
        for where, entry in self._entries():
            yield from ((f"{where}.config", path) for path in entry.config)

    def _method_files(self, task_name: str, name: str) -> list[str]:
        """A method's files as arguments; for a task that keeps its model, what its class shares of them."""
        task, files = self.tasks[task_name], self.methods[name].config
        if not task.keeps_model:
            return [f"-c={path}" for path in files]
        kept = [_model_section(f"tasks.{task_name}.config", path) for path in task.config]
        if not kept:
            raise UserError(f"tasks.{task_name} keeps its model, but has no configuration file that names one")
        class_path = kept[-1][0]
        arguments = {key for _, settings in kept for key in settings}
        return [f"-c={_shared_arguments(class_path, arguments, f'methods.{name}.config', path)}" for path in files]


def option(name: str, value: Any) -> str:
    """An option of the command line.

    Args:
        name: Its name, dots between levels.
        value: A word, or anything that YAML can say.
    """
    return f"--{name.lstrip('-')}={value if isinstance(value, str) else json.dumps(value)}"


def check_options(where: str, options: Iterable[Any], command: str) -> None:
    """Raise unless names can be those of options of a run, and none is set for each run.

    Args:
        where: Entry of the plan that has the options, for errors.
        options: Names as YAML read them.
        command: The command that sets some itself.

    Raises:
        UserError: If a name does not fit.
    """
    for name in options:
        if not isinstance(name, str):
            raise UserError(f"{where}: a name must be a word, got {name!r}; put it in quotes")
        if name.lstrip("-") in _OWN_OPTIONS:
            raise UserError(f"{where} must not set {name}: {command} sets it for each run")


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise unless there are seeds, all of them different.

    Args:
        seeds: The seeds.

    Raises:
        UserError: If they are not.
    """
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(f"seeds must be different numbers of at least 0, got {list(seeds)}")


def named_modules(contents: Iterable[tuple[str, Mapping[str, Any]]]) -> set[str]:
    """Modules of the classes that options and files name by an import path.

    Args:
        contents: Options by name, and contents of files, each with the entry of the plan that has it.
    """
    named = [value for _, content in contents for key, value in flatten(content).items() if key.endswith("class_path")]
    return {name.rpartition(".")[0] for name in named if isinstance(name, str) and "." in name}


def check_one_server(contents: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Raise if runs are given an address of MLflow, which their parent would not share.

    Args:
        contents: Options by name, and contents of files, each with the entry of the plan that has it.

    Raises:
        UserError: If they are.
    """
    for where, content in contents:
        for name, value in flatten(content).items():
            key = name.lstrip("-")
            if key.startswith("trainer.logger.") and key.endswith(".tracking_uri") and value is not None:
                raise UserError(
                    f"{where} must not set {key}: the parent of the runs would be elsewhere; set the environment "
                    "variable MLFLOW_TRACKING_URI, which holds for all"
                )


def check_names(kind: str, names: Iterable[Any]) -> None:
    """Raise unless there are names, and each can be that of a folder.

    Args:
        kind: What is named, such as ``methods``.
        names: Names as YAML read them.

    Raises:
        UserError: If there is none, or one does not fit.
    """
    names = list(names)
    if not names:
        raise UserError(f"{kind} must name at least one, got none")
    for name in names:
        if not isinstance(name, str):
            raise UserError(f"{kind}: a name must be a word, got {name!r}; put it in quotes")
        if not _NAME.fullmatch(name):
            raise UserError(f"{kind}.{name!r}: a name is made of letters, digits and _ + = - .; it names a folder")


def read_file(where: str, path: str) -> dict[str, Any]:
    """The content of a configuration file, empty if the file is.

    Args:
        where: Entry of the plan that names the file, for errors.
        path: Path of the file.

    Raises:
        UserError: If it cannot be read as ``fit`` would read it.
    """
    try:
        return read_overlay(path)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _shared_arguments(kept: str, stated: Iterable[str], where: str, path: str) -> str:
    """Configuration, as JSON, of those model arguments in a file that another class shares.

    Args:
        kept: The other class, as its configuration names it.
        stated: Arguments that the configuration of that class states.
        where: Entry of the plan that names the file.
        path: The file.
    """
    name, settings = _model_section(where, path)
    own, others = _arguments(where, kept), _arguments(where, name)
    shared = {key for key, type_ in own.items() if others.get(key) == type_}
    for key in settings:
        if key not in others:
            raise UserError(f"{where}: {path} has the unknown key {key!r}; it is none of {name}")
    if missing := [key for key in stated if key in own and key not in others]:
        raise UserError(f"{where}: {path} configures {name}, which has no {missing[0]} to give to {kept}")
    init_args = {key: value for key, value in settings.items() if key in shared}
    return json.dumps({"model": {"class_path": kept, "init_args": init_args}})


def _model_section(where: str, path: str) -> tuple[str, dict[str, Any]]:
    """Class of the model in a file, as it is named there, and its arguments."""
    section = read_file(where, path).get("model")
    if not (isinstance(section, dict) and isinstance(section.get("class_path"), str)):
        raise UserError(f"{where}: {path} has no section model with a class_path")
    return section["class_path"], section.get("init_args") or {}


@functools.cache
def _arguments(where: str, class_path: str) -> dict[str, Any]:
    """Types of a class's arguments by name."""
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module or "flowmatch_rl.modules"), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{where}: unknown class {class_path!r}") from error
    return {key: parameter.annotation for key, parameter in inspect.signature(found).parameters.items()}
