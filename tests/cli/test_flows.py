"""The generative model from the command line: training, samples in files, resuming."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from flowmatch_rl.inference import load_flow
from flowmatch_rl.solvers import Euler
from tests.cli.support import CONF, TWO_MOONS, Outcome, call, flow_arguments

TASKS = sorted((CONF / "flow").glob("*.yaml"))
PRESETS = sorted((CONF / "flow" / "presets").glob("*.yaml"))
TABLE = CONF / "flow" / "table.yaml"
SMALL = {"data__dataset__init_args__num_samples": 600}
UNSTATED = dict.fromkeys(("model__network__hidden_dim", "model__network__num_blocks"))
UNSTATED |= {"model__likelihood__solver__init_args__num_steps": None}
UNSTATED |= dict.fromkeys(("model__tests__likelihood_samples", "model__tests__transport_samples"))
"""Leaves the model's sizes to the checkpoint."""
EULER = json.dumps({"class_path": "Euler", "init_args": {"num_steps": 3}})


def people(rows: int = 120) -> pd.DataFrame:
    """Heights in metres, weights in grams, ages, and a class that moves the height."""
    rng = np.random.default_rng(0)
    kind = rng.choice(["short", "tall"], rows)
    height = np.where(kind == "tall", 1.9, 1.5) + 0.02 * rng.standard_normal(rows)
    return pd.DataFrame(
        {"height": height, "weight": 7e4 + 9e3 * rng.standard_normal(rows), "age": rng.uniform(20, 60, rows)}
        | {"kind": kind}
    )


def command(name: str, folder: Path, *configs: Path, **changes: object) -> Outcome:
    outcome = call(flow_arguments(name, *configs, trainer__default_root_dir=folder, **changes))
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    return outcome


def last_of(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def trained_state(folder: Path) -> dict[str, Any]:
    """The checkpoint of a run, after a look at what every run must leave."""
    checkpoint = torch.load(last_of(folder), weights_only=True)
    assert all(bool(torch.isfinite(weight).all()) for weight in checkpoint["state_dict"].values())
    return checkpoint


def probes(name: str, **init_args: object) -> str:
    return json.dumps([{"class_path": f"tests.cli.probes.{name}", "init_args": init_args}])


@pytest.fixture(scope="module")
def moons(tmp_path_factory) -> Path:
    """Folder of a run on two moons that samples in three Euler steps."""
    folder = tmp_path_factory.mktemp("moons")
    command("fit", folder, TWO_MOONS, **SMALL, model__sampler__init_args__solver=EULER)
    return folder


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> tuple[Path, dict[str, object]]:
    """Folder of a run on a table with conditions, and the options of its data."""
    folder = tmp_path_factory.mktemp("given")
    people().to_csv(folder / "people.csv", index=False)
    options: dict[str, object] = {
        "data__dataset__init_args__path": folder / "people.csv",
        "data__conditions": "[age]",
        "data__classes": "[kind]",
    }
    command("fit", folder, TABLE, **options)
    return folder, options


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_every_task_trains_and_ends_with_a_summary(path, tmp_path) -> None:
    people().drop(columns="kind").to_csv(tmp_path / "people.csv", index=False)
    sizes = {"data__dataset__init_args__path": tmp_path / "people.csv"} if path == TABLE else SMALL
    outcome = command("fit", tmp_path, path, **sizes)
    assert "\nlearns " in outcome.out
    assert outcome.last_words == ["distance", "likelihood", "checkpoint", "checkpoint", "figure"]
    assert ("of the true distribution" in outcome.out) == (path != TABLE and "class" not in path.stem)
    checkpoint = trained_state(tmp_path)
    assert checkpoint["global_step"] == 12
    assert checkpoint["SampleData"]["row"] + checkpoint["SampleData"]["passes"] * (96 if path == TABLE else 480) == 192
    columns = ("height", "weight", "age") if path == TABLE else ("x", "y")
    assert checkpoint["hyper_parameters"]["schema"].columns == columns
    assert load_flow(last_of(tmp_path)).columns == columns


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_lies_over_two_moons(preset, moons, tmp_path) -> None:
    stated = yaml.safe_load(preset.read_text())["model"]["init_args"]
    options: dict[str, object] = dict(SMALL)
    if "likelihood" in stated:
        options["model__likelihood__solver__init_args__num_steps"] = None
    if preset.stem == "reflow":
        options |= {"model__reflow__teacher": last_of(moons), "model__reflow__num_pairs": 100}
        stated["reflow"] |= {"teacher": str(last_of(moons)), "num_pairs": 100}
    outcome = command("fit", tmp_path, TWO_MOONS, preset, **options)
    assert "distance" in outcome.out
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())["model"]["init_args"]
    assert_contains(written, stated)
    assert trained_state(tmp_path)["global_step"] == 12
    assert np.isfinite(load_flow(last_of(tmp_path)).sample(5)).all()


