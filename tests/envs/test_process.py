"""Environments made of processes: specs, ends of episodes, resets, seeds, collection and pictures."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.collectors import Collector
from torchrl.envs.utils import check_env_specs

from flowmatch_rl.data import OnlineData
from flowmatch_rl.envs import build_environment, roll_out_episodes
from flowmatch_rl.envs.process import ProcessEnv, ProcessEnvironment
from flowmatch_rl.testbeds import (
    ConstantPolicy,
    LinearGaussianProcess,
    MazeLoopPolicy,
    PlanarProcess,
    PointMassMaze,
    Process,
    RandomPolicy,
    RandomWalkProcess,
    RingProcess,
)
from flowmatch_rl.types import Policy, Reward
from tests.combinations import each_value

PROCESSES: list[Process] = [PointMassMaze(start_speed=0.2), RingProcess(), RandomWalkProcess(), LinearGaussianProcess()]
every_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.label)


@dataclass(frozen=True)
class XReward(Reward):
    """The entry x itself."""

    @property
    def needed_columns(self) -> tuple[str, ...]:
        return ("x",)

    def of_columns(self, values: Tensor) -> Tensor:
        return values[..., 0]


class Acting:
    """A policy as environments call it."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def __call__(self, tensordict):
        return tensordict.set("action", self.policy.act(tensordict["observation"]))


@each_value
@pytest.mark.parametrize("num_envs", [1, 2, 7])
@every_process
def test_specs_describe_what_the_environment_returns(process: Process, num_envs: int) -> None:
    environment = ProcessEnvironment(process, max_steps=5)
    bare = environment.make(False) if num_envs == 1 else environment.make_copies(num_envs, False)
    check_env_specs(bare)
    env = build_environment(environment, num_envs)
    check_env_specs(env)
    batch = () if num_envs == 1 else (num_envs,)
    assert env.batch_size == batch
    assert env.observation_spec["observation"].shape == (*batch, len(process.columns))
    assert env.action_spec.shape == (*batch, process.action_dim)
    torch.testing.assert_close(env.action_spec.space.high, torch.ones(env.action_spec.shape))
    assert isinstance(env.base_env, ProcessEnv)
    spaces = OnlineData(environment).spaces
    assert (spaces.observation_dim, spaces.action_dim) == (len(process.columns), process.action_dim)
    assert (spaces.action_bounds.low[0], spaces.action_bounds.high[0]) == (-1.0, 1.0)


def test_a_step_is_that_of_the_process_and_its_reward_that_of_the_arrival() -> None:
    maze = PointMassMaze(start_speed=0.4)
    env = build_environment(ProcessEnvironment(maze, XReward()), 50)
    env.set_seed(3)
    steps = env.rollout(30, Acting(MazeLoopPolicy()))
    state, action = steps["observation"], steps["action"]
    torch.testing.assert_close(action, MazeLoopPolicy().act(state))
    torch.testing.assert_close(steps["next", "observation"], maze.step(state, action, state)[0])
    assert torch.equal(steps["next", "reward"][..., 0], steps["next", "observation"][..., 0])
    torch.testing.assert_close(steps["next", "episode_reward"], steps["next", "reward"].cumsum(1))
    torch.testing.assert_close(steps["observation"][:, 1:], steps["next", "observation"][:, :-1])


def test_without_a_reward_it_is_zero() -> None:
    steps = build_environment(ProcessEnvironment(RingProcess()), 3).rollout(4)
    assert torch.equal(steps["next", "reward"], torch.zeros(3, 4, 1))


@pytest.mark.parametrize("num_envs", [1, 3])
def test_time_limit_truncates_and_does_not_terminate(num_envs: int) -> None:
    env = build_environment(ProcessEnvironment(RingProcess(), max_steps=6), num_envs)
    steps = env.rollout(20).reshape(num_envs, -1)
    assert steps.shape == (num_envs, 6)
    assert steps["next", "truncated"].sum(1).eq(1).all()
    assert steps["next", "truncated"][:, -1].all()
    assert not steps["next", "terminated"].any()


def test_terminal_cells_terminate_and_do_not_truncate() -> None:
    walk = RandomWalkProcess()
    steps = roll_out_episodes(
        build_environment(ProcessEnvironment(walk), 200), Acting(RandomPolicy(1)), seed=0, max_steps=1000
    )
    mask = steps["mask"]
    assert len(mask.sum(1).unique()) > 10
    arrived = walk.terminal_cells()[walk.cell(steps["next", "observation"])]
    assert torch.equal(steps["next", "terminated"][..., 0][mask], arrived[mask])
    assert arrived[mask].sum() == 200
    assert not steps["next", "truncated"][mask].any()


