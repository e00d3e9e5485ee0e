"""Hooks of the site: the reference is made of the packages' exports, and links that leave docs/ get an address."""

import ast
import functools
import html
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PACKAGE = "flowmatch_rl"
BRANCH = "main"

PACKAGES = {
    "types": "Type aliases, and the abstract bases that several packages share.",
    "schema": "Columns of tables and bounds of actions, as models see them and as their users do.",
    "modules": "LightningModules that train the models.",
    "data": "Lightning data modules, data sets, replay buffers.",
    "envs": "Environments, roll-outs, oracles.",
    "inference": "Trained models without a trainer, and their export.",
    "models": "A network on a path, and what uses one.",
    "nets": "Networks, embeddings, critics and their value heads, EMA networks.",
    "paths": "Probability paths, schedules, noise sources, distributions of flow time, squashes.",
    "couplings": "Pairings of noise and data within a batch.",
    "solvers": "Integration of velocity fields, and log-likelihood.",
    "samplers": "Ways to sample a trained field.",
    "estimators": "Estimators of the endpoint of a path whose target is an unnormalised density.",
    "objectives": "Losses per sample.",
    "metrics": "Distances between samples, statistics of returns.",
    "planning": "Values of futures, and choice among policies.",
    "testbeds": "Densities, processes, bandits, rewards and policies with known answers.",
    "evaluation": "What is measured of a model.",
    "figures": "Arrays to figures.",
    "callbacks": "Side effects of a run: checkpoints, progress, figures, videos, tracking, summary.",
    "experiments": "Comparisons, reports and policies for a reward.",
    "cli": "The command line.",
}
"""Public packages and modules, in the order of the reference, and what they hold."""

LINK = re.compile(r"(?<!!)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<path>\.\./[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
CODE = re.compile(
    r"(?P<skip><pre\b.*?</pre>|<a\b.*?</a>|<h[1-6]\b.*?</h[1-6]>)|<code>(?P<name>[A-Za-z_][\w.]*)</code>", re.DOTALL
)


def exports(package: str) -> dict[str, str]:
    """Names in the ``__all__`` of a package, and the modules they come from; of a module, what it defines.

    Nothing is imported.

    Args:
        package: Name of the package or module below ``flowmatch_rl``.
    """
    module = ROOT / PACKAGE / f"{package}.py"
    if module.exists():
        return {name: f"{PACKAGE}.{package}" for name in _defined(ast.parse(module.read_text(encoding="utf-8")))}
    nodes = list(ast.walk(ast.parse((ROOT / PACKAGE / package / "__init__.py").read_text(encoding="utf-8"))))
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    origins = {name.name: node.module or "" for node in imports for name in node.names}
    (names,) = [
        ast.literal_eval(node.value)
        for node in nodes
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == "__all__" for to in node.targets)
    ]
    return {name: origins[name] for name in names}


def _defined(tree: ast.Module) -> list[str]:
    """Public names that a module defines at its top, in order of the alphabet."""
    kinds = ast.ClassDef | ast.FunctionDef
    names = [node.name for node in tree.body if isinstance(node, kinds)]
    assigned = [node.target for node in tree.body if isinstance(node, ast.AnnAssign)]
    assigned += [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    names += [target.id for target in assigned if isinstance(target, ast.Name)]
    return sorted(name for name in names if not name.startswith("_"))


def entry(package: str, name: str, origin: str) -> str:
    """What a page of the reference says of a name: its docstring, or whose it is.

    Args:
        package: Package that exports it.
        name: The name.
        origin: Module that defines it.
    """
    path = f"{PACKAGE}.{package}.{name}"
    if origin.partition(".")[0] == PACKAGE:
        return f"::: {path}"
    return f"## {name} {{ #{path} }}\n\n`{origin}.{name}`, exported for annotations."


@functools.cache
def public_names() -> dict[str, str]:
    """Paths of the public names, by the name alone; of two packages with one name, that of the first."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        for name in exports(package):
            found.setdefault(name, f"{PACKAGE}.{package}.{name}")
    return found


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add to the navigation what it does not list: the reference, and further pages."""
    listed = str(config.nav)
    others = sorted(page.name for page in (ROOT / "docs").glob("*.md") if page.name not in listed)
    more: list[Any] = [{"More": others}] if others else []
    pages: list[Any] = [{package: f"reference/{package}.md"} for package in PACKAGES]
    config.nav = [*(config.nav or []), *more, {"Reference": ["reference/index.md", *pages]}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page of the reference for each package, and an index."""
    rows = [f"| [`{PACKAGE}.{package}`]({package}.md) | {text} |" for package, text in PACKAGES.items()]
    index = ["# Reference", "", "Every public name, from its docstring.", "", "| package | holds |", "|---|---|", *rows]
    files.append(File.generated(config, "reference/index.md", content="\n".join(index)))
    for package, text in PACKAGES.items():
        entries = [entry(package, name, origin) for name, origin in exports(package).items()]
        content = "\n\n".join([f"# {PACKAGE}.{package}", text, *entries])
        files.append(File.generated(config, f"reference/{package}.md", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Give links that leave docs/ the address of the repository, or name the file where there is none."""
    folder = (ROOT / "docs" / page.file.src_uri).parent

    def leave(match: re.Match[str]) -> str:
        return outside(match, folder, (config.repo_url or "").rstrip("/"))

    return LINK.sub(leave, markdown)


def outside(match: re.Match[str], folder: Path, repository: str) -> str:
    """A link to a file of the repository that the site does not hold.

    Args:
        match: The link in Markdown.
        folder: The folder of its page.
        repository: Address of the repository; empty if there is none.
    """
    target = (folder / match["path"]).resolve()
    path = target.relative_to(ROOT).as_posix()
    if repository:
        kind = "tree" if target.is_dir() else "blob"
        return f"[{match['text']}]({repository}/{kind}/{BRANCH}/{path}{match['anchor'] or ''})"
    return f'<span class="in-repository" title="{html.escape(path)}, in the repository">{match["text"]}</span>'


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Link public names in the text to the reference; a name that is not there fails the build."""
    if page.file.src_uri.startswith("reference/"):
        return content
    known = public_names()

    def refer(match: re.Match[str]) -> str:
        name = match["name"] or ""
        first, dot, member = name.partition(".")
        if name in known.values():
            path = name
        elif first in known and (first[0].isupper() or ("_" in first and not member)):
            path = f"{known[first]}{dot}{member}"
        else:
            return match[0]  # also a word such as a command or an option
        return f'<autoref identifier="{path}"><code>{name}</code></autoref>'

    return CODE.sub(refer, content)
