"""A run that was ended at any moment and resumed is the run that was never ended, to the last digit."""

import contextlib
import csv
import functools
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from flowmatch_rl.callbacks import AtomicCheckpointIO, Checkpoints, LearningCurve, LossCurve
from flowmatch_rl.checkpoints import read_checkpoint
from flowmatch_rl.checks import UserError
from flowmatch_rl.data import (
    BanditData,
    DiskStorage,
    LocalProcesses,
    OfflineData,
    OnlineData,
    SampleData,
    collector_processes,
)
from flowmatch_rl.data.replay_log import FILES, Named, named_files
from flowmatch_rl.data.tables.datasets import DensityTable
from flowmatch_rl.envs import GymnasiumEnvironment
from flowmatch_rl.evaluation import FlowTests, FutureTests
from flowmatch_rl.models import DeterministicDynamics, StochasticDynamics
from flowmatch_rl.modules import (
    DynamicsModule,
    Expansion,
    FlowMatchingModel,
    ForwardBackward,
    ReverseFlowActorCritic,
    SoftActorCritic,
)
from flowmatch_rl.modules.settings import FlowOptimizer
from flowmatch_rl.nets import DynamicsArchitecture, EmaSettings, ForwardBackwardArchitecture, VelocityArchitecture
from flowmatch_rl.testbeds import FourModes, LinearPolicy
from tests.cli.support import default_signals
from tests.data.toy_trajectories import trajectory_store
from tests.modules import test_bandit_flow as bandits
from tests.modules import test_reverse_flow_actor_critic as reverse
from tests.modules import test_soft_actor_critic as soft
from tests.modules.occupancy_toys import occupancy
from tests.modules.options import grouped
from tests.processes import FORKS

SMALL = VelocityArchitecture(hidden_dim=8, num_blocks=1)
FEW_WEIGHTS = DynamicsArchitecture(num_members=2, hidden_dim=5, num_layers=1)


class KilledError(Exception):
    """Stands for the end of the process: no callback writes anything after it."""


class EndsAt(Callback):
    """Ends a run: in an update by the signal of a system that waits for its checkpoint or at once, or in an evaluation.

    Args:
        update: Number of the update; None for no end.
        how: ``system``, ``kill``, ``user`` for an interrupt in the evaluation that follows, ``late`` for a kill after
            its checkpoint.
    """

    def __init__(self, update: int | None, how: str) -> None:
        self.update, self.how = update, how

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        if trainer.global_step == self.update and self.how == "kill":
            raise KilledError
        if (
            trainer.global_step == self.update
            and self.how == "system"
            and trainer.global_rank == trainer.world_size - 1
        ):
            signal.raise_signal(signal.SIGTERM)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == self.update and self.how == "late":
            raise KilledError

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.update is not None and trainer.global_step > self.update and self.how == "user":
            raise KeyboardInterrupt


def flow(folder: Path) -> tuple[LightningModule, LightningDataModule]:
    data = SampleData(DensityTable(num_samples=120), batch_size=16, num_updates=21, epoch_updates=7, eval_samples=8)
    module = FlowMatchingModel(
        data.schema,
        network=SMALL,
        tests=FlowTests(transport_samples=8, likelihood_samples=0),
        optimizer=FlowOptimizer(1e-3, "cosine"),
        ema=EmaSettings(interval=3),
    )
    return module, data


def stored(folder: Path) -> OfflineData:
    if not (folder / "set").is_dir():
        trajectory_store(folder / "set", trajectories=[(9, "truncated"), (7, "terminated")] * 6)
    sizes: dict[str, Any] = {"batch_size": 8, "num_updates": 21, "epoch_updates": 7, "eval_steps": 4}
    return OfflineData(str(folder / "set"), **sizes)


def futures(folder: Path, **options: Any) -> tuple[LightningModule, LightningDataModule]:
    data = stored(folder)
    schema, bounds = data.dimensions["schema"], data.dimensions["action_bounds"]
    policy, tests = LinearPolicy([[0.1, -0.2]]), FutureTests(val_samples=4)
    return occupancy(schema, 1, action_bounds=bounds, policy=policy, tests=tests, **options), data


def on_stored(kind: type, **options: Any) -> Callable[[Path], Any]:
    def made(folder: Path) -> tuple[LightningModule, LightningDataModule]:
        data = stored(folder)
        known = {name: value for name, value in data.dimensions.items() if name != "embedding_dim"}
        return kind(**known, **options), data

    return made


def bandit(folder: Path) -> tuple[LightningModule, LightningDataModule]:
    data = BanditData(FourModes(), batch_size=8, num_updates=21, epoch_updates=7, eval_samples=10)
    # The seed of the weights is that of the run.
    return bandits.build(data.bandit, x_1_source="replay", replay_capacity=20, replay_actions=6), data


