"""Tables, conditions, checkpoints and parts that do not fit the generative model: one line, and nothing is lost."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tests.cli.support import CONF, PENDULUM, TWO_MOONS, Outcome, arguments, call, flow_arguments
from tests.combinations import one_test

TABLE = CONF / "flow" / "table.yaml"
PRESETS = CONF / "flow" / "presets"
SMALL = {"data__dataset__init_args__num_samples": 600}
ROWS = np.arange(60)
COLUMNS = {"height": np.sin(ROWS), "weight": np.cos(ROWS), "kind": [f"sort {row % 3}" for row in ROWS]}


def assert_refused(outcome: Outcome, *words: str, code: int = 2) -> None:
    assert outcome.code == code, outcome.err
    assert len(outcome.error_lines) == 1, outcome.err
    assert all(word in outcome.err for word in words), outcome.err


def fit_table(folder: Path, table: pd.DataFrame, **changes: object) -> Outcome:
    table.to_csv(folder / "people.csv", index=False)
    options = {"data__dataset__init_args__path": folder / "people.csv"} | changes
    return call(flow_arguments("fit", TABLE, trainer__default_root_dir=folder / "run", **options))


WITH_GAP = COLUMNS | {"weight": np.where(ROWS == 7, np.nan, COLUMNS["weight"])}
WITH_WORD = COLUMNS | {"weight": [*COLUMNS["weight"][:-1], "unknown"]}


@one_test
@pytest.mark.parametrize(
    ("columns", "changes", "words"),
    [
        (WITH_GAP, {}, ["'weight'", "lacks values", "line 9", "'drop'"]),
        (COLUMNS | {"weight": np.where(ROWS == 7, np.inf, 0.0)}, {}, ["'weight'", "not finite", "line 9"]),
        (COLUMNS | {"weight": 1.5}, {}, ["'weight'", "1.5", "48 training rows"]),
        (COLUMNS, {"columns": "[height,kind]"}, ["'kind'", "'sort 0'", "line 2", "not a number"]),
        (WITH_WORD, {}, ["'weight'", "'unknown'", "line 61"]),
        (COLUMNS, {"columns": "[heigth]"}, ["no column 'heigth'", "'height'"]),
        (COLUMNS, {"conditions": "[kind]"}, ["'kind'", "not a number"]),
        (COLUMNS, {"columns": "[height]", "conditions": "[height]"}, ["'height'", "2 times"]),
        (COLUMNS, {"batch_size": 49}, ["batch_size 49", "48 training rows"]),
        ({name: values[:4] for name, values in COLUMNS.items()}, {}, ["too few rows", "4 make"]),
        ({"kind": COLUMNS["kind"]}, {}, ["no column to model"]),
        ({name: values[:0] for name, values in COLUMNS.items()}, {}, ["people"]),
    ],
    ids=[
        "gap",
        "infinite",
        "constant",
        "text",
        "word",
        "unknown",
        "condition",
        "twice",
        "batch",
        "few",
        "none",
        "empty",
    ],
)
def test_table_that_does_not_fit_is_refused_by_the_name_of_its_column(columns, changes, words, tmp_path) -> None:
    outcome = fit_table(tmp_path, pd.DataFrame(columns), **{f"data__{name}": value for name, value in changes.items()})
    assert_refused(outcome, *words)
    assert not (tmp_path / "run").exists()


@one_test
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("nowhere.csv", None, ["nowhere.csv"]),
        ("empty.csv", b"", ["empty.csv", "cannot read"]),
        ("broken.parquet", b"no parquet", ["broken.parquet", "cannot read"]),
        ("table.xlsx", b"...", ["table.xlsx", ".parquet"]),
    ],
)
def test_file_that_is_no_table_is_refused_by_name(name, content, words, tmp_path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    options = {"data__dataset__init_args__path": tmp_path / name, "trainer__default_root_dir": tmp_path / "run"}
    assert_refused(call(flow_arguments("fit", TABLE, **options)), *words)
    assert not (tmp_path / "run").exists()


@one_test
@pytest.mark.parametrize(
    ("configs", "changes", "words"),
    [
        ([PRESETS / "diffusion.yaml"], {"t_min": 0.0}, ["noise", "t_min must be above 0"]),
        ([], {"guidance": 2.0}, ["guidance 2.0", "condition_dropout"]),
        ([], {"sampler": "SdeSampler", "source": "UniformSource"}, ["standard normal source", "UniformSource"]),
        ([PRESETS / "score.yaml"], {"source": "UniformSource"}, ["N(0, I)", "UniformSource"]),
        ([], {"sampler": "AverageVelocitySampler"}, ["AverageVelocitySampler", "MeanFlow"]),
        ([], {"source": "MixtureSource", "source__init_args__means": "[[0, 0, 0]]"}, ["3", "2"]),
        ([], {"t_min": 0.5}, ["t_min", "0.5"]),
    ],
    ids=["noise", "guidance", "sde", "score", "average", "mixture", "t_min"],
)
def test_parts_that_do_not_go_together_are_refused(configs, changes, words, tmp_path) -> None:
    options = SMALL | {f"model__{name}": value for name, value in changes.items()}
    options |= {"model__likelihood__solver__init_args__num_steps": None, "trainer__default_root_dir": tmp_path / "run"}
    assert_refused(call(flow_arguments("fit", TWO_MOONS, *configs, **options)), *words)
    assert not (tmp_path / "run").exists()


def test_model_of_actions_is_refused_samples(tmp_path) -> None:
    args = ["fit", f"-c={PENDULUM}", "--data=SampleData", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    assert_refused(call(args), "ReverseFlowActorCritic needs observation_dim", "SampleData gives schema")


def test_model_of_samples_is_refused_an_environment(tmp_path) -> None:
    options = {name: None for name in arguments_of_the_model()} | {"trainer__default_root_dir": tmp_path / "run"}
    outcome = call([*arguments("fit", PENDULUM, **options), "--model=FlowMatchingModel"])
    assert_refused(outcome, "FlowMatchingModel needs schema", "OnlineData gives observation_dim")


def arguments_of_the_model() -> list[str]:
    names = [argument[2:].partition("=")[0] for argument in arguments("fit") if argument.startswith("--model.")]
    return [name.replace(".", "__") for name in names]


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """Checkpoint of a run on a table with conditions."""
    folder = tmp_path_factory.mktemp("given")
    outcome = fit_table(folder, pd.DataFrame(COLUMNS | {"age": ROWS}), **CONDITIONS)
    assert outcome.code == 0, outcome.err
    return folder / "run" / "checkpoints" / "last.ckpt"


CONDITIONS = {"data__conditions": "[age]", "data__classes": "[kind]"}


def evaluate(command: str, checkpoint: Path, table: Path, folder: Path, **changes: object) -> Outcome:
    sizes: dict[str, object] = {"model__network__hidden_dim": None, "model__network__num_blocks": None}
    options = sizes | {
        "data__dataset__init_args__path": table,
        "ckpt_path": checkpoint,
        "trainer__default_root_dir": folder,
    }
    return call(flow_arguments(command, TABLE, **(options | CONDITIONS | changes)))


@one_test
@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (pd.DataFrame({"kind": ["sort 1"]}), ["no column 'age'"]),
        (pd.DataFrame({"age": [1.0]}), ["no column 'kind'"]),
        (pd.DataFrame({"age": [1.0, np.nan], "kind": "sort 1"}), ["'age'", "missing", "line 3"]),
        (pd.DataFrame({"age": [1.0], "kind": "sort 9"}), ["'kind'", "'sort 9'", "line 2", "sort 0, sort 1, sort 2"]),
        (pd.DataFrame({"age": [], "kind": []}), ["wanted.csv", "no rows"]),
        (None, ["wanted.csv"]),
    ],
    ids=["no number", "no class", "gap", "unknown class", "empty", "missing"],
)
def test_file_of_conditions_that_does_not_fit_is_refused(wanted, words, given, tmp_path) -> None:
    if wanted is not None:
        wanted.to_csv(tmp_path / "wanted.csv", index=False)
    people = given.parents[2] / "people.csv"
    folder = tmp_path / "run"
    outcome = evaluate("predict", given, people, folder, data__predict_conditions=tmp_path / "wanted.csv")
    assert_refused(outcome, *words)
    assert not (folder / "samples.csv").exists()


@one_test
@pytest.mark.parametrize("command", ["fit", "test", "predict"])
@pytest.mark.parametrize(
    ("columns", "changes", "words"),
    [
        (("width", "depth"), {}, ["height", "weight", "lacks 'height'"]),
        (("height", "weight"), {"data__classes": None}, ["kind"]),
        (("height", "weight", "depth"), {}, ["height", "weight", "depth"]),
    ],
    ids=["names", "conditions", "more"],
)
def test_checkpoint_of_other_columns_is_refused_and_kept(command, columns, changes, words, given, tmp_path) -> None:
    table = pd.DataFrame({name: np.sin(place + ROWS) for place, name in enumerate(columns)} | {"age": ROWS})
    table.assign(kind=COLUMNS["kind"]).to_csv(tmp_path / "other.csv", index=False)
    before = given.read_bytes()
    assert_refused(evaluate(command, given, tmp_path / "other.csv", tmp_path / "run", **changes), *words)
    assert given.read_bytes() == before


def test_checkpoint_of_other_classes_is_refused(given, tmp_path) -> None:
    table = pd.DataFrame(COLUMNS | {"age": ROWS, "kind": [f"sort {row % 4}" for row in ROWS]})
    table.to_csv(tmp_path / "other.csv", index=False)
    outcome = evaluate("test", given, tmp_path / "other.csv", tmp_path / "run")
    assert_refused(outcome, "'kind'", "sort 0, sort 1, sort 2 of", "sort 3")


def test_network_of_another_shape_than_the_checkpoint_is_refused(given, tmp_path) -> None:
    people = given.parents[2] / "people.csv"
    shape = {"model__network__hidden_dim": 24, "model__network__num_blocks": 1}
    outcome = evaluate("test", given, people, tmp_path / "run", **shape)
    assert_refused(outcome, "checkpoint does not fit", "flow.network.", "24")


@one_test
@pytest.mark.parametrize("content", [b"", b"no checkpoint", None], ids=["empty", "other", "weights"])
@pytest.mark.parametrize("command", ["fit", "test", "predict"])
def test_file_that_is_no_checkpoint_is_refused_by_name(command, content, given, tmp_path) -> None:
    path, people = tmp_path / "not.ckpt", given.parents[2] / "people.csv"
    if content is None:
        torch.save({"state_dict": {}}, path)
    else:
        path.write_bytes(content)
    words = "is damaged: it is empty" if content == b"" else "is not a checkpoint"
    assert_refused(evaluate(command, path, people, tmp_path / "run"), f"not.ckpt {words}")
    assert not (tmp_path / "run").exists()


def test_teacher_of_other_columns_is_refused(given, tmp_path) -> None:
    options = SMALL | {"model__reflow__teacher": given, "trainer__default_root_dir": tmp_path / "run"}
    outcome = call(flow_arguments("fit", TWO_MOONS, PRESETS / "reflow.yaml", **options))
    assert_refused(outcome, "teacher has the columns ('height', 'weight')", "('x', 'y')")


def test_teacher_that_is_missing_is_refused(tmp_path) -> None:
    options = {"model__reflow__teacher": "no/teacher.ckpt", "trainer__default_root_dir": tmp_path / "run"}
    outcome = call(flow_arguments("fit", TWO_MOONS, PRESETS / "reflow.yaml", **SMALL, **options))
    assert_refused(outcome, "no/teacher.ckpt")
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_evaluation_of_a_model_that_was_never_trained_is_refused(command, tmp_path) -> None:
    outcome = call(flow_arguments(command, TWO_MOONS, **SMALL, trainer__default_root_dir=tmp_path / "run"))
    assert_refused(outcome, command, "--ckpt_path")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("interval", [1, 100])
def test_loss_that_explodes_ends_the_run_in_one_line_and_keeps_no_broken_checkpoint(interval, tmp_path) -> None:
    options = {"model__optimizer__learning_rate": 1e30, "trainer__log_every_n_steps": interval}
    outcome = call(flow_arguments("fit", TWO_MOONS, **SMALL, **options, trainer__default_root_dir=tmp_path))
    assert_refused(outcome, "not finite", "lower the learning rate", code=1)
    assert not list(tmp_path.glob("checkpoints/*"))


@pytest.mark.parametrize("name", ["columns", "conditions", "classes"])
def test_column_without_brackets_is_refused_with_an_example(name) -> None:
    outcome = call(["fit", f"-c={TABLE}", f"--data.{name}=height"])
    assert_refused(outcome, f"{name}: expected a list, such as [height]")


def test_path_that_cannot_be_written_is_refused_before_any_work(given, tmp_path) -> None:
    (tmp_path / "file").write_text("precious")
    people = given.parents[2] / "people.csv"
    samples = evaluate("predict", given, people, tmp_path / "run", samples__path=tmp_path / "file" / "samples.csv")
    assert_refused(samples, "cannot write", "file/samples.csv", code=1)
    assert_refused(evaluate("predict", given, people, tmp_path / "file"), str(tmp_path / "file"))
    assert_refused(evaluate("predict", given.parent, people, tmp_path / "run"), str(given.parent))
    assert (tmp_path / "file").read_text() == "precious"
