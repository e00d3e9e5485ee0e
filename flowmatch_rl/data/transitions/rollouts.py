"""Source states with the trajectories of a policy that begin there."""

import functools

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from flowmatch_rl.batches import ACTION, DONE, EMBEDDING, NEXT_OBSERVATION, OBSERVATION, TERMINATED
from flowmatch_rl.checks import UserError
from flowmatch_rl.data.transitions.store import TransitionStore
from flowmatch_rl.envs.building import build_environment
from flowmatch_rl.envs.environments import Environment
from flowmatch_rl.envs.process import ProcessEnvironment
from flowmatch_rl.envs.rollouts import roll_out_episodes
from flowmatch_rl.types import Policy

Trajectories = dict[str, Tensor]
"""Tensors by the names of the attributes of ``Rollouts``."""

_TRIES = 2
"""Trajectories of each action that is tried: two tell what the noise adds to the variance of their means."""


@functools.singledispatch
def follow_policy(
    environment: Environment, policy: Policy, num_states: int, copies: int, num_steps: int, seed: int, lead: int = 0
) -> Trajectories:
    """Let a policy act from initial states of an environment, or from states that it led to.

    A general environment can't be put back into a state, so that each source state has one trajectory: enough where
    environment and policy are deterministic. Source states are at times that do not depend on what happens: where an
    episode ends before, it is in the next one.

    Args:
        environment: The environment.
        policy: The policy.
        num_states: Source states N.
        copies: Trajectories R per source state; 1 unless the environment is a ``ProcessEnvironment``.
        num_steps: Steps T after which a trajectory is cut.
        seed: Seed of the initial states, the members of a family and the noise.
        lead: Steps of the policy before each source state, at most; their number is uniform in 0, ..., ``lead``.

    Returns:
        Tensors by the names of the attributes of ``Rollouts``.

    Raises:
        UserError: If more than one trajectory per state is wanted of an environment that can't be put back.
    """
    if copies != 1:
        raise UserError(f"{environment.label} can't be put back into a state: eval_copies must be 1, got {copies}")
    generator = torch.Generator().manual_seed(seed)
    embedding = policy.embeddings(torch.rand(num_states, policy.embedding_dim, generator=generator))
    env = build_environment(environment, num_states)
    try:
        acting = _Acting(policy, embedding, generator)
        steps = roll_out_episodes(env, acting, seed, lead + num_steps, restart=lead > 0)
    finally:
        env.close()
    if lead:
        first = torch.randint(lead + 1, (num_states, 1), generator=generator)
        steps = steps[torch.arange(num_states)[:, None], first + torch.arange(num_steps)]
    return from_steps(steps, embedding)


@follow_policy.register
def _(
    environment: ProcessEnvironment,
    policy: Policy,
    num_states: int,
    copies: int,
    num_steps: int,
    seed: int,
    lead: int = 0,
) -> Trajectories:
    process, generator = environment.process, torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, process.noise_dim, generator=generator)

    embedding = policy.embeddings(torch.rand(num_states, policy.embedding_dim, generator=generator))
    state = process.start(normal(num_states))
    action = policy.act(state, embedding, generator)
    if lead:
        passed, ended = process.futures(policy, state, action, normal(lead, num_states), embedding, generator)
        # A terminal state has no future; the state before has one of its own, since noise is drawn again from here.
        time = torch.minimum(torch.randint(lead + 1, (num_states,), generator=generator), (~ended).sum(0))
        state = torch.cat([state[None], passed])[time, torch.arange(num_states)]
        action = policy.act(state, embedding, generator)
    shared = [part[:, None].expand(-1, copies, -1) for part in (state, action, embedding)]
    states, ended = process.futures(
        policy, shared[0], shared[1], normal(num_steps, num_states, copies), shared[2], generator
    )
    return {
        "observation": state,
        "action": action,
        "embedding": embedding,
        "states": states.movedim(0, 2),
        "length": torch.full((num_states, copies), num_steps),
        "ended": ended.movedim(0, 2),
    }


