"""Policies packed for MLflow act as those of their checkpoints, and say what they take and return."""

import json
from pathlib import Path

import numpy as np
import pytest

from flowmatch_rl.checks import UserError
from flowmatch_rl.inference import load_policy, serving

EXAMPLE = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, -2.0]], np.float32)


def test_a_packed_policy_is_small_acts_alike_and_describes_itself(tmp_path: Path) -> None:
    path = tmp_path / "model" / "policy.ckpt"
    described = serving.pack_policy(Path("zoo:pendulum"), path, EXAMPLE)
    own, options = load_policy("zoo:pendulum", seed=3, deterministic=True), {"seed": 3, "deterministic": True}
    np.testing.assert_array_equal(serving._load_pyfunc(str(path), options).predict(EXAMPLE), own(EXAMPLE))
    np.testing.assert_array_equal(serving._load_pyfunc(str(path)).predict(EXAMPLE), load_policy(path)(EXAMPLE))
    assert json.loads(json.dumps(described)) == described
    assert (described["inputs"], described["outputs"]) == ({"observation": 3}, {"action": 1})
    assert described["example"] == {"observation": EXAMPLE.tolist()}
    assert described["options"]["deterministic"] is False
    known = described["metadata"]
    assert (known["action_low"], known["action_high"], known["goal_columns"]) == ([-2.0], [2.0], [])
    assert len(known["observation_columns"]) == 3


def test_an_option_that_no_policy_takes_is_refused() -> None:
    with pytest.raises(UserError, match=r"^model_config of a policy takes device, .*, got 'greedy'$"):
        serving._load_pyfunc("zoo:pendulum", {"greedy": True})
