"""States of environments in Python as tensors, numbers and words, which checkpoints may hold.

The state of an object is what its attributes say. Those that are fixed when it is made, such as spaces and functions,
are left alone; one that may change, and whose content cannot be written down, makes the state unknown.
"""

import collections
import dataclasses
import functools
import types
from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer
from gymnasium.envs.registration import EnvSpec

_MUJOCO: Any = mujoco  # whose classes have no stubs
_PLAIN = (types.NoneType, bool, int, float, str, bytes)
_FIXED = (
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
    functools.partial,
    spaces.Space,
    EnvSpec,
    _MUJOCO.MjModel,
    MujocoRenderer,
)
_CONTAINERS = (list, tuple, set, collections.deque)
_BIT_GENERATORS = (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)
_ASSETS = ("mesh_", "skin_", "tex_", "bvh_", "oct_", "names", "name_", "paths", "text_", "plugin")
"""Arrays of a model of MuJoCo that no task changes; they may be large."""
_OF_CONSTRAINTS = ("efc_", "iefc_", "efm_", "island_", "map_", "plugin", "bvh_")
"""Arrays of MuJoCo's data that it makes anew from the others."""


_PARAMETERS = "__dataclass_params__"


class UnknownStateError(Exception):
    """Something that may change has a content that cannot be written down; its text names its kind."""


class _FixedError(Exception):
    """Something is fixed when it is made."""


def read_state(parts: Mapping[str, Any], *others: Any) -> dict[str, Any]:
    """The state of the objects that an environment is made of.

    Args:
        parts: The objects by name; attributes that hold one of them are left out there. Data of MuJoCo come last.
        others: Objects whose state is that of the parts.

    Returns:
        Tensors, numbers, words and containers of these.

    Raises:
        UnknownStateError: If it cannot be written down.
    """
    known = {id(part) for part in (*parts.values(), *others)}
    return {name: _read_part(part, known) for name, part in parts.items()}


def write_state(parts: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Put objects into a state.

    Args:
        parts: The objects, made as those were that the state was read from.
        state: What ``read_state`` returned.
    """
    for name, part in parts.items():
        if isinstance(part, _MUJOCO.MjData):
            _write_simulation(part, state[name])
            continue
        attributes = vars(part)
        for attribute, held in state[name].items():
            attributes[attribute] = _decoded(held, attributes.get(attribute))


def _read_part(part: Any, known: set[int]) -> dict[str, Any]:
    if isinstance(part, _MUJOCO.MjData):
        return _read_simulation(part)
    found = {}
    for name, value in vars(part).items():
        if id(value) in known:
            continue
        try:
            found[name] = _encoded(value)
        except _FixedError:
            continue
        except UnknownStateError as error:
            raise UnknownStateError(f"{type(part).__name__}.{name} is {error}") from None
    return found


def _encoded(value: Any) -> Any:
    """A value as what a checkpoint may hold: plain ones as they are, others as a pair of their kind and content."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, np.generic | np.ndarray) and value.dtype.kind in "biuf":
        return "number" if isinstance(value, np.generic) else "array", _tensor(value)
    if isinstance(value, torch.Tensor):
        return "tensor", value.clone()
    if isinstance(value, torch.Generator):
        return "torch", value.get_state()
    if isinstance(value, np.random.Generator):
        return "generator", _encoded(dict(value.bit_generator.state))
    if isinstance(value, np.random.RandomState):
        return "legacy", _encoded(value.get_state())
    if isinstance(value, dict) and type(value) in (dict, collections.OrderedDict):
        return type(value).__name__, _encoded_all([entry for pair in value.items() for entry in pair])
    if isinstance(value, _CONTAINERS) and type(value) in _CONTAINERS:
        return type(value).__name__, _encoded_all(list(value))
    if isinstance(value, _FIXED) or (dataclasses.is_dataclass(value) and getattr(value, _PARAMETERS).frozen):
        raise _FixedError
    raise UnknownStateError(f"of type {type(value).__name__}")


def _encoded_all(values: list[Any]) -> list[Any]:
    """The entries of a container, which is fixed if one of them is."""
    fixed, found = False, []
    for value in values:
        try:
            found.append(_encoded(value))
        except _FixedError:
            fixed = True
    if fixed:
        raise _FixedError
    return found


def _decoded(held: Any, present: Any) -> Any:
    """The value that ``_encoded`` wrote down; generators and views keep their identity, and take its content."""
    if not isinstance(held, tuple):
        return held
    kind, content = held
    if kind in ("array", "number"):
        array = content.numpy().copy()
        if kind == "number":
            return array[()]
        if isinstance(present, np.ndarray) and present.base is not None and present.shape == array.shape:
            present[...] = array  # a view, such as of what MuJoCo holds
            return present
        return array
    if kind == "tensor":
        return content.clone()
    if kind == "torch":
        generator = present if isinstance(present, torch.Generator) else torch.Generator()
        return generator.set_state(content)
    if kind == "generator":
        state = _decoded(content, None)
        generator = present
        if not isinstance(generator, np.random.Generator):
            known = {bits.__name__: bits for bits in _BIT_GENERATORS}
            generator = np.random.Generator(known[state["bit_generator"]]())
        generator.bit_generator.state = state
        return generator
    if kind == "legacy":
        generator = present if isinstance(present, np.random.RandomState) else np.random.RandomState()
        generator.set_state(_decoded(content, None))
        return generator
    values = [_decoded(value, None) for value in content]
    if kind in ("dict", "OrderedDict"):
        pairs = zip(values[::2], values[1::2], strict=True)
        return collections.OrderedDict(pairs) if kind == "OrderedDict" else dict(pairs)
    if kind == "deque":
        return collections.deque(values, present.maxlen if isinstance(present, collections.deque) else None)
    return {"list": list, "tuple": tuple, "set": set}[kind](values)


def _read_simulation(data: Any) -> dict[str, Any]:
    """What a simulation would continue from, and what was derived from earlier states of it, which rewards may use."""
    return {
        "time": data.time,
        "data": _arrays(data, _OF_CONSTRAINTS),
        "model": _arrays(data.model, _ASSETS),
        "options": _arrays(data.model.opt, ()),
    }


def _write_simulation(data: Any, state: Mapping[str, Any]) -> None:
    _write_arrays(data.model, state["model"])
    _write_arrays(data.model.opt, state["options"])
    data.time = state["time"]
    _write_arrays(data, state["data"])
    _MUJOCO.mj_forward(data.model, data)  # makes the constraints
    _write_arrays(data, state["data"])


def _arrays(holder: Any, left_out: tuple[str, ...]) -> dict[str, torch.Tensor]:
    names = [name for name in dir(holder) if not name.startswith(("_", *left_out))]
    found = {name: getattr(holder, name) for name in names}
    return {name: _tensor(value) for name, value in found.items() if isinstance(value, np.ndarray) and value.size}


def _write_arrays(holder: Any, arrays: Mapping[str, torch.Tensor]) -> None:
    for name, held in arrays.items():
        present, array = getattr(holder, name), held.numpy()
        if present.shape == array.shape and not np.array_equal(present, array, equal_nan=True):
            present[...] = array


def _tensor(value: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(value))
