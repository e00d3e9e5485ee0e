import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from flowmatch_rl.callbacks.samples import SampleWriter
from flowmatch_rl.checks import RunError
from flowmatch_rl.schema import TableSchema
from tests.callbacks.stand_ins import stand_in_trainer

SCHEMA = TableSchema(
    columns=("file", "width"),
    shift=(0.0, 0.0),
    scale=(1.0, 1.0),
    condition_columns=("age",),
    condition_shift=(10.0,),
    condition_scale=(2.0,),
    class_columns=("kind",),
    classes=(("green", "red"),),
)
MODULE: Any = SimpleNamespace(schema=SCHEMA)
PLAIN: Any = SimpleNamespace(schema=TableSchema(("file", "width"), (0.0, 0.0), (1.0, 1.0)))
SUFFIXES = ("csv", "parquet", "npz")


def predictions(conditioned: bool = True) -> list[dict[str, Tensor]]:
    """Two batches, of three rows and of one."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for rows in (3, 1):
        batch = {"sample": torch.randn(rows, 2, generator=generator, dtype=torch.float64)}
        if conditioned:
            kinds = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])[:rows]
            batch["condition"] = torch.cat([torch.arange(1.0, rows + 1.0)[:, None], kinds], dim=1)
        batches.append(batch)
    return batches


def write(folder: Path, writer: SampleWriter, module: Any = MODULE, conditioned: bool = True, **changes: Any) -> None:
    trainer = stand_in_trainer(folder, **{"world_size": 1, "global_rank": 0} | changes)
    writer.on_predict_start(trainer, module)
    writer.write_on_epoch_end(trainer, module, predictions(conditioned), [])


def read(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".npz":
        return dict(np.load(path))
    table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    return {str(name): table[name].to_numpy() for name in table}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_columns_come_back_as_they_were_in_their_own_units(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new" / f"out.{suffix}"
    write(tmp_path, SampleWriter(str(path)))
    table = read(path)
    assert list(table) == ["file", "width", "age", "kind"]
    samples = torch.cat([batch["sample"] for batch in predictions()]).numpy()
    np.testing.assert_array_equal(np.stack([table["file"], table["width"]], axis=1), samples)
    np.testing.assert_array_equal(table["age"], [12.0, 14.0, 16.0, 12.0])
    assert list(table["kind"]) == ["red", "green", "red", "red"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_columns_of_integers_are_written_as_integers(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out.{suffix}"
    held = predictions()
    for batch in held:
        batch["sample"] = batch["sample"].round()
    module: Any = SimpleNamespace(schema=dataclasses.replace(SCHEMA, integers=("width", "age")))
    trainer = stand_in_trainer(tmp_path, world_size=1, global_rank=0)
    SampleWriter(str(path)).write_on_epoch_end(trainer, module, held, [])
    kinds = {name: values.dtype.kind for name, values in read(path).items()}
    assert (kinds["file"], kinds["width"], kinds["age"]) == ("f", "i", "i")
    assert read(path)["age"].tolist() == [12, 14, 16, 12]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_samples_without_conditions_have_their_own_columns_only(tmp_path: Path, suffix: str) -> None:
    write(tmp_path, SampleWriter(str(tmp_path / f"out.{suffix}")), PLAIN, conditioned=False)
    assert list(read(tmp_path / f"out.{suffix}")) == ["file", "width"]


def test_an_npy_file_holds_the_samples_alone(tmp_path: Path) -> None:
    write(tmp_path, SampleWriter(str(tmp_path / "out.npy")))
    samples = torch.cat([batch["sample"] for batch in predictions()]).numpy()
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), samples)


def test_samples_go_to_the_run_s_folder_by_default_and_one_line_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, SampleWriter())
    assert capsys.readouterr().out == f"4 samples in {tmp_path / 'samples.csv'}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["samples.csv"]


def test_every_process_writes_a_file_of_its_own(tmp_path: Path) -> None:
    for rank in (0, 1):
        write(tmp_path, SampleWriter(str(tmp_path / "out.parquet")), world_size=2, global_rank=rank)
    assert {path.name for path in tmp_path.iterdir()} == {"out_0.parquet", "out_1.parquet"}


@pytest.mark.parametrize("name", ["out.txt", "out", "out.csv.gz"])
def test_an_unknown_suffix_is_refused_at_once(name: str) -> None:
    with pytest.raises(ValueError, match=r"\.csv, \.parquet, \.npz, \.npy, got 'out"):
        SampleWriter(name)


def test_a_file_that_exists_is_replaced_only_if_asked(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("precious")
    trainer = stand_in_trainer(tmp_path, world_size=1, global_rank=0)
    with pytest.raises(RunError, match=f"{path} exists"):
        SampleWriter(str(path)).on_predict_start(trainer, MODULE)
    with pytest.raises(RunError, match=f"{path} exists"):  # it has come into being since
        SampleWriter(str(path)).write_on_epoch_end(trainer, MODULE, predictions(), [])
    assert path.read_text() == "precious"
    write(tmp_path, SampleWriter(str(path), overwrite=True))
    assert len(pd.read_csv(path)) == 4


def test_a_file_that_cannot_be_finished_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out.npz"
    module: Any = SimpleNamespace(schema=TableSchema(("file", "a/\ud800"), (0.0, 0.0), (1.0, 1.0)))
    with pytest.raises(UnicodeEncodeError):
        write(tmp_path, SampleWriter(str(path)), module, conditioned=False)
    assert list(tmp_path.iterdir()) == []
