"""What benchmarks of a policy for any reward share: models of a data set, planning with them, and what is measured."""

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.occupancy_planning import DISCOUNT, REPLAN_STEPS, SAMPLES
from flowmatch_rl.cli import run as command
from flowmatch_rl.data import TransitionStore
from flowmatch_rl.evaluation.expected_return import modelled_return
from flowmatch_rl.experiments.improvement import Draws, improve, kept_futures
from flowmatch_rl.files import write_json
from flowmatch_rl.inference import load_dynamics, load_occupancy
from flowmatch_rl.inference.policy import TrainedPolicy
from flowmatch_rl.models import Dynamics, Occupancy
from flowmatch_rl.planning import improve as choose
from flowmatch_rl.types import Policy, Reward

UPDATES = 4_000
Act = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class World:
    """Where policies act, and what its data and models are made of.

    Attributes:
        runs: Folder of the models and of what was measured, under ``runs``.
        data: Name of the data set and of its configuration, and of that of the one-step model.
        occupancy: Name of the configuration of the occupancy.
        columns: Names of the S entries of a state.
        policy: The family of policies that the occupancy is of.
        candidates: Members that planning chooses among, shape (M, Z).
        follow: Lets a policy act and returns the starts and the states arrived in, shape (1 + T, B, S).
    """

    runs: str
    data: str
    occupancy: str
    columns: tuple[str, ...]
    policy: Policy
    candidates: Tensor
    follow: Callable[[Act], Tensor]

    def paid(self, states: Tensor, reward: Reward) -> tuple[Tensor, Tensor]:
        """Returns and discounted returns (B,) of episodes (1 + T, B, S)."""
        rewards = reward.evaluate(states[1:], self.columns)
        return rewards.sum(0), torch.einsum("t,tb->b", DISCOUNT ** torch.arange(len(rewards)), rewards)

    def collect(self) -> str:
        """The data set, made if it is not there."""
        path = f"data/{self.data}"
        if not Path(path).exists():
            _call(["collect", f"-c=conf/collect/{self.data}.yaml", f"--output={path}"])
        return path

    def train_occupancy(self, seed: int) -> Path:
        """The checkpoint of an occupancy, trained if it is not there."""
        options = [f"--data.num_updates={UPDATES}", f"--seed_everything={seed}"]
        return self._fitted(f"occupancy_{seed}", f"occupancy/{self.occupancy}", options)

    def train_dynamics(self) -> Dynamics:
        """A one-step model of the data, trained if it is not there."""
        return load_dynamics(self._fitted("dynamics", f"dynamics/{self.data}", [])).dynamics

    def _fitted(self, name: str, config: str, options: Sequence[str]) -> Path:
        folder = Path("runs") / self.runs / name
        if not (folder / "result.json").exists():
            self.collect()
            place = [f"--trainer.default_root_dir={folder}", "--trainer.logger=false"]
            _call(["fit", f"-c=conf/{config}.yaml", *options, *place])
        return folder / "checkpoints" / "last.ckpt"

    def kept(self, seed: int, name: str, folder: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What was measured of a reward with a seed, measured if it is not there."""
        path = Path("runs") / self.runs / folder / str(seed) / f"{name.replace(' ', '_').replace(',', '')}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, measure())
        found: dict[str, Any] = json.loads(path.read_text())
        print(seed, name, found, flush=True)
        return found


def _call(words: Sequence[str]) -> None:
    if code := command(list(words)):
        raise SystemExit(code)


@torch.no_grad()
def planned(world: World, model: Occupancy, reward: Reward) -> tuple[Tensor, float]:
    """Returns of planning, and seconds per decision of one state."""
    generator, candidates = torch.Generator().manual_seed(6), world.candidates
    member, count, spent = torch.empty(0), 0, 0.0

    def worth(states: Tensor) -> Tensor:
        return reward.evaluate(states, world.columns)

    def plan(states: Tensor) -> Tensor:
        noise = torch.randn(SAMPLES, states.shape[-1], generator=generator)
        chosen = choose(model.futures, world.policy.act, states, candidates, noise, worth, DISCOUNT)
        return candidates[chosen.index]

    def act(states: Tensor) -> Tensor:
        nonlocal member, count
        if count % REPLAN_STEPS == 0:
            member = plan(states)
        count += 1
        return world.policy.act(states, member)

    states = world.follow(act)
    for _ in range(10):
        began = time.perf_counter()
        plan(states[-1, :1])
        spent += time.perf_counter() - began
    return world.paid(states, reward)[0], spent / 10


def evaluated(world: World, policy: TrainedPolicy, reward: Reward, model: Dynamics) -> dict[str, Any]:
    """What a policy returns, and what was stated of it."""
    module: Any = policy.module
    actor, generator = module.actor("eval"), torch.Generator().manual_seed(0)

    def act(states: Tensor) -> Tensor:
        return actor(states, generator)

    states = world.follow(act)
    starts, last, size = states[0], states[-1], states.shape[1]
    critic = module.critics.values(starts, act(starts)[:, None])[:, 0]
    stated = modelled_return(model, act, starts, lambda x: reward.evaluate(x, world.columns), DISCOUNT).returns
    returns, followed = world.paid(states, reward)
    error = float((stated - followed).std()) / size**0.5
    gap = abs(float(stated.mean() - followed.mean()))
    return {
        "return": float(returns.mean()),
        "return_error": float(returns.std()) / size**0.5,
        "stated": float(stated.mean()),
        "critic": float(critic.mean()),
        "followed": float(followed.mean()),
        "value_holds": gap <= 3.0 * error + 0.05 * abs(float(followed.mean())),
        "sides": [float((last[:, axis] < 0.0).float().mean()) for axis in (0, 1)],
    }


def seconds_per_decision(policy: TrainedPolicy, state: Tensor, decisions: int = 200) -> tuple[float, float]:
    """Seconds that the policy takes to act in one state (1, S), as it is loaded, and compiled."""
    spent = []
    for compiled in (False, True):  # the plain one first: compiling is of the policy, not of the object that acts by it
        each = TrainedPolicy(policy.module, compile=compiled)
        each(state.numpy())
        began = time.perf_counter()
        for _ in range(decisions):
            each(state.numpy())
        spent.append((time.perf_counter() - began) / decisions)
    return spent[0], spent[1]


def improved(world: World, seed: int, reward: Reward, behavior: Policy | None = None) -> dict[str, Any]:
    """What a policy made by ``improve`` is worth, and its cost."""
    checkpoint, step, path = world.train_occupancy(seed), world.train_dynamics(), world.collect()
    kept_futures(checkpoint, load_occupancy(checkpoint).model, TransitionStore.open(path), Draws(), behavior)
    began = time.process_time()
    policy = improve(checkpoint, reward, path, seed=seed, behavior=behavior)
    return {"seconds": time.process_time() - began} | evaluated(world, policy, reward, step)


def planning(world: World, seed: int, reward: Reward) -> dict[str, Any]:
    """What planning returns, and what a decision costs; beside it what one of a policy does, however it was trained."""
    checkpoint = world.train_occupancy(seed)
    returns, seconds = planned(world, load_occupancy(checkpoint).model, reward)
    policy = improve(checkpoint, reward, world.collect(), num_updates=2)
    plain, compiled = seconds_per_decision(policy, torch.zeros(1, len(world.columns)))
    times = {"plan_ms": seconds, "ms_per_action": plain, "ms_compiled": compiled}
    return {"planning": float(returns.mean())} | {name: 1000.0 * each for name, each in times.items()}


def measured(
    world: World, rewards: Mapping[str, Reward], seeds: Sequence[int], plans: Collection[str]
) -> dict[str, list[dict[str, Any]]]:
    """What was found of each reward, one dictionary per seed.

    Args:
        world: Where policies act.
        rewards: The rewards by their names.
        seeds: Seeds of occupancies and policies.
        plans: Rewards that planning is measured for, with the first seed.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for name, reward in rewards.items():
        found[name] = [world.kept(s, name, "improve", lambda s=s, r=reward: improved(world, s, r)) for s in seeds]
        if name in plans:
            found[name][0] |= world.kept(seeds[0], name, "planning", lambda r=reward: planning(world, seeds[0], r))
    return found


def table_row(name: str, rows: Sequence[dict[str, Any]], axis: int | None) -> dict[str, Any]:
    """What was found of a reward, all seeds in each entry.

    Args:
        name: The reward.
        rows: What was found, one dictionary per seed.
        axis: Axis along which two optima lie on both sides of the origin; None where there is one.
    """

    def of(key: str, form: str = "{:.4g}") -> str:
        return ", ".join(form.format(row[key]) for row in rows if key in row) or "-"

    rarer = [] if axis is None else [min(row["sides"][axis], 1.0 - row["sides"][axis]) for row in rows]
    return {
        "reward": name,
        "return": of("return"),
        "planning": of("planning"),
        "stated": of("stated"),
        "critic": of("critic"),
        "followed": of("followed"),
        "within_bound": f"{sum(row['value_holds'] for row in rows)} of {len(rows)}",
        "rarer_optimum": ", ".join(f"{each:.0%}" for each in rarer) or "-",
        "seconds": of("seconds", "{:.0f}"),
        "ms_per_action": of("ms_per_action", "{:.2f}"),
        "ms_compiled": of("ms_compiled", "{:.2f}"),
        "plan_ms": of("plan_ms", "{:.2f}"),
    }
