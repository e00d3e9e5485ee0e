"""Help on one page: it names what there is, and nothing else; and the list of all options."""

import gc
import inspect
import re
from pathlib import Path

import pytest
from lightning.pytorch import LightningDataModule, LightningModule

from flowmatch_rl.cli import overview as page
from flowmatch_rl.cli.main import COMMANDS
from flowmatch_rl.cli.names import known_classes
from tests.cli.support import CONF, ROOT, Outcome, call

RUNS = ("fit", "validate", "test", "predict")


@pytest.fixture(scope="module")
def whole() -> Outcome:
    """The list of all options; it names optimizer classes that Lightning made for other tests while they live."""
    gc.collect()
    return call(["fit", "--help=all"])


def test_the_page_names_every_model_every_data_class_and_every_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    outcome = call(["fit", "--help"])
    assert (outcome.code, outcome.err) == (0, "")
    words = set(re.findall(r"[\w/.=-]+", outcome.out))
    for name, kind in known_classes().items():
        if issubclass(kind, LightningModule | LightningDataModule):
            assert (name in words) == (not inspect.isabstract(kind)), name
    others = {"collect", "convert", "comparison", "improve", "sweep"}
    for path in CONF.rglob("*.yaml"):
        place = path.parent.relative_to(CONF)
        if place.parts[0] not in others and path.name != "estimators.yaml":
            assert {str(place), path.stem} <= words, path
    assert max(map(len, outcome.out.splitlines())) <= 110
    assert outcome.out.index("models (--model):") < outcome.out.index("options used most:")


@pytest.mark.parametrize("args", [["fit", "-h"], ["help", "fit"], ["fit", "-c=conf/no.yaml", "--help"]], ids=" ".join)
def test_the_page_needs_no_configurations(args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = call(args)
    assert outcome.code == 0
    assert outcome.out.startswith("usage: flowmatch-rl fit -c FILE")
    assert "files in conf" not in outcome.out


def test_overlays_are_told_from_complete_configurations() -> None:
    complete, overlays = ("\n".join(page.file_lines(CONF, complete)) for complete in (True, False))
    for name in ("two_moons", "pendulum", "maze_loop"):
        assert name in complete
        assert name not in overlays
    for name in ("logger", "trainer", "actor_critic/presets", "online"):
        assert name in overlays
        assert name not in complete


def test_every_option_of_the_page_is_one_of_the_parser(whole: Outcome) -> None:
    assert whole.code == 0
    known = set(re.findall(r"(?<=[ \[,])--?[\w.]+", whole.out))
    for shown in page.OPTIONS:
        for option in re.findall(r"--?[\w.]+", shown):
            stem = re.sub(r"\.init_args\.NAME$", "", option)
            assert stem in known, option
    for _, name in page.WITH_OPTIONS.items():
        assert f"--{name}" in known


def test_the_list_of_all_options_has_those_of_lightning(whole: Outcome) -> None:
    assert "--trainer.accumulate_grad_batches" in whole.out
    assert "--model.help" in whole.out
    assert call(["fit", "--help_all"]).out == whole.out


def test_the_first_page_leads_to_the_others() -> None:
    outcome = call(["help"])
    assert outcome.code == 0
    assert outcome.out == call(["--help"]).out
    for words in (*COMMANDS, "flowmatch-rl fit -c conf/flow/two_moons.yaml", "flowmatch-rl fit --help"):
        assert words in outcome.out
