"""The classes that the pages tell users to write are right, short, and train when they are named in a configuration."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import gymnasium
import pytest
import torch

from flowmatch_rl.checks import UserError
from flowmatch_rl.estimators import ProductProposal
from flowmatch_rl.paths import AffinePath, CosineSchedule, LinearSchedule, Schedule
from tests.cli.support import BANDIT_SIZES, CONF, arguments, call
from tests.docs.blocks import BLOCKS
from tests.oracles import F64, NORMAL, at, gaussian_density, normal


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the files of the pages, which commands run in."""
    files = {block.file: block.text for block in BLOCKS if block.file}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in files:
        sys.modules.pop(Path(name).stem, None)


@pytest.fixture
def estimators(written: Path) -> ModuleType:
    import my_estimators  # pyright: ignore[reportMissingImports]

    return my_estimators


def test_the_estimator_has_at_most_80_lines(written: Path) -> None:
    assert len((written / "my_estimators.py").read_text().splitlines()) <= 80


@pytest.mark.parametrize("schedule", [LinearSchedule(), CosineSchedule()], ids=repr)
def test_a_pair_of_samples_is_exact_for_a_normal_density(estimators: ModuleType, schedule: Schedule) -> None:
    t = torch.tensor([0.1, 0.4, 0.7, 0.9], dtype=F64)
    x_t, z = normal(4, 3, seed=0), normal(4, 2, 3, seed=1)
    density = gaussian_density(torch.zeros(3, dtype=F64), torch.eye(3, dtype=F64) / 1.5)
    estimator = estimators.AntitheticMeanEstimator(2, ProductProposal(base_variance=1.5))
    found = estimator.estimate(AffinePath(schedule), NORMAL, density, at(x_t, t), z)
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    variance = 1.5 * alpha.square() + sigma.square()
    torch.testing.assert_close(found.x_1, 1.5 * alpha / variance * x_t)
    torch.testing.assert_close(found.x_0, sigma / variance * x_t)
    torch.testing.assert_close(found.effective_sample_size, torch.full_like(t, 2.0))


def test_an_odd_number_of_samples_is_refused_in_a_line(estimators: ModuleType) -> None:
    with pytest.raises(UserError, match="even and at least 2, got 5"):
        estimators.AntitheticMeanEstimator(5)


@pytest.mark.usefixtures("without_drawings")
def test_the_estimator_trains_when_a_configuration_names_it(written: Path) -> None:
    files = [f"-c={CONF / 'bandit' / 'four_modes.yaml'}", "-c=antithetic.yaml"]
    options = BANDIT_SIZES | {"trainer.default_root_dir": written / "run"}
    outcome = call(["fit", *files, *(f"--{name}={value}" for name, value in options.items())])
    assert outcome.code == 0, outcome.err
    content = torch.load(written / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["global_step"] == 4
    assert content["hyper_parameters"]["estimator"]["class_path"] == "my_estimators.AntitheticMeanEstimator"


@pytest.mark.usefixtures("without_drawings")
def test_the_environment_trains_by_its_name(written: Path) -> None:
    custom = CONF / "actor_critic" / "custom.yaml"
    options = {"trainer__logger": "false", "trainer__default_root_dir": written / "run"}
    outcome = call(arguments("fit", custom, data__environment__name="my_tasks:Cart-v0", **options))
    assert outcome.code == 0, outcome.err
    content = torch.load(written / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["hyper_parameters"]["observation_dim"] == 2
    assert content["hyper_parameters"]["action_bounds"].high == (2.0,)


def test_the_cart_moves_as_the_page_says_and_ends_off_the_track(written: Path) -> None:
    env = gymnasium.make("my_tasks:Cart-v0")
    (position, velocity), _ = env.reset(seed=0)
    observation, reward, terminated, _, _ = env.step(env.action_space.high)
    assert observation == pytest.approx([position + 0.1 * (velocity + 0.2), velocity + 0.2], abs=1e-6)
    assert reward == pytest.approx(-(observation[0] ** 2 + 0.1 * observation[1] ** 2 + 0.01 * 4.0), abs=1e-5)
    ends = [terminated]
    while not ends[-1]:
        observation, _, terminated, truncated, _ = env.step(env.action_space.high)
        assert not truncated
        ends.append(terminated)
    assert abs(observation[0]) > 5.0
