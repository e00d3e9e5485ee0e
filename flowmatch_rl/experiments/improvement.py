"""From an occupancy to a policy for any reward: the future states that values are made of, and what they can carry."""

import hashlib
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor
from tqdm import tqdm

from flowmatch_rl.batches import OBSERVATION, Rollouts
from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.data import PolicyData, TransitionStore
from flowmatch_rl.data.futures import FutureSamples
from flowmatch_rl.evaluation.action_information import modelled_effect
from flowmatch_rl.evaluation.support import RewardSupport, reward_support
from flowmatch_rl.files import exclusive
from flowmatch_rl.inference import TrainedPolicy, load_occupancy
from flowmatch_rl.models import Occupancy
from flowmatch_rl.modules.occupancy_actor_critic import IMPROVED_CRITICS, IMPROVED_POLICY, OccupancyActorCritic
from flowmatch_rl.modules.occupancy_checks import check_policy
from flowmatch_rl.nets import ObservationFeatures
from flowmatch_rl.samplers import OdeSampler
from flowmatch_rl.shapes import even_rows
from flowmatch_rl.solvers import Euler
from flowmatch_rl.types import Policy, Reward

_STATES_AT_A_TIME, _FREQUENCIES = 128, 3
_TRIED_STATES, _TRIED_ACTIONS, _TRIED_SAMPLES = 64, 16, 32
_LEAST_STANDARD_ERRORS = 2.0


@dataclass(frozen=True)
class Draws:
    """How many future states are drawn from an occupancy, and how.

    Args:
        num_states: States N of the data set, at least 1.
        num_members: Members M of the family in each state, at least 2.
        num_samples: Future states K of each member, at least 2; all members of a state share their noise.
        num_steps: Euler steps of each future state, at least 1.
        seed: Seed of states, members and noise, in [0, 2^63).

    Raises:
        UserError: If a number is out of its range.
    """

    num_states: int = 4_096
    num_members: int = 16
    num_samples: int = 8
    num_steps: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        check_range("[1, inf)", num_states=self.num_states, num_steps=self.num_steps)
        check_range("[2, inf)", num_members=self.num_members, num_samples=self.num_samples)
        if not 0 <= self.seed < 2**63:
            raise UserError(f"draws.seed must lie in [0, 2^63), got {self.seed}")


@torch.no_grad()
def draw_futures(
    model: Occupancy, store: TransitionStore, draws: Draws = Draws(), behavior: Policy | None = None
) -> FutureSamples:
    """Draw future states of members of the modelled family at states of a data set; no reward is needed.

    Args:
        model: The occupancy.
        store: The data set.
        draws: How many.
        behavior: Policy, or family of policies, whose actions are tried too, by every other member; by all of them
            where the model knows no policy. None for the members' own actions alone.

    Returns:
        Future states.

    Raises:
        UserError: If they do not go together, see ``check_parts``.
    """
    check_parts(model, store, behavior)
    generator = torch.Generator().manual_seed(draws.seed)
    size, members = (draws.num_states, draws.num_members)
    rows = torch.randint(len(store), (size,), generator=generator)
    observation = store.transitions.get(OBSERVATION)[rows].to(model.device)
    embeddings = model.draw_members(size * members, generator).unflatten(0, (size, members))
    sampler, model.sampler = model.sampler, OdeSampler(Euler(num_steps=draws.num_steps))
    actions, futures = [], []
    try:
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(draws.seed)  # of policies that act at random
            for start in tqdm(range(0, size, _STATES_AT_A_TIME), desc="future states", unit="batch", leave=False):
                states, some = (part[start : start + _STATES_AT_A_TIME] for part in (observation, embeddings))
                spread = states[:, None].expand(-1, members, -1)
                acts = _tried_actions(model, spread, some, behavior, generator)
                noise = model.draw_noise(len(states), 1, draws.num_samples, generator=generator)
                noise = noise.expand(-1, members, -1, -1)
                futures.append(model.futures(noise, spread, acts, some, model.horizon.discount).cpu())
                actions.append(acts.cpu())
    finally:
        model.sampler = sampler
    return FutureSamples(
        observation.cpu(),
        torch.cat(actions),
        embeddings.cpu(),
        torch.cat(futures),
        model.schema.columns,
        model.horizon.discount,
        f"{draws}, behavior {behavior}",
    )


def _tried_actions(
    model: Occupancy, states: Tensor, members: Tensor, behavior: Policy | None, generator: torch.Generator
) -> Tensor:
    """First actions in states (B, M, S), shape (B, M, A): of the members, and of the behaviour by every other one."""
    if behavior is None:
        return model.act(states, members)
    uniform = torch.rand(states[..., 0].numel(), behavior.embedding_dim, generator=generator).to(states.device)
    embedding = behavior.embeddings(uniform).unflatten(0, states.shape[:2]) if behavior.embedding_dim else None
    tried = behavior.act(states, embedding)
    if model.policy is None:
        return tried
    own = torch.arange(states.shape[1], device=states.device) % 2 == 0
    return torch.where(own[:, None], model.act(states, members), tried)