def online(kind: type, options: dict[str, Any], **changes: Any) -> Callable[[Path], Any]:
    def made(folder: Path) -> tuple[LightningModule, LightningDataModule]:
        sizes: dict[str, Any] = {
            "total_env_steps": 33,
            "warmup_env_steps": 12,
            "epoch_env_steps": 7,
            "batch_size": 4,
            "eval_episodes": 1,
            "max_episode_steps": 5,
        }
        data = OnlineData(GymnasiumEnvironment("Pendulum-v1", {"max_episode_steps": 8}), **sizes | changes)
        spaces = data.spaces
        return kind(spaces.observation_dim, spaces.action_dim, **grouped(kind is SoftActorCritic, **options)), data

    return made


RUNS: dict[str, tuple[Callable[[Path], Any], type]] = {
    "flow": (flow, LossCurve),
    "occupancy": (futures, LossCurve),
    "reverse flow": (online(ReverseFlowActorCritic, reverse.TINY), LearningCurve),
    "soft, 3 steps": (
        online(
            SoftActorCritic,
            soft.TINY,
            n_steps=3,
            updates_per_env_step=0.5,
            total_env_steps=54,
            epoch_env_steps=14,
            buffer_capacity=13,
        ),
        LearningCurve,
    ),
    "reverse flow, on disk": (
        online(ReverseFlowActorCritic, reverse.TINY, storage=DiskStorage(), buffer_capacity=13),
        LearningCurve,
    ),
}


ONCE: dict[str, tuple[Callable[[Path], Any], type]] = {
    "bandit": (bandit, LossCurve),
    "dynamics": (on_stored(DynamicsModule, dynamics=DeterministicDynamics(FEW_WEIGHTS)), LossCurve),
    "random dynamics": (on_stored(DynamicsModule, dynamics=StochasticDynamics(network=SMALL)), LossCurve),
    "forward-backward": (
        on_stored(
            ForwardBackward,
            architecture=ForwardBackwardArchitecture(embedding_dim=3, hidden_dim=8),
            discount=0.9,
            num_references=16,
        ),
        LossCurve,
    ),
    "expansion": (
        functools.partial(
            futures,
            segments=Expansion(
                length=4,
                gate=1e6,
                dynamics=StochasticDynamics(network=SMALL),
                num_updates=3,
                batch_size=8,
                pool_batches=3,
                reuse=2,
            ),
        ),
        LossCurve,
    ),
    "soft, collected ahead": (
        online(
            SoftActorCritic,
            soft.TINY,
            n_steps=3,
            num_envs=2,
            env_steps_per_collection=4,
            total_env_steps=36,
            epoch_env_steps=8,
            workers=LocalProcesses(),
        ),
        LearningCurve,
    ),
}
"""Runs that are ended once."""


def fit(
    name: str,
    folder: Path,
    ends_at: int | None = None,
    how: str = "system",
    resumes: bool = False,
    last: Path | None = None,
    keep_every: int | None = None,
    **options: Any,
) -> None:
    """Train from the beginning or from the last checkpoint, until the run ends or is ended."""
    torch.manual_seed(3)
    (make, curve) = (RUNS | ONCE)[name]
    module, data = make(folder)
    trainer = Trainer(
        default_root_dir=folder,
        max_epochs=3,
        accelerator="cpu",
        log_every_n_steps=5,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[AtomicCheckpointIO()],
        callbacks=[Checkpoints(keep_every=keep_every), curve(), EndsAt(ends_at, how)],
        **{"logger": False} | options,
    )
    last = last or folder / "checkpoints" / "last.ckpt" if resumes else None
    endings = {"system": SIGTERMException, "kill": KilledError, "late": KilledError, "user": SystemExit}
    with contextlib.nullcontext() if ends_at is None else pytest.raises(endings[how]):
        trainer.fit(module, data, ckpt_path=last, weights_only=True if resumes else None)


@dataclass
class End:
    """What a run leaves at its end: its checkpoint without wall times, and its curve without them."""

    state: dict[str, Any]
    curve: list[dict[str, str]]

    @classmethod
    def of(cls, folder: Path) -> "End":
        state = read_checkpoint(folder / "checkpoints" / "last.ckpt")
        kept = {name: part for name, part in state.items() if name not in ("callbacks", "epoch", "loops")}
        for part in kept.values():
            if isinstance(part, dict) and FILES in part:  # of which each run has its own, with the same rows
                named = Named.of(part.pop(FILES))
                part["rows"] = torch.cat(list(named.read(0, len(named)))).to_dict()  # pyright: ignore
        with (folder / "figures" / "learning_curve.csv").open() as file:
            rows = [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]
        return cls(kept, rows)


