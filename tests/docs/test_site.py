"""The site: it is built without a warning, needs no other host, and its reference has every public name."""

import ast
import importlib
import importlib.util
import inspect
import itertools
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.cli.support import environment
from tests.combinations import one_test

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
EQUATIONS = sorted(DOCS.glob("*_equations.md"))

pytest.importorskip("mkdocs_autorefs", reason="needs the extra docs")


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOKS = loaded(DOCS / "assets" / "hooks.py")
NAMES = [(package, name) for package in HOOKS.PACKAGES for name in HOOKS.exports(package)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as ``make docs`` does; any warning ends the build."""
    folder = tmp_path_factory.mktemp("site")
    variables = environment(NO_MKDOCS_2_WARNING="1", FLOWMATCH_RL_REPOSITORY="", FLOWMATCH_RL_DOCS_SEARCH="false")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    return folder


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    missing = []
    for package in HOOKS.PACKAGES:
        page = (site / "reference" / f"{package}.html").read_text(encoding="utf-8")
        anchors = set(re.findall(r'\bid="([^"]+)"', page))
        missing += [name for name in HOOKS.exports(package) if f"flowmatch_rl.{package}.{name}" not in anchors]
    assert missing == []


def test_the_site_asks_no_other_host_for_scripts_styles_fonts_or_pictures(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert re.findall(r"<(?:script|img|iframe)[^>]*\bsrc=\"(?:https?:)?//[^\"]*", text) == []
        assert re.findall(r"<link[^>]*rel=\"(?:stylesheet|preconnect)\"[^>]*href=\"(?:https?:)?//[^\"]*", text) == []
    for style in site.rglob("*.css"):
        assert re.findall(r"url\([\"']?(?:https?:)?//|@import", style.read_text(encoding="utf-8")) == [], style


def test_equations_reach_the_page_for_the_typesetter(site: Path) -> None:
    for page in EQUATIONS:
        text = (site / f"{page.stem}.html").read_text(encoding="utf-8")
        assert text.count('<div class="arithmatex">') == page.read_text(encoding="utf-8").count("$$") // 2
        assert 'src="assets/katex/katex.min.js"' in text
        assert "$" not in re.sub(r"document\$|<script.*?</script>", "", text, flags=re.DOTALL)


def test_the_navigation_names_each_page_once() -> None:
    listed = re.findall(
        r"[\w/]+\.md$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2], re.MULTILINE
    )
    assert sorted(listed) == sorted(set(listed))
    assert len(listed) > 20


def test_public_packages_are_those_of_the_reference() -> None:
    with_exports = {
        path.parent.name for path in (ROOT / "flowmatch_rl").glob("*/__init__.py") if "__all__" in path.read_text()
    }
    assert with_exports <= set(HOOKS.PACKAGES)
    for package in with_exports:
        assert set(HOOKS.exports(package)) == set(importlib.import_module(f"flowmatch_rl.{package}").__all__)


def documented(package: str, name: str) -> bool:
    """Whether a class or function has a docstring of its own, and an alias a string below it."""
    value = getattr(importlib.import_module(f"flowmatch_rl.{package}"), name)
    if inspect.isclass(value):
        return bool(vars(value).get("__doc__"))
    if inspect.isfunction(value):
        return bool(value.__doc__)
    origin = HOOKS.exports(package)[name]
    room = origin.removeprefix("flowmatch_rl.")
    if room in HOOKS.PACKAGES and room != package:
        return documented(room, name)
    tree = ast.parse(inspect.getsource(importlib.import_module(origin)))
    for node, following in itertools.pairwise(tree.body):
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
    return False


def test_every_public_name_has_a_docstring() -> None:
    assert [f"{package}.{name}" for package, name in NAMES if not documented(package, name)] == []


@one_test
@pytest.mark.parametrize("page", EQUATIONS, ids=lambda path: path.name)
def test_every_equation_names_the_code_that_computes_it(page: Path) -> None:
    parts = page.read_text(encoding="utf-8").split("$$")[2::2]
    assert len(parts) > 5
    known = HOOKS.public_names()
    for part in parts:
        sentence = part.strip().partition("\n\n")[0]
        assert sentence.startswith("Code: "), sentence
        found = [resolved(name, known) for name in re.findall(r"`([^`]+)`", sentence)]
        assert any(callable(value) for value in found), sentence


def resolved(name: str, known: dict[str, str]) -> Any:
    """What a name in code stands for, None for one that is not public; a missing member of a public one is an error."""
    first, _, member = name.partition(".")
    path = name if name in known.values() else known.get(first)
    if path is None:
        return None
    module, _, last = path.rpartition(".")
    value = getattr(importlib.import_module(module), last)
    return getattr(value, member) if path != name and member else value


def test_a_link_out_of_the_pages_leads_to_the_repository_or_names_the_file() -> None:
    line = "[a](../conf/actor_critic/custom.yaml#L3), [methods](../conf/actor_critic/methods), [a page](other.md)."

    def rewritten(repository: str) -> str:
        return HOOKS.LINK.sub(lambda match: HOOKS.outside(match, DOCS, repository), line)

    with_address = rewritten("https://example.org/you/it")
    assert "(https://example.org/you/it/blob/main/conf/actor_critic/custom.yaml#L3)" in with_address
    assert "(https://example.org/you/it/tree/main/conf/actor_critic/methods)" in with_address
    without = rewritten("")
    assert '<span class="in-repository" title="conf/actor_critic/methods, in the repository">methods</span>' in without
    assert "[a page](other.md)" in without
    assert "../" not in without
