"""Trained models in MLflow: each logged once with what it takes and returns, and registered if the user named it."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types.schema import Schema, TensorSpec

STEP = "flowmatch_rl.step"
"""Tag of a model with the step that it was trained to, by which one that was made is found again."""

_VERSIONS = "mlflow.modelVersions"
_ADDRESS = "MLFLOW_TRACKING_URI"
_NEEDED = ("flowmatch_rl", "torch", "tensordict", "torchrl", "lightning", "numpy", "mlflow")


def log_model(client: MlflowClient, run_id: str, file: Path, stated: dict[str, Any]) -> None:
    """Log a model, unless the run has it: what an attempt that broke off has left is completed.

    Args:
        client: Client of the tracking.
        run_id: The run that trained it.
        file: Its file.
        stated: The journal's entry: ``name``, ``step``, ``registered``, the name to register it under or None,
            ``metrics``, names of those that it was tested by, and how it is loaded, see ``save_model``.
    """
    model = _find(client, run_id, stated) or _create(client, run_id, stated)
    if model.status != LoggedModelStatus.READY:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "model"
            save_model(place, file, stated, model, run_id)
            client.log_model_artifacts(model.model_id, str(place))
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    _link(client, run_id, model.model_id, stated)
    if stated["registered"] is not None:
        _register(client, run_id, model, stated["registered"])


def save_model(folder: Path, file: Path, stated: dict[str, Any], model: LoggedModel, run_id: str) -> None:
    """Write a folder that ``mlflow.pyfunc.load_model`` loads: the file, and what is known of it.

    Args:
        folder: The folder, which must not exist.
        file: The model's file.
        stated: ``loader``, the module that loads the file; ``inputs`` and ``outputs``, dimensions by name, of numbers
            in single precision; ``example``, rows of the inputs by name; ``options`` that the loader takes, with their
            defaults; ``metadata``.
        model: What MLflow knows of it.
        run_id: The run that trained it.
    """
    inputs, outputs = (
        Schema([TensorSpec(np.dtype(np.float32), (-1, dim), name) for name, dim in stated[side].items()])
        for side in ("inputs", "outputs")
    )
    mlflow.pyfunc.save_model(
        str(folder),
        loader_module=stated["loader"],
        data_path=str(file),
        signature=ModelSignature(inputs, outputs),
        input_example={name: np.asarray(rows, np.float32) for name, rows in stated["example"].items()},
        pip_requirements=[_requirement(name) for name in _NEEDED],
        metadata=stated["metadata"],
        model_config=stated["options"],  # which a user may change when it is loaded
        mlflow_model=Model(
            artifact_path=model.artifact_location,
            run_id=run_id,
            model_uuid=model.model_id,
            model_id=model.model_id,
            metadata=stated["metadata"],
        ),
    )


def _requirement(name: str) -> str:
    return f"{name}=={metadata.version(name).partition('+')[0]}"


def _find(client: MlflowClient, run_id: str, stated: dict[str, Any]) -> LoggedModel | None:
    """The model, if an earlier attempt made it."""
    experiment = client.get_run(run_id).info.experiment_id
    known = client.search_logged_models([experiment], f"source_run_id = '{run_id}' AND name = '{stated['name']}'")
    made = [model for model in known if model.tags.get(STEP) == str(stated["step"])]
    return made[0] if made else None


def _create(client: MlflowClient, run_id: str, stated: dict[str, Any]) -> LoggedModel:
    run = client.get_run(run_id)
    return client.create_logged_model(
        run.info.experiment_id,
        stated["name"],
        run_id,
        tags={STEP: str(stated["step"])},
        params=run.data.params,
        model_type=stated["metadata"]["kind"],
    )


def _link(client: MlflowClient, run_id: str, model_id: str, stated: dict[str, Any]) -> None:
    """Show the model with its run, and the metrics of its test with the model."""
    run = client.get_run(run_id)
    if all(output.model_id != model_id for output in (run.outputs.model_outputs if run.outputs else [])):
        client.log_outputs(run_id, [LoggedModelOutput(model_id, stated["step"])])
    # The same values at the same times: the run keeps one of each.
    measured = [
        Metric(value.key, value.value, value.timestamp, value.step, model_id=model_id, run_id=run_id)
        for name in stated["metrics"]
        for value in client.get_metric_history(run_id, name)[-1:]
    ]
    if measured:
        client.log_batch(run_id, measured)


def _register(client: MlflowClient, run_id: str, model: LoggedModel, name: str) -> None:
    """Make the model a version of a registered one, unless it is."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
            raise
    source = f"models:/{model.model_id}"
    with _default_tracking(client.tracking_uri):
        known = [v for v in client.search_model_versions(f"name = '{name}'") if v.source == source]
        version = known[0] if known else client.create_model_version(name, source, run_id, model_id=model.model_id)
    if _VERSIONS not in model.tags:  # from which its page reads that it is registered
        versions = [{"name": name, "version": str(version.version)}]
        client.set_logged_model_tags(model.model_id, {_VERSIONS: json.dumps(versions)})


@contextlib.contextmanager
def _default_tracking(address: str) -> Iterator[None]:
    """Let MLflow find a model where it was logged, in a ``with`` block: a local registry looks in the default place."""
    before = os.environ.get(_ADDRESS)
    os.environ[_ADDRESS] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ADDRESS]
        else:
            os.environ[_ADDRESS] = before
