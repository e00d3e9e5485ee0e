"""A reward that is learned from labelled states."""

from pathlib import Path

import numpy as np
import pytest
import torch

from flowmatch_rl.checks import MissingFileError, UserError
from flowmatch_rl.testbeds import LabelledReward


def labelled(path: Path, number: int, noise: float = 0.0, header: str = "y,reward,x") -> LabelledReward:
    generator = np.random.default_rng(0)
    x, y = generator.uniform(-3.0, 3.0, number), generator.uniform(-0.03, 0.03, number)
    label = np.sin(x) + 100.0 * y + noise * generator.standard_normal(number)
    np.savetxt(path, np.stack([y, label, x], 1), delimiter=",", header=header, comments="")
    return LabelledReward(str(path))


def test_it_interpolates_a_smooth_reward_in_the_units_of_the_file(tmp_path) -> None:
    reward = labelled(tmp_path / "labels.csv", 300)
    assert reward.needed_columns == ("y", "x")
    assert reward.explained > 0.99
    x, y = torch.linspace(-2.5, 2.5, 40), torch.linspace(-0.02, 0.02, 40)
    state = torch.stack([x, torch.zeros(40), y], -1).reshape(8, 5, 3)
    found = reward.evaluate(state, ("x", "other", "y"))
    torch.testing.assert_close(found, (torch.sin(x) + 100.0 * y).reshape(8, 5), atol=0.05, rtol=0.0)


def test_what_it_explains_is_measured_on_labels_left_out(tmp_path) -> None:
    assert labelled(tmp_path / "noisy.csv", 300, noise=1.6).explained < 0.8
    generator = np.random.default_rng(1)
    table = generator.standard_normal((200, 4))
    np.savetxt(tmp_path / "noise.csv", table, delimiter=",", header="a,b,c,reward", comments="")
    assert LabelledReward(str(tmp_path / "noise.csv")).explained < 0.1


def test_a_file_that_has_changed_is_read_again(tmp_path) -> None:
    path = tmp_path / "labels.csv"
    reward = labelled(path, 50)
    assert reward.num_labels == 50
    labelled(path, 3000)
    assert reward.num_labels == 2000


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("x,y\n1,2\n3,4\n", "'reward'"),
        ("reward\n1\n2\n", "'reward'"),
        ("x,reward\n1,2\n", "at least 2 rows"),
        ("x,reward\n1,2\n2,nan\n", "finite"),
        ("x,reward\n1,2\n2,b\n", "numbers"),
        ("x,reward\n1,2\n2,2\n", "labels all states with 2"),
    ],
    ids=str,
)
def test_files_that_hold_no_labelled_states_are_refused(text, word, tmp_path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=word):
        LabelledReward(str(path)).of_columns(torch.zeros(1, 1))


def test_headers_of_spreadsheets_are_read(tmp_path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text('\ufeff"x","reward"\n1,2\n2,3\n3,5\n', encoding="utf-8")
    assert LabelledReward(str(path)).needed_columns == ("x",)
    path.write_bytes("größe,reward\n1,2\n2,3\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"labels\.csv must be text in UTF-8"):
        _ = LabelledReward(str(path)).needed_columns


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(MissingFileError, match=r"nowhere\.csv"):
        LabelledReward(str(tmp_path / "nowhere.csv"))
