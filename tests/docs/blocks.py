"""The blocks of code and of commands in the pages, and what kind each is of."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = ("flowmatch-rl", "make", "pip", "python", "torchrun", "srun", "sbatch", "docker", "apptainer")

Kind = Literal["python", "yaml", "commands", "other"]


@dataclass(frozen=True)
class Block:
    """A block of a page.

    Attributes:
        page: Its page, below the root of the repository.
        line: Line of the page where it begins.
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
        if self.commands and self.commands[0][0] in PROGRAMS:
            return "commands"
        if self.language == "yaml" or re.match(r"[a-z_]+:(\n| \{)", self.text):
            return "yaml" if isinstance(yaml.safe_load(self.text), dict) else "other"
        return "other"

    @property
    def commands(self) -> list[list[str]]:
        """Words of its commands; comments and continued lines are read as a shell reads them."""
        return read_commands(self.text)


def read_commands(text: str) -> list[list[str]]:
    """Words of the commands in a text; none if it is no text of a shell."""
    try:
        lines = [shlex.split(line, comments=True) for line in re.sub(r"\\\n\s*", " ", text).splitlines()]
    except ValueError:
        return []
    return [words for words in lines if words]


def blocks(page: Path) -> list[Block]:
    """Blocks of a page in their order."""
    found: list[Block] = []
    above = ""
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "inline":
            above = token.content
        elif token.type in ("fence", "code_block"):
            files = re.findall(r"`(\w+\.(?:py|yaml))`", above)
            line = (token.map or [0])[0] + 1
            name = str(page.relative_to(ROOT))
            found.append(Block(name, line, token.info.strip(), token.content, files[-1] if files else ""))
            above = ""
    return found


def inline_commands(page: Path) -> list[list[str]]:
    """Commands of this package within sentences, those that have arguments."""
    tokens = [token for token in MarkdownIt().parse(page.read_text(encoding="utf-8")) if token.type == "inline"]
    codes = [child.content for token in tokens for child in token.children or [] if child.type == "code_inline"]
    return [shlex.split(code) for code in codes if re.match(r"flowmatch-rl \w+ \S", code)]


BLOCKS = [block for page in PAGES for block in blocks(page)]
