"""Every command and every configuration in the pages is one that the command line takes; nothing is trained.

``fit`` and the like are parsed with ``--print_config``, which refuses unknown options, classes and values of another
type. What a single complete file of ``conf/`` does is tested where every such file is trained.
"""

import itertools
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.__main__ import BENCHMARKS
from flowmatch_rl.cli import main
from tests.cli.support import call
from tests.docs.blocks import BLOCKS, COMMANDS, ROOT, Block

PRINTED = "what the command above prints"
NOT_RUN = {
    "docs/any_reward.md": {"--behavior '{class_path": "options of the command above", "action  ": "what it prints"},
    "docs/architecture.md": {"roof  ": "a table"},
    "docs/containers.md": {"(umask 077": "needs Docker"},
    "docs/datasets.md": {"episode,time": "a table", "data/robot_arm:": PRINTED},
    "docs/generative_model.md": {"learns height": PRINTED},
    "docs/occupancy.md": {"m(x | s, a)": "a formula"},
}
"""Beginnings of blocks that are no commands, or commands that need what is not here, by page, with the reason."""

PARSED = ("fit", "test", "validate", "predict", "collect", "convert", "estimators", "sweep")
"""Commands whose configuration can be printed."""

FRAGMENTS = {"segments": "occupancy/maze_loop", "rewards": "occupancy/maze_loop", "estimator": "actor_critic/pendulum"}
"""Arguments of models that pages show by themselves, and a task that they go with."""