@pytest.mark.usefixtures("without_figures")
def test_a_run_that_is_not_tested_ends_with_where_its_files_are(tmp_path) -> None:
    outcome = command("fit", tmp_path, TWO_MOONS, **SMALL, trainer__limit_test_batches=0)
    assert outcome.last_words == ["checkpoint", "checkpoint", "figure"]
    assert json.loads((tmp_path / "result.json").read_text())["metrics"] == {}


def assert_contains(written: Any, stated: Any) -> None:
    """Whether a written configuration holds what a shorter one states."""
    if isinstance(stated, dict):
        for name, value in stated.items():
            assert_contains(written[name], value)
    elif isinstance(written, str):
        assert written.rpartition(".")[2] == str(stated).rpartition(".")[2]
    else:
        assert written == stated


def read(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".npz":
        return dict(np.load(path))
    table = pd.read_csv(path, float_precision="round_trip") if path.suffix == ".csv" else pd.read_parquet(path)
    return {name: table[name].to_numpy() for name in table}


def test_prediction_writes_the_same_samples_in_every_format(given, tmp_path) -> None:
    folder, options = given
    tables = {}
    for suffix in ("csv", "parquet", "npz", "npy"):
        path = tmp_path / f"samples.{suffix}"
        more = options | UNSTATED | {"ckpt_path": last_of(folder), "samples__path": path}
        outcome = command("predict", tmp_path, TABLE, **more)
        assert outcome.out == f"20 samples in {path}\n"
        tables[suffix] = {"": np.load(path)} if suffix == "npy" else read(path)
    first = tables["csv"]
    assert list(first) == ["height", "weight", "age", "kind"]
    for suffix in ("parquet", "npz"):
        assert list(tables[suffix]) == list(first)
        for name, values in first.items():
            np.testing.assert_array_equal(tables[suffix][name], values)
    np.testing.assert_array_equal(tables["npy"][""], np.column_stack([first["height"], first["weight"]]))


def test_predicted_samples_are_in_the_units_of_the_data_and_given_its_conditions(given, tmp_path) -> None:
    folder, options = given
    command("predict", tmp_path, TABLE, **options, **UNSTATED, data__predict_samples=500, ckpt_path=last_of(folder))
    drawn, data = read(tmp_path / "samples.csv"), people()
    # Hardly trained, the flow still is about the standardised source.
    for name in ("height", "weight"):
        assert abs(drawn[name].mean() - data[name].mean()) < 4.0 * data[name].std(), name
        assert 0.25 < drawn[name].std() / data[name].std() < 4.0, name
    pairs = {(kind, round(age, 4)) for kind, age in zip(data["kind"], data["age"], strict=True)}
    assert {(kind, round(age, 4)) for kind, age in zip(drawn["kind"], drawn["age"], strict=True)} <= pairs


def test_prediction_draws_one_sample_for_each_row_of_a_file_of_conditions(given, tmp_path) -> None:
    folder, options = given
    wanted = pd.DataFrame({"kind": ["tall", "short", "tall"], "note": ["a", "b", "c"], "age": [30, 41.5, 77]})
    wanted.to_csv(tmp_path / "wanted.csv", index=False)
    more = options | UNSTATED | {"data__predict_conditions": tmp_path / "wanted.csv", "data__predict_batch_size": 2}
    outcome = command("predict", tmp_path, TABLE, **more, ckpt_path=last_of(folder))
    drawn = read(tmp_path / "samples.csv")
    assert "3 samples" in outcome.out
    assert list(drawn["kind"]) == list(wanted["kind"])
    np.testing.assert_allclose(drawn["age"], wanted["age"], rtol=1e-6)
    assert len(set(drawn["height"])) == 3


def test_prediction_replaces_a_file_only_when_asked(moons, tmp_path) -> None:
    path = tmp_path / "samples.csv"
    path.write_text("precious")
    more = SMALL | UNSTATED | {"trainer__default_root_dir": tmp_path, "ckpt_path": last_of(moons)}
    refused = call(flow_arguments("predict", TWO_MOONS, **more))
    assert refused.code == 1
    assert len(refused.error_lines) == 1, refused.err
    assert str(path) in refused.err
    assert path.read_text() == "precious"
    accepted = call(flow_arguments("predict", TWO_MOONS, **more, samples__overwrite="true"))
    assert accepted.code == 0, accepted.err
    assert list(read(path)) == ["x", "y"]
    assert len(read(path)["x"]) == 20


def test_evaluation_repeats_the_end_of_training_with_the_model_of_the_checkpoint(moons, tmp_path) -> None:
    fit = command("fit", tmp_path / "again", TWO_MOONS, **SMALL, model__sampler__init_args__solver=EULER)
    test = command("test", tmp_path, TWO_MOONS, **SMALL, **UNSTATED, ckpt_path=last_of(moons))
    results = [
        [line for line in outcome.out.splitlines() if line.startswith(("distance", "likelihood"))]
        for outcome in (fit, test)
    ]
    assert len(results[0]) == 2
    assert results[0] == results[1]
    assert load_flow(last_of(moons)).model.sampler.solver == Euler(3)


def test_options_on_the_command_line_win_over_the_checkpoint(moons, tmp_path) -> None:
    fewer = UNSTATED | {"model__tests__likelihood_samples": 0, "model__likelihood__divergence": "HutchinsonDivergence"}
    outcome = command("test", tmp_path, TWO_MOONS, **SMALL, **fewer, ckpt_path=last_of(moons))
    assert "distance" in outcome.out
    assert "likelihood" not in outcome.out
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())["model"]
    arguments = {**written.get("init_args", {}), **written.get("dict_kwargs", {})}
    # What is beside them in the same object stays as it was.
    assert arguments["tests"] == {"likelihood_samples": 0, "transport_samples": 20}
    assert "HutchinsonDivergence" in str(arguments["likelihood"])
    assert "num_steps': 2" in str(arguments["likelihood"])


