"""The occupancy of a policy: its discounted future states."""

import torch
from torch import Tensor, nn

from flowmatch_rl.checks import UserError
from flowmatch_rl.models.flow import Flow, Likelihood
from flowmatch_rl.models.intentions import Intentions
from flowmatch_rl.models.noise import draw_normal, draw_uniform
from flowmatch_rl.models.occupancy_inputs import OccupancyInputs
from flowmatch_rl.nets import TerminationNetwork
from flowmatch_rl.planning import RewardOfState, ValueEstimate, estimate_value, terminal_fraction
from flowmatch_rl.samplers import Sampler
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.shapes import check_shape
from flowmatch_rl.types import Policy


class Occupancy(nn.Module):
    """Where a policy will be: its discounted future states, given a state and an action.

    The state after k + 1 steps has the weight ``(1 - discount) discount^k``. A model of many horizons also knows which
    states are terminal, since from a future state of one horizon another one resumes, unless it is terminal.

    Args:
        flow: Flow of standardised states on the conditions of ``inputs``.
        inputs: Units, conditions and discounts.
        sampler: Sampler, deterministic.
        likelihood: How the log-density is computed.
        policy: The policy, or family of policies; None if it is known by its actions in data alone.
        intentions: How policies that are known by data alone are told apart: members are then latents; None if not.

    Raises:
        UserError: If the sampler adds noise, or needs average velocities.
    """

    def __init__(
        self,
        flow: Flow,
        inputs: OccupancyInputs,
        sampler: Sampler,
        likelihood: Likelihood = Likelihood(),
        policy: Policy | None = None,
        intentions: Intentions | None = None,
    ) -> None:
        super().__init__()
        if sampler.adds_noise or sampler.needs_average_velocity:
            raise UserError(
                f"future states need a deterministic sampler of velocities, such as OdeSampler, got {sampler}"
            )
        self.flow, self.inputs, self.horizon = flow, inputs, inputs.horizon
        self.sampler, self.likelihood, self.policy = sampler, likelihood, policy
        self.termination = None if self.horizon.min_discount is None else TerminationNetwork(inputs.sample_dim)
        state_dim, action_dim = inputs.schema.sample_dim, inputs.action_dim
        self.encoder = None if intentions is None else intentions.build(state_dim, action_dim)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.inputs.shift.device

    @property
    def schema(self) -> TableSchema:
        """Modelled entries of the state, given the whole state, the action and the embedding."""
        return self.inputs.sample_schema

    def draw_noise(self, *batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Noise of future states, shape (*batch, D), from a generator on any device."""
        return draw_normal((*batch, self.inputs.sample_dim), self.device, generator)

    def draw_members(self, number: int, generator: torch.Generator | None = None) -> Tensor:
        """Members of the family of policies, from the distribution that the family is trained and evaluated on.

        Those of a model with intentions are latents from their prior N(0, I).

        Args:
            number: How many.
            generator: Source of randomness, on any device; the global one if None.

        Returns:
            Embeddings, shape (number, Z); Z is 0 for a single policy.

        Raises:
            UserError: If embeddings are known from data alone.
        """
        size = (number, self.inputs.embedding_dim)
        if self.encoder is not None:
            return draw_normal(size, self.device, generator)
        if self.policy is not None:
            return self.policy.embeddings(draw_uniform(size, self.device, generator))
        if self.inputs.embedding_dim:
            raise UserError(
                f"expected a family to draw embeddings of dimension {size[1]} from: this model was learned from "
                "actions in data and knows no policy"
            )
        return torch.empty(size, device=self.device)

    def latent_distribution(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of the latents behind actions, by the encoder of a model with intentions.

        Args:
            observation: States in the units of the environment, shape (*batch, S).
            action: Actions taken there, in [-1, 1], shape (*batch, A).

        Returns:
            Both of shape (*batch, Z).

        Raises:
            UserError: If the model has no intentions.
        """
        if self.encoder is None:
            raise UserError("expected a model with intentions: this one infers nothing from actions")
        return self.encoder((observation - self.inputs.state_shift) / self.inputs.state_scale, action)

    @torch.no_grad()
    def infer_members(self, observation: Tensor, action: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latents behind actions, drawn from what the encoder infers; arguments as ``latent_distribution``.

        Returns:
            Latents, shape (*batch, Z).
        """
        mean, log_std = self.latent_distribution(observation, action)
        return mean + log_std.exp() * draw_normal(mean.shape, self.device, generator)

    def act(self, observation: Tensor, embedding: Tensor) -> Tensor:
        """Actions of the policy in [-1, 1], shape (*batch, A).

        Args:
            observation: States in the units of the environment, shape (*batch, S).
            embedding: Members of the family of policies, shape (*batch, Z).

        Raises:
            UserError: If the policy is known by its actions in data alone.
        """
        if self.policy is None:
            raise UserError("expected actions: this model was learned from actions in data and knows no policy")
        return self.policy.act(observation, embedding)

    def sample(
        self,
        noise: Tensor,
        observation: Tensor,
        action: Tensor,
        embedding: Tensor | None = None,
        discount: Tensor | float | None = None,
    ) -> Tensor:
        """Future states.

        Args:
            noise: Standard normal, shape (*batch, D).
            observation: States in the units of the environment, shape (*batch, S), where a size of 1 is shared.
            action: Actions in [-1, 1], shape (*batch, A), sizes as those of the observation.
            embedding: Members of the family of policies, shape (*batch, Z); None for a single policy.
            discount: Discount, shape (*batch) or a number; the model's highest if None.

        Returns:
            Modelled entries of future states in the units of the environment, float32, shape (*batch, D).

        Raises:
            UserError: If a dimension does not fit, or the model has another discount.
        """
        condition = self._condition(noise, observation, action, embedding, discount)
        with torch.autocast(self.device.type, enabled=False):
            return self.inputs.restore(self.flow.sample(noise, self.sampler, condition))

    def futures(
        self, noise: Tensor, observation: Tensor, action: Tensor, embedding: Tensor, discount: Tensor | float
    ) -> Tensor:
        """K future states of each state, shape (*batch, K, D), for noise (*batch, K, D); see ``planning.Futures``."""
        source = (part[..., None, :] for part in (observation, action, embedding))
        return self.sample(noise, *source, discount=discount)

    @torch.no_grad()
    def sample_beyond(
        self,
        discount: float,
        observation: Tensor,
        action: Tensor,
        embedding: Tensor | None = None,
        endless: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Future states of a discount above the model's highest, by chaining its own.

        A geometric time of the discount g is a sum of geometric times of the model's b, as many as a geometric number
        of mean ``(1 - b) / (1 - g)``: ``m_g = p m_b + (1 - p) m_b m_g`` with ``p = (1 - g) / (1 - b)``. Each future
        state costs that many of the model's, and their errors add up.

        Args:
            discount: Discount g, above the model's highest and below 1.
            observation: States in the units of the environment, shape (*batch, S).
            action: Actions in [-1, 1], shape (*batch, A).
            embedding: Members of the family of policies, shape (*batch, Z); None for a single policy.
            endless: Whether the environment has no terminal states, of which a model of a single horizon knows none.
            generator: Source of randomness, on any device; the global one if None.

        Returns:
            Future states in the units of the environment, float32, shape (*batch, S).

        Raises:
            UserError: If the discount is out of its range, or the model knows no policy, lacks entries of the state,
                counts the current state, or does not know which states are terminal.

        Reference:
            Farebrother et al., arXiv:2602.19634, for chains of different policies.
        """
        own = self.horizon.discount
        stop_probability = (1.0 - discount) / (1.0 - own)
        self._check_chain(discount, endless)
        batch = observation.shape[:-1]
        state, act = observation.reshape(-1, observation.shape[-1]), action.reshape(-1, action.shape[-1])
        members = state.new_empty(len(state), 0) if embedding is None else embedding.reshape(len(state), -1)
        found, rows = torch.empty_like(state), torch.arange(len(state), device=state.device)
        while len(rows):
            landed = self.sample(self.draw_noise(len(rows), generator=generator), state, act, members[rows])
            found[rows] = landed
            uniform = draw_uniform((2, len(rows)), self.device, generator)
            stays = uniform[0] < stop_probability
            if not endless:
                stays |= uniform[1] < self.terminal_probability(landed, own)
            rows, state = rows[~stays], landed[~stays]
            act = self.act(state, members[rows])
        return found.reshape(*batch, -1)

    @torch.no_grad()
    def terminal_probability(self, futures: Tensor, discount: Tensor | float) -> Tensor:
        """Probability that future states are terminal.

        Args:
            futures: Future states in the units of the environment, shape (*batch, D).
            discount: Discount that they were drawn with, shape (*batch) or a number.

        Returns:
            Probabilities, shape (*batch).

        Raises:
            UserError: If the model has a single horizon.
        """
        if self.termination is None:
            raise UserError("a model of a single horizon does not know which states are terminal; give it min_discount")
        arriving = self.termination.probability((futures - self.inputs.shift) / self.inputs.scale)
        return terminal_fraction(arriving, discount)

    def log_prob(
        self,
        state: Tensor,
        observation: Tensor,
        action: Tensor,
        embedding: Tensor | None = None,
        discount: Tensor | float | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Log-density of future states.

        Args:
            state: Modelled entries in the units of the environment, shape (B, D).
            observation: States, shape (B, S).
            action: Actions in [-1, 1], shape (B, A).
            embedding: Members of the family of policies, shape (B, Z), or None.
            discount: Discount, shape (B,) or a number; the model's highest if None.
            generator: Noise of random probes; the global one if None.

        Returns:
            Log-density in nats, in the units of the environment, shape (B,).

        Raises:
            UserError: If a dimension does not fit, or the model has another discount.
        """
        condition = self._condition(state, observation, action, embedding, discount)
        sample = (state - self.inputs.shift) / self.inputs.scale
        probes = self.likelihood.draw_probes(sample, generator)
        with torch.autocast(self.device.type, enabled=False):
            return self.flow.log_prob(sample, self.likelihood, condition, probes) - self.schema.log_volume

    def value(
        self, futures: Tensor, reward: RewardOfState, observation: Tensor, discount: float | None = None
    ) -> ValueEstimate:
        """Values of states and actions from their future states.

        Args:
            futures: Future states, shape (*batch, K, D), K at least 2.
            reward: Reward of modelled entries in the units of the environment.
            observation: States that the futures follow, shape (*batch, S).
            discount: Discount of the futures; the model's highest if None.

        Returns:
            Estimates in units of the return, shape (*batch).
        """
        discount = self.horizon.discount if discount is None else discount
        now = observation[..., self.inputs.modelled] if self.horizon.first_state == "current" else None
        return estimate_value(futures, reward, discount, now)

    def _condition(
        self,
        entries: Tensor,
        observation: Tensor,
        action: Tensor,
        embedding: Tensor | None,
        discount: Tensor | float | None,
    ) -> Tensor:
        check_shape("modelled entries", entries, (*entries.shape[:-1], self.inputs.sample_dim))
        if discount is not None:
            self.horizon.check(discount)
        return self.inputs.condition(observation, action, embedding, discount)

    def _check_chain(self, discount: float, endless: bool) -> None:
        """Raise unless the model's futures can be chained to those of a higher discount."""
        own = self.horizon.discount
        if not own < discount < 1.0:
            raise UserError(f"discount must lie above the model's {own:g} and below 1, got {discount:g}")
        if self.horizon.first_state != "arrival":
            raise UserError(f"discounts above the model's need first_state 'arrival', got {self.horizon.first_state!r}")
        if self.policy is None or not self.inputs.is_whole:
            raise UserError("discounts above the model's need a policy that acts in modelled states, and all columns")
        if self.termination is None and not endless:
            raise UserError(
                "a model of a single horizon does not know which states are terminal: say that there are none "
                "(endless), or train one with min_discount"
            )