def difference(got: Any, wanted: Any, path: str = "") -> str:
    """Where two nested states differ first; empty where they do not."""
    if type(got) is not type(wanted):
        return f"{path}: {type(got)} against {type(wanted)}"
    if isinstance(wanted, torch.Tensor):
        same = got.shape == wanted.shape and torch.equal(got.nan_to_num(), wanted.nan_to_num())
        return "" if same else f"{path}: {got} against {wanted}"
    if isinstance(wanted, dict):
        if got.keys() != wanted.keys():
            return f"{path}: {sorted(got)} against {sorted(wanted)}"
        return next(filter(None, (difference(got[key], wanted[key], f"{path}/{key}") for key in wanted)), "")
    if isinstance(wanted, list | tuple):
        pairs = enumerate(zip(got, wanted, strict=True))
        return next(filter(None, (difference(*pair, f"{path}/{place}") for place, pair in pairs)), "")
    return "" if repr(got) == repr(wanted) else f"{path}: {got!r} against {wanted!r}"  # NaN too


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Lightning ignores interrupts after the first."""
    with default_signals():
        yield


@pytest.fixture(autouse=True)
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start processes that collect without their imports."""
    monkeypatch.setattr(collector_processes, "get_context", lambda _: FORKS)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_is_ended_and_resumed_is_the_run_that_was_never_ended(name: str, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(name, whole)
    fit(name, parts, ends_at=3)  # within the first epoch, and not where it logs
    fit(name, parts, ends_at=10, how="kill", resumes=True)  # in the second, from the beginning of which it continues
    fit(name, parts, ends_at=10, how="user", resumes=True)  # in the evaluation at its end, which is repeated
    fit(name, parts, ends_at=20, resumes=True)  # in the last update
    fit(name, parts, resumes=True)
    got, wanted = End.of(parts), End.of(whole)
    assert difference(got.state, wanted.state) == ""
    assert got.curve == wanted.curve
    assert len(wanted.curve) == 3


@pytest.mark.parametrize("name", ["flow", "soft, 3 steps"])
def test_so_is_a_run_that_is_killed_after_its_last_evaluation(name: str, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(name, whole)
    fit(name, parts, ends_at=21, how="late")
    fit(name, parts, resumes=True)
    assert difference(End.of(parts).state, End.of(whole).state) == ""


@pytest.mark.parametrize("name", ONCE)
def test_so_is_a_run_of_every_other_module_that_is_ended_within_an_epoch(name: str, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(name, whole)
    fit(name, parts, ends_at=10)
    fit(name, parts, resumes=True)
    got, wanted = End.of(parts), End.of(whole)
    assert difference(got.state, wanted.state) == ""
    assert got.curve == wanted.curve
    assert len(wanted.curve) == 3


def test_a_checkpoint_from_before_exact_resumption_is_resumed_and_says_what_is_not_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    fit("reverse flow", tmp_path, ends_at=10)
    last = tmp_path / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    del content["resumption"], content["OnlineData"]["episodes"]
    torch.save(content, last)
    fit("reverse flow", tmp_path, resumes=True)
    said = [str(warning.message) for warning in recwarn if "random numbers" in str(warning.message)]
    assert said == [
        "the resumed run draws other random numbers than without the interruption: the checkpoint holds no generators"
    ]
    assert "Pendulum-v1 begins new episodes: the checkpoint does not hold their state\n" in capsys.readouterr().out
    assert torch.load(last, weights_only=True)["global_step"] == 21


def test_a_run_resumed_from_an_older_checkpoint_has_the_rows_of_its_moment_though_the_buffer_has_overwritten_them(
    tmp_path: Path,
) -> None:
    name = "reverse flow, on disk"
    fit(name, tmp_path, keep_every=1)
    checkpoints = tmp_path / "checkpoints"
    wanted = End.of(tmp_path)
    older = checkpoints / "step_7.ckpt"  # the 13 rows of then have all been overwritten
    assert not set(named_files(older)[0].names) & set(named_files(checkpoints / "last.ckpt")[0].names)
    older.replace(checkpoints / "last.ckpt")
    fit(name, tmp_path, resumes=True)
    assert difference(End.of(tmp_path).state, wanted.state) == ""
    files = {path.name for path in (tmp_path / "replay" / "rank_0").iterdir()}
    kept = [named_files(path)[0].names for path in checkpoints.iterdir()]
    assert files == set().union(*kept)  # those of step_7.ckpt, which is no more, are deleted


def test_a_run_in_another_folder_needs_no_file_of_the_one_that_it_continues(tmp_path: Path) -> None:
    name = "reverse flow, on disk"
    fit(name, tmp_path / "first", ends_at=10)
    last = Path("checkpoints") / "last.ckpt"
    (tmp_path / "second" / "checkpoints").mkdir(parents=True)
    (tmp_path / "first").rename(tmp_path / "moved")  # to where no checkpoint says
    fit(name, tmp_path / "second", resumes=True, last=tmp_path / "moved" / last)
    shutil.rmtree(tmp_path / "moved")
    fit(name, tmp_path / "whole")
    assert difference(End.of(tmp_path / "second").state, End.of(tmp_path / "whole").state) == ""
    shutil.rmtree(tmp_path / "second" / "replay")
    with pytest.raises(
        UserError, match=r"needs \d files of transitions in .*second/replay/rank_0, where .* is missing"
    ):
        fit(name, tmp_path / "second", resumes=True)
