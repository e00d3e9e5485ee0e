"""Trained models as files that run without this package: programs of PyTorch (.pt2) and ONNX (.onnx)."""

import importlib
import importlib.metadata
import importlib.util
import json
import logging
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from flowmatch_rl.checkpoints import read_checkpoint
from flowmatch_rl.checks import UserError, check_range, check_word
from flowmatch_rl.files import atomic_path, out_of_space
from flowmatch_rl.inference.flow import load_flow
from flowmatch_rl.inference.kinds import kind_of
from flowmatch_rl.inference.occupancy import load_occupancy
from flowmatch_rl.inference.policy import load_policy_module
from flowmatch_rl.inference.programs import Program, policy_program
from flowmatch_rl.inference.sampling_programs import flow_program, occupancy_program
from flowmatch_rl.trust import allow_imports

METADATA_FILE = "metadata.json"
"""File inside a program of PyTorch that holds its metadata."""

_SUFFIXES = (".onnx", ".pt2")
_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_ANY_BATCH, _CHECKED_ROWS = 2, 16


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: The file.
        metadata: What is known of it, as the file holds it.
        difference: Largest difference between its output and that of PyTorch, for random inputs.
    """

    path: Path
    metadata: dict[str, str]
    difference: float

    def __str__(self) -> str:
        """One line."""
        known = self.metadata
        inputs = ", ".join(f"{name} {_shape(shape)}" for name, shape in json.loads(known["inputs"]).items())
        output = f"{known['output']} {_shape(json.loads(known['output_shape']))}"
        within = ""
        if known["output"] == "action":
            low, high = (_shown(json.loads(known[name])) for name in ("action_low", "action_high"))
            within = f" in {low} to {high}"
        step = f", every {known['step_s']} s" if known.get("step_s", "null") != "null" else ""
        size = self.path.stat().st_size / 1e3
        return (
            f"{self.path}: {known['kind']} of {known['checkpoint']}; {inputs} -> {output}{within}; {known['summary']}"
            f"{step}; {size:,.0f} kB, within {self.difference:.1g} of PyTorch"
        )


def export_checkpoint(
    checkpoint: str | Path,
    output: str | Path,
    batch_size: int | None = None,
    num_particles: int | None = None,
    num_steps: int | None = None,
    samples: bool = False,
    allow: Collection[str] = (),
) -> Exported:
    """Write the model of a checkpoint as a program that runs without this package.

    Its inputs are those of the model and the noise; units, squashing and bounds are inside. Numbers are float32.

    Args:
        checkpoint: Path of a ``.ckpt`` file of a policy, a flow or an occupancy.
        output: File to write: ``.onnx``, or ``.pt2`` for ``torch.export.load``.
        batch_size: Rows that each call takes; any number if None.
        num_particles: Particles that a policy acts by the best of, those of its evaluations if None; or future states
            that an occupancy draws for each state, 1 if None.
        num_steps: Steps of the sampler; the model's own if None.
        samples: Whether a policy acts by one particle, a plain sample of the policy for normal noise.
        allow: Packages whose classes the checkpoint may name, beside this one and those that were imported.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        UserError: If it is of another kind, the suffix is unknown, a package is missing, an argument does not fit,
            PyTorch cannot export the model, or the file cannot be written.
    """
    path = Path(output)
    check_word(_SUFFIXES, **{"the suffix of output": path.suffix})
    check_range("[1, inf)", batch_size=batch_size)
    if path.is_dir():
        raise UserError(f"output must be a file, {path} is a folder")
    if path.suffix == ".onnx":
        _check_packages()
    program = load_program(checkpoint, num_particles, num_steps, samples, allow)
    try:
        return _write(program, path, batch_size, str(checkpoint))
    except UserError:
        raise
    except Exception as error:  # PyTorch raises errors of many kinds about a network that it cannot export
        if out_of_space(error) is not None:
            raise
        if isinstance(error, OSError):
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"PyTorch cannot export {checkpoint}: {type(error).__name__}: {reason}") from error


def load_program(
    checkpoint: str | Path,
    num_particles: int | None = None,
    num_steps: int | None = None,
    samples: bool = False,
    allow: Collection[str] = (),
) -> Program:
    """The program of a checkpoint; arguments as those of ``export_checkpoint``.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        UserError: If it is of another kind, or an argument does not fit.
    """
    allow_imports(allow)
    kind = kind_of(read_checkpoint(checkpoint, memory_map=True))
    if kind == "a policy":
        return policy_program(load_policy_module(checkpoint, allow=allow).eval(), num_particles, num_steps, samples)
    if samples:
        raise UserError(
            f"samples must be false: only a policy acts by samples, {checkpoint} is of {kind or 'no model'}"
        )
    if kind == "an occupancy":
        occupancy = load_occupancy(checkpoint, allow=allow)
        return occupancy_program(occupancy.model, occupancy.action_bounds, num_particles, num_steps)
    if kind == "a flow":
        if num_particles is not None:
            raise UserError(
                f"num_particles must be null for a flow, which draws one sample per row, got {num_particles}"
            )
        return flow_program(load_flow(checkpoint, allow=allow).model, num_steps)
    raise UserError(
        f"{checkpoint} is a checkpoint of {kind or 'another model'}, expected a policy, a flow or an occupancy"
    )


@torch.no_grad()
def _write(program: Program, path: Path, batch_size: int | None, checkpoint: str) -> Exported:
    examples = program.examples(batch_size or _ANY_BATCH)
    module = program.module.requires_grad_(False)
    rows = batch_size or "batch"
    metadata = program.texts(rows) | {
        "output_shape": json.dumps([rows, *module(**examples).shape[1:]]),
        "checkpoint": checkpoint,
        "flowmatch_rl": importlib.metadata.version("flowmatch_rl"),
        "torch": torch.__version__,
    }
    shapes = None if batch_size else {name: {0: Dim("batch")} for name in examples}
    with _quiet():
        exported = torch.export.export(module, (), kwargs=examples, dynamic_shapes=shapes)
        for node in exported.graph.nodes:
            node.meta.pop("stack_trace", None)
        if path.suffix == ".pt2":
            _write_pt2(exported, path, metadata)
        else:
            _write_onnx(exported, path, metadata, batch_size is None)
        inputs = program.examples(batch_size or _CHECKED_ROWS, seed=1)
        output = run_exported(path, inputs)
    return Exported(path, metadata, float((output - module(**inputs)).abs().max()))


def _write_pt2(exported: ExportedProgram, path: Path, metadata: dict[str, str]) -> None:
    with atomic_path(path) as partial, partial.open("wb") as file:
        torch.export.save(exported, file, extra_files={METADATA_FILE: json.dumps(metadata)})


def _write_onnx(exported: ExportedProgram, path: Path, metadata: dict[str, str], any_batch: bool) -> None:
    converted = torch.onnx.export(exported, dynamo=True, verbose=False, output_names=[metadata["output"]])
    assert converted is not None
    for node in converted.model.graph:
        node.metadata_props.clear()  # lines of the source that it comes from, half of the file
    if any_batch:
        shape = converted.model.graph.inputs[0].shape
        assert shape is not None
        converted.rename_axes({str(shape[0]): "batch"})
    converted.model.metadata_props.update(metadata)
    with atomic_path(path) as partial:
        converted.save(partial, external_data=False)


def run_exported(path: Path, inputs: dict[str, Tensor]) -> Tensor:
    """Run a program that was exported, on the CPU.

    Args:
        path: The file.
        inputs: Its inputs by name.

    Returns:
        Its output.
    """
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(**inputs)
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {name: given.numpy() for name, given in inputs.items()})
    return torch.as_tensor(output)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what the exporter says about packages and functions that are not its user's."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _check_packages() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"an .onnx file needs the packages {', '.join(_NEEDED)}, {', '.join(missing)} not found; install the extra "
            "with pip install -e '.[export]', or write a .pt2 file"
        )


def _shape(shape: list[int | str]) -> str:
    return f"({', '.join(map(str, shape))})"


def _shown(numbers: list[float]) -> str:
    return f"[{', '.join(f'{number:g}' for number in numbers)}]"