def futures_path(checkpoint: str | Path, store: TransitionStore, draws: Draws, behavior: Policy | None) -> Path:
    """Where the future states of a checkpoint are kept, beside it: another name for other weights, data or numbers."""
    return Path(checkpoint).with_suffix(f".futures-{_identity(checkpoint, store, draws, behavior)}.pt")


def _identity(checkpoint: str | Path, store: TransitionStore, draws: Draws, behavior: Policy | None) -> str:
    """Twelve letters that stand for weights, data and numbers, the files that the behaviour names among them."""
    content = hashlib.sha256(Path(checkpoint).read_bytes())
    content.update(f"{store.info} {draws} {behavior}".encode())
    for value in vars(behavior).values() if behavior is not None else ():
        if isinstance(value, str) and Path(value).is_file():
            content.update(Path(value).read_bytes())
    return content.hexdigest()[:12]


def check_parts(
    model: Occupancy, store: TransitionStore, behavior: Policy | None = None, reward: Reward | None = None
) -> None:
    """Raise unless an occupancy, a data set, a behaviour and a reward go together, before anything is drawn.

    Args:
        model: The occupancy.
        store: The data set.
        behavior: Policy whose actions are tried too.
        reward: The reward.

    Raises:
        UserError: If the model counts the current state, was learned from other states or actions, or knows no policy
            where none is given; if the behaviour takes other states or actions; or if the reward needs other columns,
            fails, is not finite, or the same in all states of the data.
    """
    schema, action_dim = model.inputs.schema, model.inputs.action_dim
    if model.horizon.first_state != "arrival":
        raise UserError(f"improvement needs first_state 'arrival', this model has {model.horizon.first_state!r}")
    if store.info.columns != schema.columns:
        raise UserError(
            f"the occupancy is of states ({', '.join(schema.columns)}), {store.path} holds "
            f"({', '.join(store.info.columns)})"
        )
    if store.info.action_dim != action_dim:
        raise UserError(
            f"the occupancy is of actions of dimension {action_dim}, {store.path} holds {store.info.action_dim}"
        )
    if model.policy is None and behavior is None:
        raise UserError(
            "this model was learned from actions in data and knows no policy: name a policy whose actions are tried, "
            "such as a run of BehaviorCloning on the same data, with --behavior"
        )
    if behavior is not None:
        check_policy(behavior, model.inputs.state_shift[None], schema.columns, action_dim)
    if reward is not None:
        _rewarded(store, reward, model.schema.columns)


@torch.no_grad()
def check_sees_actions(model: Occupancy, store: TransitionStore, seed: int = 0) -> str:
    """Refuse a model whose future states do not depend on the action.

    Args:
        model: The occupancy.
        store: The data set.
        seed: Seed of states, actions and noise.

    Returns:
        The action information, a line for people.

    Raises:
        UserError: If the variance due to the action cannot be told from none.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(store), (_TRIED_STATES,), generator=generator)
    observation = store.transitions.get(OBSERVATION)[rows].to(model.device)
    members = model.draw_members(_TRIED_STATES, generator)
    size = (_TRIED_STATES, _TRIED_ACTIONS, model.inputs.action_dim)
    actions = (2.0 * torch.rand(size, generator=generator) - 1.0).to(model.device)
    rollouts = Rollouts(observation, actions[:, 0], members, None, None, None)
    effect = modelled_effect(model, rollouts, actions, model.horizon.discount, _TRIED_SAMPLES, generator)
    information, within = float(effect.information()), float(effect.within.mean())
    error = float(effect.between.std()) / _TRIED_STATES**0.5 / within
    if not information > _LEAST_STANDARD_ERRORS * error:
        raise UserError(
            f"the model does not see actions: information {information:.2g} +- {error:.2g} (variance of future states "
            "due to the action over the rest), wanted above 0; train it longer, or at a lower discount"
        )
    return f"action       information {information:.2g} +- {error:.2g} (variance due to the action / other)"


@torch.no_grad()
def support(samples: FutureSamples, store: TransitionStore, reward: Reward, scale: Tensor) -> RewardSupport:
    """Whether the states of a data set carry the values of a reward.

    Args:
        samples: Future states of an occupancy.
        store: The data set.
        reward: The reward.
        scale: Unit of each modelled entry, shape (D,).

    Raises:
        UserError: If the reward needs other columns, fails, is not finite, or the same in all states of the data.
    """
    states, rewards = _rewarded(store, reward, samples.columns)
    futures = samples.futures.flatten(0, 2)
    return reward_support(states, rewards, futures, reward.evaluate(futures, samples.columns).float(), scale)


@torch.no_grad()
def _rewarded(store: TransitionStore, reward: Reward, columns: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Entries (N, D) of many states of a data set, and their rewards (N,), which are finite and differ."""
    entries = [store.info.columns.index(name) for name in columns]
    states = store.transitions.get(OBSERVATION)[even_rows(len(store), 50_000)][:, entries]
    try:
        rewards = reward.evaluate(states, columns).float()
    except UserError:
        raise
    except Exception as error:  # a function of the user's own may raise anything
        raise UserError(f"the reward {reward} fails: {type(error).__name__}: {error}") from error
    if wrong := int((~rewards.isfinite()).sum()):
        raise UserError(f"the reward {reward} is not finite in {wrong:,} of {len(states):,} states of {store.path}")
    if bool((rewards == rewards[0]).all()):
        raise UserError(
            f"the reward is {float(rewards[0]):.3g} in all of {len(states):,} states of {store.path}: there is nothing "
            "to improve; state a reward that some of the data's states are paid"
        )
    return states, rewards


