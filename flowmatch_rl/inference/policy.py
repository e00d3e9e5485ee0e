"""A trained policy for use outside training."""

import itertools
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowmatch_rl.checks import RunError, UserError, first_names
from flowmatch_rl.devices import check_compiler
from flowmatch_rl.inference.kinds import read_kind
from flowmatch_rl.models import GoalTable
from flowmatch_rl.modules.behavior_cloning import BehaviorCloning
from flowmatch_rl.modules.flow_q_learning import FlowQLearning
from flowmatch_rl.modules.implicit_flow_q_learning import ImplicitFlowQLearning
from flowmatch_rl.modules.loading import build_module
from flowmatch_rl.modules.occupancy_actor_critic import OccupancyActorCritic
from flowmatch_rl.modules.policy_module import PolicyModule
from flowmatch_rl.modules.reverse_flow_actor_critic import ReverseFlowActorCritic
from flowmatch_rl.modules.soft_actor_critic import SoftActorCritic
from flowmatch_rl.modules.tilted_flow_actor_critic import TiltedFlowActorCritic
from flowmatch_rl.schema import ActionBounds


class TrainedPolicy:
    """Maps NumPy observations to actions in the environment's own unit.

    Printed, it states what it takes and returns, and how it acts.

    Args:
        module: The trained module.
        seed: Seed of the policy's noise, or of the fixed noise of a deterministic policy.
        samples: Whether it acts by a sample of the policy, at the temperature that it was trained at, in place of what
            evaluations choose.
        compile: Whether it acts by ``torch.compile``, for many single observations: the first action takes about half
            a minute, those that follow less time. On the CPU it needs a C++ compiler.
        deterministic: Whether the same observation gives the same action: the noise is drawn once, and a choice among
            several particles takes the one of highest value.

    Attributes:
        action_bounds: Bounds of the action in the environment's unit.
        interface: Names and units of what it observes and does, and the time of a step, where they are known.
        noise: Fixed noise of a deterministic policy, standard normal, shape (N, noise_dim) for N particles; None for
            one that draws noise. It is ``numpy.random.default_rng(seed).standard_normal((N, noise_dim))``.
        step_noise: What the same generator draws next for a stochastic sampler, shape (steps, N, A); None likewise.

    Raises:
        UserError: If ``compile`` finds no C++ compiler.
    """

    def __init__(
        self,
        module: PolicyModule,
        seed: int = 0,
        samples: bool = False,
        compile: bool = False,
        deterministic: bool = False,
    ) -> None:
        self.module = module.eval()
        self._actor = module.actor("eval")
        if samples:
            self._actor = self._actor.sampling()
        if deterministic:
            self._actor = self._actor.greedy()
        if compile:
            check_compiler()
            self._actor = self._actor.compiled()
        self._generator = torch.Generator().manual_seed(seed)
        self.action_bounds: ActionBounds = module.hparams["action_bounds"] or ActionBounds.unit(module.action_dim)
        self.interface = module.interface
        self.noise: np.ndarray | None = None
        self.step_noise: np.ndarray | None = None
        if deterministic:
            random = np.random.default_rng(seed)
            self.noise = _normal(random, self._actor.num_particles, module.policy.noise_dim)
            self.step_noise = _normal(random, module.policy.num_draws, len(self.noise), module.action_dim)

    @property
    def observation_dim(self) -> int:
        """Dimension S of the observation."""
        return self.module.observation_dim

    @property
    def action_dim(self) -> int:
        """Dimension A of the action."""
        return self.module.action_dim

    @property
    def goal_columns(self) -> tuple[str, ...]:
        """Names of the G entries of a goal; empty for a single policy."""
        return () if self.module.goals is None else self.module.goals.schema.columns

    def __repr__(self) -> str:
        """What it takes and returns, an entry a line, and how it acts."""
        acts = self._actor.description + (", from fixed noise" if self.noise is not None else "")
        step = self.interface.step_s
        return "\n".join(
            [
                f"{type(self.module).__name__}, acts {acts}" + (f", every {step:g} s" if step else ""),
                *self.interface.lines(self.observation_dim, self.action_bounds),
                *([f"goal ({len(self.goal_columns)}): {first_names(self.goal_columns)}"] if self.goal_columns else []),
            ]
        )

    def embedding(self, goal: np.ndarray) -> np.ndarray:
        """Embeddings of members of a family, as an occupancy of the family takes them: standardised goals.

        Args:
            goal: Goals in the units of the environment, shape (*batch, G).

        Returns:
            Shape (*batch, G).

        Raises:
            UserError: If it is a single policy, or the goals are of another dimension.
        """
        return self._embedding(goal).cpu().numpy()

    def __call__(self, observation: np.ndarray, goal: np.ndarray | None = None) -> np.ndarray:
        """Act as in evaluations, by the particle of highest value or the mode of a Gaussian, or by a sample.

        Args:
            observation: Shape (*batch, S); entries of a dictionary concatenated in the order of their names,
                choices as indicators, as ``flowmatch_rl.envs.VectorObservations`` returns them.
            goal: Goals of the members of a family that act, in the units of the environment, shape (*batch, G) or (G,)
                for one; None for a single policy.

        Returns:
            Action in the environment's unit, float32, shape (*batch, A).

        Raises:
            UserError: If the last dimension is not S, an entry is not finite in single precision, a family has no goal,
                or a goal does not fit.
            RunError: If the action is not finite.
        """
        observation = np.asarray(observation)
        if observation.ndim < 1 or observation.shape[-1] != self.module.observation_dim:
            raise UserError(
                f"expected an observation of shape (..., {self.module.observation_dim}), got {observation.shape}"
            )
        states = torch.as_tensor(observation, dtype=torch.float32, device=self.module.device)
        if not bool(states.isfinite().all()):
            raise UserError("expected an observation of finite numbers, got NaN or infinity")
        if goal is None and self.module.goals is not None:
            columns = ", ".join(self.module.goals.schema.columns)
            raise UserError(
                f"the checkpoint holds a family of policies, one for each goal ({columns}): call "
                "policy(observation, goal), got no goal"
            )
        if goal is not None:
            states = self._beside(states, goal)
        action = self._act(states).clamp(-1.0, 1.0)
        if not bool(action.isfinite().all()):
            largest = float(states.abs().max())
            raise RunError(f"the policy's action is not finite; the largest number that it observed is {largest:.3g}")
        return self.action_bounds.restore(action).float().cpu().numpy()

    def _act(self, states: Tensor) -> Tensor:
        if self.noise is None or self.step_noise is None:
            return self._actor(states, self._generator)
        rows = states.reshape(-1, states.shape[-1])
        # A batch may be carried in pieces, each of which draws once per step.
        fixed = itertools.cycle(torch.as_tensor(self.step_noise, device=rows.device).unbind())
        noise = torch.as_tensor(self.noise, device=rows.device).expand(len(rows), -1, -1)
        action = self._actor.from_noise(rows, noise, lambda like: next(fixed).expand_as(like))
        return action.reshape(*states.shape[:-1], -1)

    def _beside(self, states: Tensor, goal: np.ndarray) -> Tensor:
        """States with the embeddings of goals beside them."""
        embedding, batch = self._embedding(goal), states.shape[:-1]
        if embedding.shape[:-1] not in (batch, torch.Size()):
            raise UserError(f"expected a goal of shape {(*batch, embedding.shape[-1])}, got {tuple(embedding.shape)}")
        return self._family.beside(states, embedding.expand(*batch, -1))

    def _embedding(self, goal: np.ndarray) -> Tensor:
        family, given = self._family, torch.as_tensor(np.asarray(goal), dtype=torch.float32, device=self.module.device)
        if given.ndim < 1 or given.shape[-1] != family.dim:
            wanted = f"(..., {family.dim}), its entries {', '.join(family.schema.columns)}"
            raise UserError(f"expected a goal of shape {wanted}, got {tuple(given.shape)}")
        if not bool(given.isfinite().all()):
            raise UserError("expected a goal of finite numbers, got NaN or infinity")
        return family.embedding(given)

    @property
    def _family(self) -> GoalTable:
        if self.module.goals is None:
            raise UserError("the checkpoint holds a single policy, which takes no goal")
        return self.module.goals


