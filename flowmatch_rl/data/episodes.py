"""What data modules for policies share: an environment, in which evaluations run whole episodes."""

import abc
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import torch
from tensordict import TensorDictBase, pad
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torch.utils.data import DataLoader
from torchrl.envs import EnvBase

from flowmatch_rl.batches import NEXT_OBSERVATION, REWARD, SUCCESS
from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.data.base import TEST_SEEDS, DataModule, batch_loader
from flowmatch_rl.envs.building import Spaces, build_environment
from flowmatch_rl.envs.environments import Environment
from flowmatch_rl.envs.open_loop import OpenLoop
from flowmatch_rl.envs.rendered import RenderedEnvironment
from flowmatch_rl.envs.rollouts import roll_out_episodes
from flowmatch_rl.rounds import UPDATES_PER_ROUND
from flowmatch_rl.schema import Interface

_MOST_COPIES = 32
"""Copies of the environment that an evaluation steps together; one of a robot with meshes takes some 200 MB."""


class ActingModule(Protocol):
    """A module that trains a policy.

    Attributes:
        learns_from_rewards: Whether training uses rewards; otherwise it imitates a data set.
        takes_rounds: Whether a step of the trainer may hold several updates, see ``Round``.
    """

    learns_from_rewards: ClassVar[bool]
    takes_rounds: ClassVar[bool]

    @property
    def takes_goals(self) -> bool:
        """Whether it is a family of policies, one for each goal."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of its weights."""
        ...

    def collection_policy(self) -> TensorDictModuleBase:
        """Policy that collects."""
        ...

    @property
    def builder(self) -> Callable[[], Any]:
        """Makes a module of the same shape with weights of its own, in this process or another."""
        ...

    def state_dict(self) -> Mapping[str, Tensor]:
        """Its weights, by name."""
        ...

    def evaluation_policy(self) -> TensorDictModuleBase:
        """Policy that is evaluated, with noise of a fixed seed."""
        ...

    def check_finite(self) -> None:
        """Raise ``RunError`` if weights or losses are not finite."""
        ...