@functools.singledispatch
def try_actions(
    environment: Environment, policy: Policy, known: Trajectories, num_actions: int, num_steps: int, seed: int
) -> Trajectories:
    """Try random first actions in source states, after which a policy acts.

    Args:
        environment: The environment.
        policy: The policy.
        known: Source states and embeddings by the names of the attributes of ``Rollouts``, N of them.
        num_actions: Actions M tried in each state, uniform on [-1, 1]^A; 0 for none.
        num_steps: Steps T after which a trajectory is cut.
        seed: Seed of the actions and the noise.

    Returns:
        ``tried_actions``, ``tried_states`` and ``tried_ended`` of ``Rollouts``, the actions of a state under the same
        noise; nothing for none, or of an environment that can't be put back into a state.
    """
    return {}


@try_actions.register
def _(
    environment: ProcessEnvironment,
    policy: Policy,
    known: Trajectories,
    num_actions: int,
    num_steps: int,
    seed: int,
) -> Trajectories:
    if num_actions == 0:
        return {}
    process, generator = environment.process, torch.Generator().manual_seed(seed)
    state, embedding = known["observation"], known["embedding"]
    actions = 2.0 * torch.rand(len(state), num_actions, process.action_dim, generator=generator) - 1.0
    noise = torch.randn(num_steps, len(state), 1, _TRIES, process.noise_dim, generator=generator)
    batch = (-1, num_actions, _TRIES, -1)
    states, ended = process.futures(
        policy,
        state[:, None, None].expand(batch),
        actions[:, :, None].expand(batch),
        noise.expand(-1, *batch),
        embedding[:, None, None].expand(batch),
        generator,
    )
    return {"tried_actions": actions, "tried_states": states.movedim(0, 3), "tried_ended": ended.movedim(0, 3)}


def from_steps(steps: TensorDictBase, embedding: Tensor) -> Trajectories:
    """Trajectories of consecutive steps, padded at their ends.

    Args:
        steps: Transitions of batch size (N, T), the first trajectory of each row being wanted.
        embedding: Members of a family that act, shape (N, Z).

    Returns:
        Tensors by the names of the attributes of ``Rollouts``, one trajectory per state.
    """
    num_steps = steps.shape[1]
    done, terminated = steps.get(DONE).squeeze(-1), steps.get(TERMINATED).squeeze(-1)
    # Up to and with the first end; what follows it repeats the last state.
    taken = (done.cumsum(1) - done.long() == 0).sum(1)
    index = torch.minimum(torch.arange(num_steps), taken[:, None] - 1)
    rows = torch.arange(len(steps))[:, None]
    ended = terminated[rows, index] & (torch.arange(num_steps) >= taken[:, None] - 1)
    length = torch.where(ended.any(dim=1), num_steps, taken)
    return {
        "observation": steps.get(OBSERVATION)[:, 0],
        "action": steps.get(ACTION)[:, 0],
        "embedding": embedding,
        "states": steps.get(NEXT_OBSERVATION)[rows, index][:, None],
        "length": length[:, None],
        "ended": ended[:, None],
        "actions": steps.get(ACTION)[rows, (index + 1).clamp_max(num_steps - 1)][:, None],
    }


def stored_trajectories(store: TransitionStore, first_rows: Tensor, num_steps: int) -> Trajectories:
    """Trajectories of a data set.

    Args:
        store: The data set, ordered.
        first_rows: Rows where they begin, shape (N,).
        num_steps: Steps T after which they are cut.

    Returns:
        Tensors by the names of the attributes of ``Rollouts``, one trajectory per state.
    """
    rows = (first_rows[:, None] + torch.arange(num_steps)).clamp_max(len(store) - 1)
    keys = (OBSERVATION, ACTION, NEXT_OBSERVATION, TERMINATED, DONE)
    steps = TensorDict({key: store.transitions.get(key)[rows] for key in keys}, batch_size=rows.shape)
    steps.get(DONE)[rows == len(store) - 1] = True  # the data set ends with its last row
    embedding = torch.empty(len(first_rows), 0)
    if store.info.embedding_dim:
        embedding = store.transitions.get(EMBEDDING)[first_rows]
    return from_steps(steps, embedding)


class _Acting(TensorDictModuleBase):
    """A policy as TorchRL calls it."""

    def __init__(self, policy: Policy, embedding: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        self.in_keys, self.out_keys = [OBSERVATION], [ACTION]
        self.policy, self.embedding, self.generator = policy, embedding, generator

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``action``."""
        observation = tensordict[OBSERVATION]
        embedding = self.embedding.reshape(*observation.shape[:-1], -1)
        return tensordict.set(ACTION, self.policy.act(observation, embedding, self.generator))