def test_only_the_masked_copies_are_reset() -> None:
    bare = ProcessEnvironment(PointMassMaze(), max_steps=10).make_copies(4, False)
    before = bare.reset()
    for _ in range(3):
        step = bare.step(before.set("action", torch.ones(4, 2)))
        before = bare.step_mdp(step)
    mask = torch.tensor([True, False, False, True])[:, None]
    after = bare.reset(before.clone().set("_reset", mask))
    kept = ~mask.squeeze(-1)
    assert torch.equal(after["observation"][kept], before["observation"][kept])
    assert not (after["observation"][~kept] == before["observation"][~kept]).any()
    for _ in range(7):
        step = bare.step(after.set("action", torch.ones(4, 2)))
        after = bare.step_mdp(step)
    assert step["next", "truncated"].squeeze(-1).tolist() == kept.tolist()


@pytest.mark.parametrize("process", [PointMassMaze(start_speed=0.4), RingProcess()], ids=lambda p: p.label)
def test_equal_seeds_give_equal_episodes_and_copies_differ(process: Process) -> None:
    env = build_environment(ProcessEnvironment(process, max_steps=8), 20)
    first, other, again = (
        roll_out_episodes(env, Acting(ConstantPolicy([0.0] * process.action_dim)), seed, 8) for seed in (5, 6, 5)
    )
    assert torch.equal(first["next", "observation"], again["next", "observation"])
    assert not torch.isclose(first["observation"][:, 0], other["observation"][:, 0]).all(-1).any()
    assert first["observation"][:, 0].unique(dim=0).shape[0] == 20


@each_value
@pytest.mark.parametrize("num_envs", [2, 5, 100])
@every_process
def test_a_single_environment_starts_where_the_first_copy_does(process: Process, num_envs: int) -> None:
    single, several = (build_environment(ProcessEnvironment(process), n) for n in (1, num_envs))
    single.set_seed(11)
    several.set_seed(11)
    assert torch.equal(single.reset()["observation"], several.reset()["observation"][0])


@every_process
def test_starts_follow_the_law_of_the_process(process: Process) -> None:
    bare = ProcessEnvironment(process).make_copies(20_000, False)
    bare.set_seed(0)
    observed = bare.reset()["observation"]
    wanted = process.start(torch.randn(20_000, process.noise_dim, generator=torch.Generator().manual_seed(0)))
    scale = wanted.std(0)
    assert ((observed.mean(0) - wanted.mean(0)).abs() < 0.05 * scale).all()
    assert ((observed.std(0) - scale).abs() < 0.05 * scale).all()


def test_collector_goes_on_from_new_starts_after_each_end() -> None:
    walk = RandomWalkProcess()
    environment = ProcessEnvironment(walk, XReward(), max_steps=15)
    env = build_environment(environment, 100)
    env.set_seed(0)
    collector = Collector(
        env,
        Acting(RandomPolicy(1)),
        frames_per_batch=5_000,
        total_frames=10_000,
        trust_policy=True,
        track_traj_ids=False,
    )
    blocks: list[TensorDict] = list(collector)
    collector.shutdown()
    for block in blocks:
        assert block.shape == (100, 50)
        goes_on = ~block["next", "done"][:, :-1, 0]
        assert torch.equal(block["next", "observation"][:, :-1][goes_on], block["observation"][:, 1:][goes_on])
        assert not walk.terminal_cells()[walk.cell(block["observation"])].any()
        assert torch.equal(block["step_count"][:, 1:, 0][goes_on], block["step_count"][:, :-1, 0][goes_on] + 1)
        assert (block["step_count"][:, 1:, 0][~goes_on] == 0).all()
        assert block["next", "terminated"].any()
        assert block["next", "step_count"].max() <= 15
    assert any(block["next", "truncated"].any() for block in blocks)


@pytest.mark.parametrize("process", [PointMassMaze(), RingProcess(), RandomWalkProcess()], ids=lambda p: p.label)
def test_picture_shows_the_point_and_the_walls(process: PlanarProcess) -> None:
    environment = ProcessEnvironment(process)
    env = environment.make(render=True)
    env.set_seed(1)
    position = env.reset()["observation"][:2].double()
    picture = environment.frame(env)
    assert picture.shape == (240, 240, 3)
    assert picture.dtype == np.uint8
    colours, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    assert len(colours) == (3 if isinstance(process, PointMassMaze) else 2)
    point = tuple(colours[counts.argmin()])
    rows, columns = np.nonzero((picture == point).all(-1))
    half_width = process.half_width
    seen = ((columns + 0.5) / 120 - 1.0) * half_width, (1.0 - (rows + 0.5) / 120) * half_width
    for i in range(2):
        assert float(seen[i].mean()) == pytest.approx(float(position[i]), abs=half_width / 120)
    if isinstance(process, PointMassMaze):
        assert (picture[119:121, 60:180] == picture[120, 120]).all()
        assert not (picture[:20] == picture[120, 120]).all(-1).any()
    assert environment.frames_per_second(env) > 0.0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ProcessEnvironment(RingProcess(), max_steps=0), "at least 1, got 0"),
        (
            lambda: ProcessEnvironment(LinearGaussianProcess(), XReward()),
            "needs the column 'x'; the states have s0, s1",
        ),
        (lambda: ProcessEnvironment(LinearGaussianProcess()).make(render=True), "linear-gaussian"),
    ],
)
def test_what_does_not_fit_is_refused(make, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert words in str(caught.value)