def without_places(words: list[str]) -> tuple[str, ...]:
    """A command without what names a folder or a checkpoint of one run, so that equal ones are tried once."""
    kept: list[str] = []
    for place, word in enumerate(words):
        before = words[place - 1] if place else ""
        of_run = ("--ckpt_path", "--trainer.default_root_dir")
        if word not in of_run and before not in of_run:
            kept.append(re.sub(r"(<run>|runs/[^ ]+)/\w+\.yaml", "conf/actor_critic/hopper.yaml", word))
    return tuple(kept)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the configurations of the repository, and the files that the pages say how to write."""
    for name in ("conf", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    for block in BLOCKS:
        if block.file:
            (tmp_path / block.file).write_text(block.text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_every_block_is_run_or_has_a_reason_why_not() -> None:
    for block in BLOCKS:
        reasons = [reason for start, reason in NOT_RUN.get(block.page, {}).items() if block.text.startswith(start)]
        assert bool(reasons) == (block.kind == "other"), f"{block.name}: {block.text[:80]!r}"


def has_files_alone(words: tuple[str, ...]) -> bool:
    """Whether a command only names files, each of which is trained, or compared, by a test of its own."""
    return (
        words[0] in ("fit", "test", "predict", "compare")
        and "-c" in words
        and all(word in ("-c", "--output") or "/" in word for word in words[1:])
    )


@pytest.mark.parametrize("which", ["with options", pytest.param("with files alone", marks=pytest.mark.slow)])
def test_every_command_of_the_package_is_taken_by_its_parser(which: str, place: Path) -> None:
    tried: dict[tuple[str, ...], str] = {}
    for command in COMMANDS:
        if (arguments := command.arguments) is not None:
            tried.setdefault(without_places(arguments), command.name)
    chosen = {words: where for words, where in tried.items() if has_files_alone(words) == (which != "with options")}
    assert len(chosen) > 30
    wrong = [f"{where}: {problem}" for words, where in chosen.items() if (problem := refusal([*words]))]
    assert wrong == []


def test_every_file_that_a_command_names_exists(place: Path) -> None:
    missing = []
    for command in COMMANDS:
        named = itertools.pairwise(command.words)
        files = [word for before, word in named if before == "-c" and word.endswith(".yaml")]
        missing += [
            f"{command.name}: {path}"
            for path in files
            if "<" not in path and not path.startswith("runs/") and not Path(path).exists()
        ]
    assert missing == []


def refusal(words: list[str]) -> str:
    """What the command line has against a command, "" if nothing."""
    command, rest = words[0], words[1:]
    if command not in main.COMMANDS:
        return f"there is no command {command}"
    files = [word for before, word in itertools.pairwise(rest) if before == "-c"]
    if missing := [path for path in files if not Path(path).exists()]:
        return f"there is no {missing}"
    if command == "predict" and not files:
        rest = ["--ckpt_path", "zoo:two_moons", *rest]  # which says what it predicts
    if "--help" in rest or "--help=all" in rest or "--model.help" in rest:
        return said(words)
    if command in PARSED:
        return said([command, *rest, "--print_config"])
    if command == "compare":
        output = [] if "--output" in rest else ["--output", "runs/here"]
        return said([*words, *output, "--dry_run"])
    if command == "improve":
        return refused_improvement(rest)
    return refused_names(command, rest)


def said(words: list[str]) -> str:
    """What a command that ends at once prints on standard error."""
    outcome = call([word.replace("<time>", "time") for word in words])
    return "" if outcome.code == 0 else f"{' '.join(words)}: {outcome.err}"


def refused_improvement(rest: list[str]) -> str:
    """``improve`` passes options to ``fit`` that are not its own."""
    own, others = divided(rest)
    outcome = call(["improve", *own, *([] if "--ckpt_path" in own else ["--ckpt_path", "nowhere.ckpt"])])
    if "there is no checkpoint" not in outcome.err:  # what comes after the parser
        return outcome.err
    return said(["fit", *others, "--print_config"])


def divided(rest: list[str]) -> tuple[list[str], list[str]]:
    """Options of ``improve`` that are its own, and those of the ``fit`` that it becomes."""
    shown = options_of("improve")
    own, others = [], ["--model", "OccupancyActorCritic", "--data", "PolicyData"]
    for place in range(0, len(rest), 2):
        name = rest[place]
        (own if name in shown or name.startswith("--behavior") else others).extend(rest[place : place + 2])
    return own, others


def refused_names(command: str, rest: list[str]) -> str:
    """Options that the help of a command does not name, and folders of the repository that are not there."""
    unknown = [word for word in rest if word.startswith("--") and word.partition("=")[0] not in options_of(command)]
    missing = [word for word in rest if word.startswith("benchmarks/") and not Path(word).exists()]
    return f"unknown: {unknown}, missing: {missing}" if unknown or missing else ""


def options_of(command: str) -> set[str]:
    """Options that the help of a command names."""
    outcome = call([command, "--help"])
    assert outcome.code == 0, outcome.err
    return set(re.findall(r"--[\w.]+", outcome.out))


def test_every_other_command_names_what_is_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in COMMANDS:
        words, where = command.words, command.name
        if command.arguments is not None:
            continue
        if command.program == "make":
            assert words[1] in targets, where
        elif command.program == "pip":
            for extra in re.findall(r"(?:\.|flowmatch_rl)\[(\w+)\]", command.text):
                assert extra in project["optional-dependencies"], where
            for version in re.findall(r"\btorch==\S+", command.text):
                assert version in (ROOT / "constraints.txt").read_text(), where
        elif words[:3] == ("python", "-m", "benchmarks"):
            assert set(words[3:]) <= set(BENCHMARKS), where
        else:
            assert all((ROOT / word).exists() for word in words if re.match("(examples|conf|tests)/", word)), where


def configured(block: Block, place: Path) -> str:
    """What the command line has against a configuration, by what it configures."""
    content: dict[str, Any] = yaml.safe_load(block.text)
    path = place / "block.yaml"
    path.write_text(block.text)
    if "tasks" in content:
        path.write_text(yaml.safe_dump({"methods": {"plain": {}}} | content))
        return said(["compare", "-c", str(path), "--output", "runs/here", "--dry_run"])
    if "space" in content:
        return said(["sweep", "-c", str(path), "--output", "runs/here", "--print_config"])
    if "bandits" in content:
        return said(["estimators", "-c", str(path), "--output", "runs/here", "--print_config"])
    if "layout" in content:
        return said(["convert", "-c", str(path), "--output", "here", "--print_config"])
    if "environment" in content:
        return said(["collect", "-c", str(path), "--output", "here", "--print_config"])
    base = "actor_critic/pendulum"
    if "model" not in content:
        (name,) = content
        base = FRAGMENTS[name]
        path.write_text(yaml.safe_dump({"model": {"init_args": content}}))
    return said(["fit", "-c", f"conf/{base}.yaml", "-c", str(path), "--print_config"])


def test_every_configuration_in_the_pages_is_one(place: Path) -> None:
    shown = [block for block in BLOCKS if block.kind == "yaml"]
    assert len(shown) > 10
    assert [f"{block.name}: {problem}" for block in shown if (problem := configured(block, place))] == []
