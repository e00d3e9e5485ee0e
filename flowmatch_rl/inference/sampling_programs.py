"""Programs of models that draw samples: flows of tables, and future states of a policy."""

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from flowmatch_rl.checks import check_range
from flowmatch_rl.inference.programs import Input, Program, counted, given_noise, with_fixed_steps
from flowmatch_rl.models import GenerativeModel, Occupancy
from flowmatch_rl.samplers import Sampler
from flowmatch_rl.schema import ActionBounds, TableSchema


class FlowProgram(nn.Module):
    """Samples of a flow from given noise, in the units of the data.

    Args:
        model: The trained model.
        sampler: Sampler with a fixed number of steps.
    """

    def __init__(self, model: GenerativeModel, sampler: Sampler) -> None:
        super().__init__()
        self.flow = model.flow
        self._sampler, self._guidance, schema = sampler, model.guidance, model.schema
        self.units = _Units(schema)
        self.condition_units = _Conditions(schema)

    def forward(
        self,
        noise: Tensor,
        step_noise: Tensor | None = None,
        conditions: Tensor | None = None,
        classes: Tensor | None = None,
    ) -> Tensor:
        """Samples.

        Args:
            noise: Standard normal, shape (B, noise_dim).
            step_noise: Standard normal, for a stochastic sampler, shape (B, steps, D).
            conditions: Condition columns in their own units, shape (B, C).
            classes: Indices of the classes of each class column, int64, shape (B, L).

        Returns:
            Samples in the units of the data, shape (B, D); integers are rounded.
        """
        condition = self.condition_units(conditions, classes)
        draw = given_noise(step_noise)
        return self.units(self.flow.sample(noise, self._sampler, condition, self._guidance, draw))


class OccupancyProgram(nn.Module):
    """Future states from given noise, in the units of the environment.

    Args:
        model: The trained model.
        sampler: Sampler with a fixed number of steps.
        bounds: Bounds of the action in the environment's unit.
    """

    low: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, model: Occupancy, sampler: Sampler, bounds: ActionBounds) -> None:
        super().__init__()
        self.flow, self.inputs, self._sampler = model.flow, model.inputs, sampler
        low, high = torch.tensor(bounds.low), torch.tensor(bounds.high)
        self.register_buffer("low", low)
        # An entry with equal bounds has one value, 0 in [-1, 1].
        self.register_buffer("scale", torch.where(low < high, 2.0 / (high - low), 0.0))
        self.register_buffer("shift", torch.where(low < high, 1.0, 0.0))

    def forward(
        self,
        observation: Tensor,
        action: Tensor,
        noise: Tensor,
        embedding: Tensor | None = None,
        discount: Tensor | None = None,
    ) -> Tensor:
        """Future states.

        Args:
            observation: States, shape (B, S).
            action: Actions in the unit of the environment, shape (B, A).
            noise: Standard normal, shape (B, K, D).
            embedding: Members of a family of policies, shape (B, Z).
            discount: Discounts, for a model of many horizons, shape (B, 1).

        Returns:
            Modelled entries of K future states each, in the units of the environment, shape (B, K, D).
        """
        unit = (action - self.low) * self.scale - self.shift
        member = None if embedding is None else embedding[:, None]
        condition = self.inputs.condition(observation[:, None], unit[:, None], member, discount)
        return self.inputs.restore(self.flow.sample(noise, self._sampler, condition))


def flow_program(model: GenerativeModel, num_steps: int | None = None) -> Program:
    """The sampler of a flow of a table.

    Args:
        model: The trained model.
        num_steps: Steps of its sampler; the model's own if None.

    Raises:
        UserError: If its sampler chooses its steps by the error.
    """
    check_range("[1, inf)", num_steps=num_steps)
    sampler, schema = with_fixed_steps(model.sampler, num_steps), model.schema
    inputs = {"noise": Input((model.noise_dim,))}
    if sampler.adds_noise:
        inputs["step_noise"] = Input((sampler.steps or 0, schema.sample_dim))
    if schema.condition_columns:
        inputs["conditions"] = Input((len(schema.condition_columns),))
    if schema.class_columns:
        inputs["classes"] = Input((len(schema.class_columns),), tuple(map(len, schema.classes)))
    return Program(
        FlowProgram(model.eval(), sampler),
        inputs,
        "sample",
        f"samples in {counted(sampler.steps, 'step')}",
        {
            "kind": "flow",
            "columns": schema.columns,
            "units": schema.units,
            "condition_columns": schema.condition_columns,
            "class_columns": schema.class_columns,
            "classes": schema.classes,
        },
    )


def occupancy_program(
    model: Occupancy, bounds: ActionBounds | None, num_particles: int | None = None, num_steps: int | None = None
) -> Program:
    """The sampler of future states, given a state and an action.

    Args:
        model: The trained model.
        bounds: Bounds of the action in the environment's unit; [-1, 1] if None.
        num_particles: Future states K of each state; 1 if None.
        num_steps: Steps of its sampler; the model's own if None.

    Raises:
        UserError: If its sampler chooses its steps by the error.
    """
    check_range("[1, inf)", num_particles=num_particles, num_steps=num_steps)
    sampler, schema, futures = with_fixed_steps(model.sampler, num_steps), model.inputs.schema, num_particles or 1
    bounds = bounds or ActionBounds.unit(model.inputs.action_dim)
    inputs = {
        "observation": Input((schema.sample_dim,)),
        "action": Input((model.inputs.action_dim,)),
        "noise": Input((futures, model.inputs.sample_dim)),
    }
    if model.inputs.embedding_dim:
        inputs["embedding"] = Input((model.inputs.embedding_dim,))
    if model.horizon.min_discount is not None:
        inputs["discount"] = Input((1,))
    return Program(
        OccupancyProgram(model.eval(), sampler, bounds),
        inputs,
        "future_states",
        f"draws {counted(futures, 'future state')} in {counted(sampler.steps, 'step')}",
        {
            "kind": "occupancy",
            "observation_columns": schema.columns,
            "observation_units": schema.units,
            "action_low": bounds.low,
            "action_high": bounds.high,
            "columns": model.schema.columns,
            "units": model.schema.units,
            "discounts": [model.horizon.lowest, model.horizon.discount],
        },
    )


class _Units(nn.Module):
    """Samples in the units of the data, of standardised ones."""

    shift: Tensor
    scale: Tensor
    whole: Tensor

    def __init__(self, schema: TableSchema) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(schema.shift))
        self.register_buffer("scale", torch.tensor(schema.scale))
        self.register_buffer("whole", torch.tensor([name in schema.integers for name in schema.columns]))
        self._rounds = bool(self.whole.any())

    def forward(self, sample: Tensor) -> Tensor:
        values = sample * self.scale + self.shift
        return torch.where(self.whole, values.round(), values) if self._rounds else values


class _Conditions(nn.Module):
    """Conditions as the flow takes them, of values in their own units and indices of classes."""

    shift: Tensor
    scale: Tensor

    def __init__(self, schema: TableSchema) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(schema.condition_shift))
        self.register_buffer("scale", torch.tensor(schema.condition_scale))
        self._num_classes = tuple(map(len, schema.classes))

    def forward(self, conditions: Tensor | None, classes: Tensor | None) -> Tensor | None:
        parts = [] if conditions is None else [(conditions - self.shift) / self.scale]
        if classes is not None:
            parts += [one_hot(classes[:, i], number).float() for i, number in enumerate(self._num_classes)]
        return torch.cat(parts, dim=1) if parts else None