class EpisodeData(DataModule, abc.ABC):
    """Data for a policy, whose whole episodes the validation and test loaders run in an environment.

    Initial states are the same in every evaluation of one kind. Children set ``spaces``, the dimensions and bounds.

    Args:
        num_epochs: Virtual epochs of the whole run.
        environment: Environment to act in; None for no episodes.
        eval_episodes: Episodes of each evaluation during training, divided among the processes.
        test_episodes: Episodes of the ``test`` and ``predict`` commands.
        eval_seed: Seed of the initial states during training; tests have others.
        max_episode_steps: Steps after which an evaluation episode is cut off.
        action_chunk: Actions that the policy chooses at once, at least 1.
        reward_of: Rewards (N, T) of the states (N, T, S) arrived in, in place of the environment's; None for its own.

    Raises:
        UserError: If the environment or a number does not fit.
    """

    spaces: Spaces

    def __init__(
        self,
        num_epochs: int,
        environment: Environment | None,
        eval_episodes: int,
        test_episodes: int,
        eval_seed: int,
        max_episode_steps: int,
        action_chunk: int = 1,
        reward_of: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        check_range(
            "[1, inf)",
            action_chunk=action_chunk,
            eval_episodes=eval_episodes,
            test_episodes=test_episodes,
            max_episode_steps=max_episode_steps,
        )
        super().__init__(num_epochs)
        self.environment = environment
        self.eval_episodes, self.test_episodes, self.eval_seed = eval_episodes, test_episodes, eval_seed
        self.max_episode_steps, self.action_chunk = max_episode_steps, action_chunk
        self.reward_of = reward_of
        self._evaluation_envs: dict[int, EnvBase] = {}

    @property
    @abc.abstractmethod
    def observation_moments(self) -> Tensor | None:
        """Count, mean and squared deviations of all observations of a data set, shape (3, S); None without one."""

    @property
    @abc.abstractmethod
    def reward_moments(self) -> Tensor | None:
        """Count, mean and squared deviations of all rewards of a data set, shape (3, 1); None without one."""

    @property
    def return_range(self) -> tuple[float, float] | None:
        """Returns that count as 0 and as 1, see ``Environment``; None where the rewards are not the environment's."""
        return None if self.environment is None or self.reward_of is not None else self.environment.return_range

    @property
    def interface(self) -> Interface:
        """Names and units of what a policy observes and does, and the time of a step."""
        return self.spaces.interface.chunked(self.action_chunk)

    @property
    def module(self) -> ActingModule:
        """The module that is trained."""
        if self.trainer is None:
            raise RuntimeError("a Trainer must make the loaders")
        return self.trainer.lightning_module  # pyright: ignore[reportReturnType]

    @abc.abstractmethod
    def check_module(self, module: ActingModule) -> None:
        """Raise unless a module can be trained on this data.

        Args:
            module: The module.

        Raises:
            UserError: If it learns from rewards that the data do not hold, or would imitate itself.
        """

    def setup(self, stage: str) -> None:
        """Refuse a module that cannot be trained on this data before its training begins."""
        super().setup(stage)
        if stage == "fit" and self.trainer is not None:
            self.check_module(self.module)

    def val_dataloader(self) -> DataLoader:
        """What an evaluation during training measures, see ``evaluation_batches``."""
        return self._loader(self.eval_episodes, self.eval_seed)

    def test_dataloader(self) -> DataLoader:
        """What a test measures, see ``evaluation_batches``."""
        return self._loader(self.test_episodes, self.eval_seed + TEST_SEEDS)

    def predict_dataloader(self) -> DataLoader:
        """One TensorDict of complete episodes, those of a test; see ``roll_out_episodes``."""
        return batch_loader(1, lambda _: self.episodes(self.test_episodes, self.eval_seed + TEST_SEEDS))

    @abc.abstractmethod
    def evaluation_batches(self, number: int, seed: int) -> list[Callable[[], TensorDictBase]]:
        """Makers of the batches of an evaluation: whole episodes, and transitions that training leaves out.

        Args:
            number: Episodes.
            seed: Seed of their initial states.
        """

    def episodes(self, number: int, seed: int) -> TensorDictBase:
        """Run this process's part of ``number`` evaluation episodes (rounded up), and return their transitions.

        Rewards are those that training uses. Where they are not the environment's, its success is left out.
        """
        part = math.ceil(number / self.world_size)
        if self.environment is None:
            raise UserError("episodes need an environment; set data.environment")
        waves = math.ceil(part / _MOST_COPIES)
        copies = math.ceil(part / waves)
        if copies not in self._evaluation_envs:
            self._evaluation_envs[copies] = build_environment(self.environment, copies)
        env, seed = self._evaluation_envs[copies], seed + self.rank * number
        policy = self.module.evaluation_policy()
        parts = [
            roll_out_episodes(env, self.acting_policy(policy), seed + wave * copies, self.max_episode_steps)
            for wave in range(waves)
        ]
        longest = max(steps.shape[1] for steps in parts)
        steps: Any = torch.cat([pad(steps, [0, 0, 0, longest - steps.shape[1]]) for steps in parts])[:part]
        if self.reward_of is None:
            return steps
        return steps.exclude(SUCCESS).set(REWARD, self.reward_of(steps[NEXT_OBSERVATION])[..., None])

    def acting_policy(self, policy: TensorDictModuleBase) -> TensorDictModuleBase:
        """A policy of the module as it acts in the environment, one action at a time.

        Args:
            policy: Reads ``observation``, writes ``action``, or the actions of a chunk side by side.
        """
        return policy if self.action_chunk == 1 else OpenLoop(policy, self.action_chunk)

    def rendering_environment(self) -> RenderedEnvironment:
        """An environment to film, which starts where the first evaluation episode does. The caller closes it."""
        if self.environment is None:
            raise UserError("a video needs an environment; set data.environment")
        env = build_environment(self.environment, render=True)
        env.set_seed(self.eval_seed)
        return RenderedEnvironment(self.environment, env)

    def teardown(self, stage: str) -> None:
        """Close the environments of evaluations."""
        for env in self._evaluation_envs.values():
            env.close(raise_if_closed=False)
        self._evaluation_envs = {}

    @property
    def _per_round(self) -> int:
        """Updates of a step of the trainer."""
        return UPDATES_PER_ROUND if self.trainer is not None and self.module.takes_rounds else 1

    def _loader(self, number: int, seed: int) -> DataLoader:
        makers = self.evaluation_batches(number, seed)
        return batch_loader(len(makers), lambda place: makers[place]())