def load_policy(
    checkpoint: str | Path,
    device: str = "cpu",
    samples: bool = False,
    allow: Collection[str] = (),
    compile: bool = False,
    deterministic: bool = False,
    seed: int = 0,
) -> TrainedPolicy:
    """Load the policy of a checkpoint.

    Args:
        checkpoint: Path of a ``.ckpt`` file, or ``zoo:NAME`` for a trained model of the package.
        device: Where to run it.
        samples: Whether it acts by a sample of the policy, at the temperature that it was trained at, in place of what
            evaluations choose: the best of several by default.
        allow: Packages whose classes it may name, beside this one and those that were imported.
        compile: Whether it acts by ``torch.compile``, see ``TrainedPolicy``.
        deterministic: Whether the same observation gives the same action: greedy, with fixed noise.
        seed: Seed of the noise.

    Returns:
        The policy, a function of an observation, and of a goal if it is a family.

    Raises:
        FileNotFoundError: If there is no such file.
        UserError: If it is not a checkpoint of a policy, or names a class of another package.
    """
    return TrainedPolicy(load_policy_module(checkpoint, device, allow), seed, samples, compile, deterministic)


def _normal(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.standard_normal(shape).astype(np.float32)


def load_policy_module(checkpoint: str | Path, device: str = "cpu", allow: Collection[str] = ()) -> PolicyModule:
    """Load the module of a policy's checkpoint, whichever it is.

    Args:
        checkpoint: Path of a ``.ckpt`` file.
        device: Where to load it.
        allow: Packages whose classes it may name, beside this one and those that were imported.

    Returns:
        The module.

    Raises:
        FileNotFoundError: If there is no such file.
        UserError: If it is not a checkpoint of a policy, or names a class of another package.
    """
    content = read_kind("a policy", checkpoint, allow)
    name = content[PolicyModule.NAME_KEY]
    if name not in _POLICIES:
        raise UserError(f"{checkpoint} is a checkpoint of {name!r}, expected one of {', '.join(_POLICIES)}")
    return build_module(_POLICIES[name], content, checkpoint).to(device)


_POLICIES = {
    kind.__name__: kind
    for kind in (
        BehaviorCloning,
        FlowQLearning,
        ImplicitFlowQLearning,
        OccupancyActorCritic,
        ReverseFlowActorCritic,
        SoftActorCritic,
        TiltedFlowActorCritic,
    )
}
