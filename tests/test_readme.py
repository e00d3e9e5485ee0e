"""The README's example runs, and the files that the pages link to and name exist."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.combinations import one_test

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TINY = {"total_env_steps=7000": "total_env_steps=24", "warmup_env_steps=1000": "warmup_env_steps=16"}
TINY |= {"batch_size=128": "batch_size=16"}


def test_the_quick_start_trains_and_acts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, with tiny values in place of those that the block names."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    for value, tiny in TINY.items():
        assert code.count(value) == 1
        code = code.replace(value, tiny)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert (tmp_path / "pendulum.ckpt").exists()
    assert names["observation"].shape == (3,)
    assert names["reward"] <= 0.0


def test_the_readme_stays_short() -> None:
    assert len(README.splitlines()) <= 150


@one_test
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_and_configurations_of_a_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if not link.startswith("http")]
    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [path for path in re.findall(r"\bconf/[\w/]+\.yaml\b", text) if not (ROOT / path).exists()]
    assert missing == []
