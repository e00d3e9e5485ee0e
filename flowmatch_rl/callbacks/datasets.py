"""What a run takes its data from, as MLflow has it: the data sets of a run."""

import json
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag

_CONTEXT = "mlflow.data.context"


def as_dataset(values: dict[str, Any]) -> DatasetInput:
    """An input of a run as MLflow keeps it.

    Args:
        values: Attributes of a ``flowmatch_rl.data.inputs.DataInput`` by name.
    """
    is_file, columns, rows = values["is_file"], values["columns"], values["rows"]
    source = {"uri": Path(values["source"]).as_uri()} if is_file else {"tags": {"recipe": values["source"]}}
    schema = [{"type": "float", "name": name, "required": True} for name in columns]
    dataset = Dataset(
        name=values["name"],
        digest=values["digest"],
        source_type="local" if is_file else "code",  # those are kinds that ``mlflow.data.get_source`` knows
        source=json.dumps(source),
        schema=json.dumps({"mlflow_colspec": schema}) if schema else None,
        profile=None if rows is None else json.dumps({"num_rows": rows, "num_elements": rows * max(1, len(columns))}),
    )
    return DatasetInput(dataset, [InputTag(_CONTEXT, values["context"])])
