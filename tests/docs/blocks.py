"""The blocks of code and of commands in the pages, and what kind each is of."""

import itertools
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CONTAINERS = ("docker", "apptainer")
PROGRAMS = (
    *("flowmatch-rl", "make", "pip", "python", "torchrun", "srun", "sbatch"),
    *CONTAINERS,
    *("mlflow", "curl", "pytest", "pre-commit", "sha256sum", "tensorboard"),
)
SETTING = re.compile(r"[A-Z_]+=")
INLINE = re.compile(rf"(\.venv/bin/)?(flowmatch-rl \w+|{'|'.join(PROGRAMS[1:])}) \S")

Kind = Literal["python", "yaml", "commands", "other"]


@dataclass(frozen=True)
class Command:
    """A command of a page.

    Attributes:
        page: Its page, below the root of the repository.
        block: Line of the page where its block, or its sentence, begins.
        line: Line of the page where it begins.
        words: Its words as a shell reads them, without the settings.
        settings: Environment variables that it sets, by name.
    """

    page: str
    block: int
    line: int
    words: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, page: str, block: int, line: int, text: str) -> "Command | None":
        """A command from its text, in which ``<some words>`` are one word; None if it is empty or a comment."""
        words = shlex.split(re.sub(r"<(\w+) (\w+)>", r"<\1_\2>", text), comments=True)
        settings = dict(word.split("=", 1) for word in itertools.takewhile(SETTING.match, words))
        return cls(page, block, line, tuple(words[len(settings) :]), settings) if words else None

    @property
    def name(self) -> str:
        """Page and line."""
        return f"{self.page}:{self.line}"

    @property
    def program(self) -> str:
        """What it starts, without its folder."""
        return Path(self.words[0]).name

    @property
    def text(self) -> str:
        """The program and its arguments in one line."""
        return shlex.join((self.program, *self.words[1:]))

    @property
    def arguments(self) -> list[str] | None:
        """Arguments of ``flowmatch-rl``, which a launcher may begin; None for another program."""
        for start in (("flowmatch-rl",), ("-m", "flowmatch_rl")):
            for place in range(len(self.words)):
                if self.words[place : place + len(start)] == start and self.program not in CONTAINERS:
                    return [*self.words[place + len(start) :]]
        return None


@dataclass(frozen=True)
class Block:
    """A block of a page.

    Attributes:
        page: Its page, below the root of the repository.
        line: Line of the page where its text begins.
        language: What its fence says, "" for an indented block.
        text: The block.
        file: Name of the file that the sentence above says it is, "" if none.
    """

    page: str
    line: int
    language: str
    text: str
    file: str = ""

    @property
    def name(self) -> str:
        """Page and line."""
        return f"{self.page}:{self.line}"

    @property
    def kind(self) -> Kind:
        """What can be done with it."""
        if self.language == "python":
            return "python"
        if self.commands and self.commands[0].program in PROGRAMS:
            return "commands"
        if self.language == "yaml" or re.match(r"[a-z_]+:(\n| \{)", self.text):
            return "yaml" if isinstance(yaml.safe_load(self.text), dict) else "other"
        return "other"

    @property
    def commands(self) -> list[Command]:
        """Its lines as a shell reads them, without comments, continued lines as one; none if no shell reads them."""
        found = []
        lines = iter(enumerate(self.text.splitlines(), self.line))
        for line, text in lines:
            while text.endswith("\\"):
                text = text[:-1] + next(lines)[1]
            try:
                found.append(Command.read(self.page, self.line, line, text))
            except ValueError:
                return []
        return [command for command in found if command is not None]


def blocks(page: Path) -> list[Block]:
    """Blocks of a page in their order."""
    found: list[Block] = []
    above = ""
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "inline":
            above = token.content
        elif token.type in ("fence", "code_block"):
            files = re.findall(r"`(\w+\.(?:py|yaml))`", above)
            line = (token.map or [0])[0] + (2 if token.type == "fence" else 1)
            name = str(page.relative_to(ROOT))
            found.append(Block(name, line, token.info.strip(), token.content, files[-1] if files else ""))
            above = ""
    return found


def commands(page: Path) -> list[Command]:
    """Commands of a page in their order: those of its blocks, and those with arguments within its sentences."""
    found = [command for block in blocks(page) if block.kind == "commands" for command in block.commands]
    for token in MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8")):
        for child in token.children or []:
            if child.type == "code_inline" and INLINE.match(child.content):
                line = (token.map or [0])[0] + 1
                command = Command.read(str(page.relative_to(ROOT)), line, line, child.content)
                found += [command] if command else []
    return sorted(found, key=lambda command: command.line)


BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [command for page in PAGES for command in commands(page)]
