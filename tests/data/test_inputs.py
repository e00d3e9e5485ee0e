"""What a run takes its data from is named by its place, its size and a digest of what it holds."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from flowmatch_rl.data import BanditData, DensityTable, PolicyData, SampleData, TableFile
from flowmatch_rl.data.inputs import recipe_input, store_input, stored_inputs
from flowmatch_rl.envs import GymnasiumEnvironment
from flowmatch_rl.testbeds import FourModes
from tests.data.toy_rows import COLUMNS, toy_store


def table(path: Path, *, first: float = 0.0) -> SampleData:
    values = np.arange(100.0)
    values[0] = first
    pd.DataFrame({"a": values, "b": values**2, "kind": ["x", "y"] * 50}).to_csv(path, index=False)
    return SampleData(TableFile(str(path)), batch_size=8, eval_samples=4, conditions=["b"])


def test_a_table_is_named_by_its_file_whose_digest_changes_with_a_number(tmp_path: Path) -> None:
    (given,) = table(tmp_path / "a.csv").inputs
    assert (given.name, given.source, given.rows) == ("a", str(tmp_path / "a.csv"), 100)
    assert (given.columns, given.is_file, given.context) == (("a", "b"), True, "training")
    (again,), (other,) = table(tmp_path / "a.csv").inputs, table(tmp_path / "a.csv", first=1.0).inputs
    assert again == given
    assert (len(other.digest), other.digest == given.digest) == (32, False)


def test_a_recipe_is_known_by_what_it_says_and_not_by_where_it_lies_in_memory() -> None:
    (drawn,) = SampleData(DensityTable(num_samples=100), batch_size=8, eval_samples=4).inputs
    (other,) = SampleData(DensityTable(num_samples=101), batch_size=8, eval_samples=4).inputs
    assert (drawn.rows, drawn.is_file, drawn.digest == other.digest) == (100, False, False)

    def recipe() -> Any:
        return lambda: None

    kept = recipe()
    assert recipe_input("a", [kept]).digest == recipe_input("a", [recipe()]).digest
    (bandit,) = BanditData(FourModes(), num_updates=1).inputs
    assert bandit.name == FourModes().label


def test_a_data_set_is_known_by_its_checksums_and_its_environment_is_for_what_the_run_does_in_it(
    tmp_path: Path,
) -> None:
    toy_store(tmp_path / "set")
    (given,) = PolicyData(str(tmp_path / "set"), batch_size=4, held_out=0.5).inputs
    assert (given.name, given.source, given.rows, given.columns) == ("set", str(tmp_path / "set"), 10, COLUMNS)
    copy = toy_store(tmp_path / "elsewhere" / "set", provenance={"made_by": "another date"})
    assert store_input(copy).digest == given.digest
    assert store_input(toy_store(tmp_path / "other", 11)).digest != given.digest
    pendulum = GymnasiumEnvironment("Pendulum-v1")
    for steps, context in ((None, "evaluation"), (30, "training")):
        _, acts = stored_inputs(copy, pendulum, steps)
        assert (acts.name, acts.rows, acts.context) == ("Pendulum-v1", steps, context)