def improve(
    checkpoint: str | Path,
    reward: Reward,
    path: str,
    draws: Draws = Draws(),
    num_updates: int = 2_000,
    seed: int = 0,
    behavior: Policy | None = None,
) -> TrainedPolicy:
    """Train a policy for a reward from an occupancy, without files but for the future states.

    Warns of a reward that the data hardly support.

    Args:
        checkpoint: Checkpoint of the occupancy of a family of policies.
        reward: Any reward of the modelled entries of the state.
        path: Folder of the data set that it was learned from.
        draws: Future states that values are made of, kept beside the checkpoint.
        num_updates: Gradient steps, the first half of which learn from the occupancy.
        seed: Seed of the run.
        behavior: Policy whose actions are tried too, see ``draw_futures``.

    Returns:
        The policy, a function of an observation.

    Raises:
        UserError: If the model does not see actions, or the data do not fit.
    """
    model, store = load_occupancy(checkpoint).model, TransitionStore.open(path)
    check_parts(model, store, behavior, reward)
    check_sees_actions(model, store)
    futures = kept_futures(checkpoint, model, store, draws, behavior)
    samples = FutureSamples.load(futures)
    for text in support(samples, store, reward, model.inputs.scale).warnings(samples.columns):
        warnings.warn(text, stacklevel=2)
    data = PolicyData(
        path, num_updates=num_updates, epoch_updates=num_updates, verify=False, reward=reward, futures=str(futures)
    )
    seed_everything(seed, verbose=False)
    features = observation_features(model)
    module = OccupancyActorCritic(
        **data.dimensions,
        discount=model.horizon.discount,
        critics=replace(IMPROVED_CRITICS, architecture=replace(IMPROVED_CRITICS.architecture, observations=features)),
        policy=replace(IMPROVED_POLICY, network=replace(IMPROVED_POLICY.network, **condition_features(features))),
        occupancy_updates=max(1, num_updates // 2),
    )
    trainer = Trainer(
        max_epochs=data.num_epochs,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=data)
    return TrainedPolicy(module)


def observation_features(model: Occupancy) -> ObservationFeatures:
    """What networks make of states, in the units of an occupancy."""
    schema = model.inputs.schema
    return ObservationFeatures(schema.shift, schema.scale, _FREQUENCIES)


def condition_features(features: ObservationFeatures) -> dict[str, Any]:
    """Arguments of a velocity network whose condition has these features."""
    return {
        "condition_mean": features.mean,
        "condition_std": features.std,
        "num_frequencies": features.num_frequencies,
    }


def kept_futures(
    checkpoint: str | Path,
    model: Occupancy,
    store: TransitionStore,
    draws: Draws,
    behavior: Policy | None = None,
    path: str | None = None,
) -> Path:
    """The file of a checkpoint's future states, which are drawn if it is not there.

    Args:
        checkpoint: Checkpoint of the occupancy.
        model: The occupancy.
        store: The data set.
        draws: How many.
        behavior: Policy whose actions are tried too; see ``draw_futures``.
        path: The file; one beside the checkpoint if None.

    Raises:
        UserError: If the file is there and holds others.
    """
    futures = Path(path) if path else futures_path(checkpoint, store, draws, behavior)
    source = f"{draws}, behavior {behavior}, model and data {_identity(checkpoint, store, draws, behavior)}"
    with exclusive(futures.with_name(f".{futures.name}.lock"), f"future states {futures}", wait=True):
        if not futures.exists():
            replace(draw_futures(model, store, draws, behavior), source=source).save(futures)
        elif path and (held := FutureSamples.load(futures).source) != source:
            raise UserError(f"{futures} holds other future states: expected {source}, got {held}; name another file")
    return futures
