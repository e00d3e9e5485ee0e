"""Small files in the layouts of other people, written as they write them."""

import json
from pathlib import Path

import h5py
import numpy as np

RNG = np.random.default_rng(0)


def numbers(*shape: int) -> np.ndarray:
    return RNG.uniform(-0.9, 0.9, shape)


def write_exorl(folder: Path, lengths: dict[int, int], discounts: dict[int, float] | None = None) -> dict[int, dict]:
    """Episodes by number, of as many steps; ``discounts`` are those of the last step, 1 if not given."""
    folder.mkdir()
    episodes = {}
    for number, steps in lengths.items():
        discount = np.ones((steps + 1, 1), np.float32)
        discount[-1] = (discounts or {}).get(number, 1.0)
        episodes[number] = {
            "observation": numbers(steps + 1, 3).astype(np.float32),
            # The first row of the actions, rewards and discounts is a filler.
            "action": np.concatenate([np.zeros((1, 2)), numbers(steps, 2)]).astype(np.float32),
            "reward": np.concatenate([np.zeros((1, 1)), numbers(steps, 1)]).astype(np.float32),
            "discount": discount,
            "physics": numbers(steps + 1, 5),
        }
        np.savez_compressed(folder / f"episode_{number}_{steps}.npz", **episodes[number])
    return episodes


def step_arrays(rows: int) -> dict[str, np.ndarray]:
    """Observations, actions and rewards of ``rows`` steps."""
    return {
        "observations": numbers(rows, 3).astype(np.float32),
        "actions": numbers(rows, 2).astype(np.float32),
        "rewards": numbers(rows).astype(np.float32),
    }


def write_ogbench(file: Path, ends: list[int], **more: np.ndarray) -> dict[str, np.ndarray]:
    """A file of OGBench without rewards, its flags being ``ends``; ``more`` are further arrays or other ones."""
    arrays = step_arrays(len(ends))
    del arrays["rewards"]
    arrays |= {"terminals": np.array(ends, np.float32), "qpos": numbers(len(ends), 4)} | more
    np.savez_compressed(file, **arrays)
    return arrays


def write_hdf5(file: Path, arrays: dict) -> None:
    """Arrays, and dictionaries of them as groups."""
    with h5py.File(file, "w") as opened:
        _fill(opened, arrays)


def _fill(group: h5py.Group, arrays: dict) -> None:
    for name, value in arrays.items():
        if isinstance(value, dict):
            _fill(group.create_group(name), value)
        else:
            group.create_dataset(name, data=value)


def write_d4rl(file: Path, terminals: list[int], timeouts: list[int], arrivals: bool) -> dict:
    arrays: dict = step_arrays(len(terminals))
    arrays |= {"terminals": np.array(terminals, bool), "timeouts": np.array(timeouts, bool)}
    if arrivals:
        arrays["next_observations"] = numbers(len(terminals), 3).astype(np.float32)
    write_hdf5(file, arrays | {"infos": {"qpos": numbers(len(terminals), 2)}, "metadata": {"algorithm": b"SAC"}})
    return arrays


def write_minari(folder: Path, episodes: dict[int, dict], **metadata: object) -> None:
    """Episodes by number, in the folder of a data set."""
    (folder / "data").mkdir(parents=True)
    write_hdf5(folder / "data" / "main_data.hdf5", {f"episode_{number}": held for number, held in episodes.items()})
    text = json.dumps({"total_episodes": len(episodes), "data_format": "hdf5"} | metadata)
    (folder / "data" / "metadata.json").write_text(text)


def minari_episode(steps: int, terminated: bool, observations: object = None) -> dict:
    """One episode; it was cut by a time limit unless it terminated."""
    last = np.arange(steps) == steps - 1
    return {
        "observations": numbers(steps + 1, 3) if observations is None else observations,
        "actions": numbers(steps, 2).astype(np.float32),
        "rewards": numbers(steps),
        "terminations": last & terminated,
        "truncations": last & (not terminated),
        "infos": {"success": np.zeros(steps + 1, bool)},
    }