@pytest.mark.usefixtures("without_figures", "signals")
@pytest.mark.parametrize("stop", [{"trainer__max_epochs": 1}, {"interrupt_after": 4}], ids=["finished", "interrupted"])
def test_resumed_run_continues_with_the_batches_that_would_have_come(stop, tmp_path) -> None:
    def fit(name: str, **changes: object) -> Outcome:
        probe = probes("Batches", path=str(tmp_path / name), interrupt_after=changes.pop("interrupt_after", None))
        folder = tmp_path / f"{name}_run"
        options = SMALL | {"trainer__callbacks": probe, "trainer__default_root_dir": folder} | changes
        return call(flow_arguments("fit", TWO_MOONS, **options))

    def batches(*names: str) -> list[str]:
        return [line for name in names for line in (tmp_path / name).read_text().splitlines()]

    assert fit("whole").code == 0
    first = fit("first", **stop)
    assert first.code == (130 if "interrupt_after" in stop else 0), first.err
    assert fit("second", ckpt_path=last_of(tmp_path / "first_run")).code == 0
    assert batches("first", "second") == batches("whole")
    assert trained_state(tmp_path / "second_run")["global_step"] == 12
    table = (tmp_path / "second_run" / "figures" / "learning_curve.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in table[1:]] == ["6", "12"]


@pytest.mark.usefixtures("without_figures")
def test_new_run_over_another_is_refused_and_loses_nothing(moons) -> None:
    before = last_of(moons).read_bytes()
    outcome = call(flow_arguments("fit", TWO_MOONS, **SMALL, trainer__default_root_dir=moons))
    assert outcome.code == 2
    assert len(outcome.error_lines) == 1
    assert f"{moons / 'config.yaml'} --ckpt_path last" in outcome.err
    assert last_of(moons).read_bytes() == before


def printed(*options: str) -> dict[str, Any]:
    outcome = call(["fit", f"-c={TWO_MOONS}", *options, "--print_config"])
    assert outcome.code == 0, outcome.err
    return yaml.safe_load(outcome.out)


def test_source_of_another_class_starts_from_its_own_defaults() -> None:
    source = printed(
        "--model.source.init_args.scale=2.0", "--model.source=MixtureSource", "--model.source.means=[[1, 0]]"
    )
    assert source["model"]["init_args"]["source"]["init_args"] == {"means": [[1, 0]], "scale": 0.3}
    plain = printed("--model.init_args.source=MixtureSource", "--model.init_args.source.means=[[1, 0]]")
    assert plain["model"]["init_args"]["source"]["init_args"]["scale"] == 0.3


def test_density_of_another_class_starts_from_its_own_defaults() -> None:
    density = "--data.dataset.density"
    config = printed(f"{density}.noise=0.7", f"{density}=Rings", f"{density}.num_rings=2")
    chosen = config["data"]["init_args"]["dataset"]["init_args"]["density"]
    assert chosen["class_path"].endswith(".Rings")
    assert chosen["init_args"] == {"num_rings": 2, "radius": 3.0, "noise": 0.1}


def test_dataset_that_a_second_file_states_again_keeps_the_arguments_of_the_first(tmp_path) -> None:
    more = "data: {init_args: {dataset: {class_path: DensityTable, init_args: {seed: 3}}}}\n"
    (tmp_path / "more.yaml").write_text(more)
    config = printed("--data.dataset.density.noise=0.7", f"-c={tmp_path / 'more.yaml'}")
    arguments = config["data"]["init_args"]["dataset"]["init_args"]
    assert arguments.pop("density")["init_args"] == {"noise": 0.7}
    assert arguments == {"num_samples": 100_000, "seed": 3}


def test_written_configuration_can_be_used_again(moons) -> None:
    written = yaml.safe_load((moons / "config.yaml").read_text())
    again = call(["fit", f"-c={moons / 'config.yaml'}", "--print_config"])
    assert again.code == 0, again.err
    assert yaml.safe_load(again.out)["model"] == written["model"]
    assert yaml.safe_load(again.out)["data"] == written["data"]
    assert "schema" not in written["model"]["init_args"]
    checkpoint = moons / "checkpoints" / "last.ckpt"
    evaluated = call(["test", f"--ckpt_path={checkpoint}", f"-c={moons / 'config.yaml'}", "--print_config"])
    assert evaluated.code == 0, evaluated.err
    assert yaml.safe_load(evaluated.out)["ckpt_path"] == str(checkpoint)


def draw(*options: str) -> Outcome:
    return call(["predict", *options, "--trainer.logger=false", "--trainer.accelerator=cpu"])


def test_prediction_needs_nothing_but_the_checkpoint(moons, tmp_path) -> None:
    given = [
        f"--ckpt_path={last_of(moons)}",
        f"--samples.path={tmp_path / 'a.csv'}",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    outcome = draw(*given, "--data.predict_samples=7")
    assert outcome.code == 0, outcome.err
    assert outcome.out == f"7 samples in {tmp_path / 'a.csv'}\n"
    drawn = read(tmp_path / "a.csv")
    assert list(drawn) == ["x", "y"]
    command("predict", tmp_path, TWO_MOONS, **SMALL, **UNSTATED, ckpt_path=last_of(moons), data__predict_samples=7)
    for name, values in read(tmp_path / "samples.csv").items():
        np.testing.assert_array_equal(drawn[name], values)


def test_prediction_from_the_checkpoint_takes_any_names(moons, tmp_path) -> None:
    names = ("/etc/m s-1", "$\"{['#:ü")
    saved = torch.load(last_of(moons), weights_only=True)
    saved["hyper_parameters"]["schema"] = dataclasses.replace(
        saved["hyper_parameters"]["schema"], columns=names, integers=names[1:]
    )
    torch.save(saved, tmp_path / "renamed.ckpt")
    outcome = draw(f"--ckpt_path={tmp_path / 'renamed.ckpt'}", f"--trainer.default_root_dir={tmp_path}")
    assert outcome.code == 0, outcome.err
    drawn = read(tmp_path / "samples.csv")
    assert tuple(drawn) == names
    assert drawn[names[1]].dtype == np.int64


def test_prediction_from_a_checkpoint_of_another_kind_asks_for_its_data(moons, tmp_path) -> None:
    saved = torch.load(last_of(moons), weights_only=True)
    saved["hyper_parameters"]["_class_path"] = "flowmatch_rl.modules.OccupancyModule"
    torch.save(saved, tmp_path / "other.ckpt")
    outcome = draw(f"--ckpt_path={tmp_path / 'other.ckpt'}", f"--trainer.default_root_dir={tmp_path}")
    assert outcome.code == 2
    assert outcome.error_lines == [
        f"flowmatch-rl: error: {tmp_path / 'other.ckpt'} is not of a generative model, which alone predicts without "
        "data; name the configuration of its run with -c"
    ]


def test_conditional_prediction_from_the_checkpoint_needs_conditions(given, tmp_path) -> None:
    folder, _ = given
    pd.DataFrame({"kind": ["tall", "short"], "age": [30, 41]}).to_csv(tmp_path / "wanted.csv", index=False)
    more = [f"--ckpt_path={last_of(folder)}", f"--trainer.default_root_dir={tmp_path}"]
    refused = draw(*more)
    assert refused.code == 2
    assert refused.error_lines == [
        "flowmatch-rl: error: the model is given age, kind; name a file of them in predict_conditions"
    ]
    outcome = draw(*more, f"--data.predict_conditions={tmp_path / 'wanted.csv'}")
    assert outcome.code == 0, outcome.err
    assert list(read(tmp_path / "samples.csv")["kind"]) == ["tall", "short"]
