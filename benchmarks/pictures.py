"""The pictures of the README, of models trained for them, with the distances of their samples to exact ones.

Trains by the commands below what ``runs/pictures`` does not hold yet, and draws ``overview.png``, ``flow.png``,
``occupancy.png`` and ``policy.png`` in ``docs``.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle
from torch import Tensor

from flowmatch_rl.checkpoints import read_checkpoint
from flowmatch_rl.figures.style import BLUE, ORANGE, RED, new_figure, save_figure, tidy
from flowmatch_rl.inference import load_flow, load_occupancy
from flowmatch_rl.metrics import energy_distance, wasserstein_distance
from flowmatch_rl.modules import BanditFlow
from flowmatch_rl.modules.loading import build_module
from flowmatch_rl.testbeds import Bimodal, EightGaussians, MazeLoopPolicy, PointMassMaze, geometric_steps

RUNS, DOCS = Path("runs/pictures"), Path(__file__).parents[1] / "docs"
LOOPS = RUNS / "maze_loop_data"
COLLECT = (
    *("collect", "-c=conf/collect/maze_loop.yaml", f"--output={LOOPS}"),
    *("--environment.init_args.max_steps=200", "--num_envs=5000"),
)
FIT = {
    "flow": ("-c=conf/flow/eight_gaussians.yaml", "--data.init_args.num_updates=4000"),
    "occupancy": (
        *("-c=conf/occupancy/maze_loop.yaml", "-c=conf/occupancy/presets/monte_carlo.yaml"),
        *(f"--data.init_args.path={LOOPS}", "--data.init_args.num_updates=10000"),
        "--model.init_args.horizon.discount=0.95",
    ),
    "policy": (
        *("-c=conf/bandit/bimodal.yaml", "--data.init_args.bandit.init_args.dimensions=1"),
        *("--data.init_args.num_updates=2500", "--model.init_args.optimizer.actor_learning_rate=0.001"),
    ),
}
UNTESTED = (
    "-c=conf/logger/none.yaml",
    "--trainer.limit_val_batches=0",
    "--trainer.limit_test_batches=0",
    "--figures.enabled=false",
)
MAZE, LOOP, DISCOUNT = PointMassMaze(action_repeat=4), MazeLoopPolicy(), 0.95
BANDIT = Bimodal(dimensions=1)
CELLS = 64


def run() -> dict[str, Any]:
    """Train, draw and measure; one row per picture."""
    checkpoints = {name: _trained(name) for name in FIT}
    figure = new_figure(10.2, 4.0, "")
    panels = list(figure.subplots(1, 3))
    rows = [
        _flow(checkpoints["flow"], panels[0]),
        _occupancy(checkpoints["occupancy"], panels[1]),
        _policy(checkpoints["policy"], panels[2]),
    ]
    save_figure(figure, DOCS / "overview.png")
    return {"title": "Models of the README's pictures", "rows": rows}


def _trained(name: str) -> Path:
    """Last checkpoint of a picture's run, which is trained if it is not there."""
    checkpoint = RUNS / name / "checkpoints" / "last.ckpt"
    if not checkpoint.exists():
        command = [sys.executable, "-m", "flowmatch_rl"]
        if name == "occupancy" and not LOOPS.exists():
            RUNS.mkdir(parents=True, exist_ok=True)
            subprocess.run([*command, *COLLECT], check=True)
        options = [*FIT[name], *UNTESTED, f"--trainer.default_root_dir={RUNS / name}"]
        subprocess.run([*command, "fit", *options], check=True)
    return checkpoint


def _flow(checkpoint: Path, overview: Axes, number: int = 20_000) -> dict[str, Any]:
    """Six times of the flow as clouds of points, coloured by where they end, and the samples for the overview."""
    model = load_flow(checkpoint).model
    times, path = model.trajectory(model.draw_noise(number, torch.Generator().manual_seed(0)))
    shown = [int((times - t).abs().argmin()) for t in torch.linspace(float(times[0]), float(times[-1]), 6)]
    clouds = [model.schema.restore(path[index]).numpy() for index in shown]
    end = clouds[-1]
    figure = new_figure(11.4, 2.3, "")
    for axes, index, cloud in zip(figure.subplots(1, 6), shown, clouds, strict=True):
        _scatter(axes, cloud[:4000], _mode(end[:4000]), 7.0)
        axes.set_title(f"t = {float(times[index]):.1f}", fontsize=9)
    save_figure(figure, DOCS / "flow.png")
    _scatter(overview, end[:4000], _mode(end[:4000]), 6.5)
    overview.set_title("generative model: samples of eight Gaussians", fontsize=10)
    exact = model.schema.standardise(_gaussians(number))
    found, floor = _distances(path[-1], exact, model.schema.standardise(_gaussians(number, seed=1)))
    return {
        "picture": "flow",
        "distance": "energy",
        "to exact samples": found,
        "of exact samples": floor,
        "outside": "",
    }


def _occupancy(checkpoint: Path, overview: Axes, number: int = 8_000) -> dict[str, Any]:
    """Real future states above, modelled ones below, and those of the first state for the overview."""
    model = load_occupancy(checkpoint).model
    generator = torch.Generator().manual_seed(0)
    states = _follow(torch.tensor([-0.22, 0.0, 0.0, 0.0]))[[50, 64, 78]]  # a third of a lap apart
    real = torch.stack([_real(state, number, generator) for state in states])  # (3, K, 4)
    again = torch.stack([_real(state, number, generator) for state in states])
    source = states[:, None].expand(-1, number, -1)
    modelled = model.sample(model.draw_noise(3, number, generator=generator), source, LOOP.act(source))
    figure = new_figure(7.8, 5.4, "")
    grid = figure.subplots(2, 3)
    for column, start in enumerate(states):
        for row, (name, cloud) in enumerate((("real", real), ("modelled", modelled))):
            _maze(grid[row, column], cloud[column].numpy(), start.numpy())
            grid[row, column].set_title(f"{name} future states", fontsize=9)
    save_figure(figure, DOCS / "occupancy.png")
    _maze(overview, modelled[0].numpy(), states[0].numpy())
    overview.set_title("occupancy: future states of a policy", fontsize=10)
    positions = [cloud[:, :512, :2].double() for cloud in (modelled, real, again)]
    found, floor = (
        sum(float(wasserstein_distance(a, b)) for a, b in zip(clouds, positions[1], strict=True)) / len(states)
        for clouds in (positions[0], positions[2])
    )
    outside = 1.0 - float(MAZE.is_free(modelled[..., :2]).float().mean())
    return {
        "picture": "occupancy",
        "distance": "Wasserstein-1 of positions",
        "to exact samples": found,
        "of exact samples": floor,
        "outside": outside,
    }


def _policy(checkpoint: Path, overview: Axes, number: int = 20_000) -> dict[str, Any]:
    """Particles from noise to actions, and their histogram beside the exact density."""
    policy = build_module(BanditFlow, read_checkpoint(checkpoint), checkpoint).eval().policy
    noise = torch.randn(1, number, policy.noise_dim, generator=torch.Generator().manual_seed(0))
    fine = policy.sampler.with_steps(50)
    assert fine is not None
    policy.sampler = fine
    times, latents = policy.trajectories(torch.zeros(1, 1), noise)
    paths = policy.squash.action(latents)[:, 0, :, 0]
    figure = new_figure(9.0, 3.0, "")
    left, right = figure.subplots(1, 2, width_ratios=[2.0, 1.0], sharey=True)
    lines = [np.column_stack([times.numpy(), path]) for path in paths[:, :300].T.numpy()]
    colors = colormaps["viridis"](0.5 + 0.5 * paths[-1, :300].numpy())
    left.add_collection(LineCollection(lines, colors=colors, linewidths=0.7, alpha=0.6))
    left.set(xlim=(0.0, 1.0), ylim=(-1.0, 1.0))
    tidy(left, "flow time (noise to action)", "action")
    _histogram(right, paths[-1].numpy(), "horizontal")
    tidy(right, "density")
    right.legend(fontsize=8, frameon=False, loc="center right")
    save_figure(figure, DOCS / "policy.png")
    _histogram(overview, paths[-1].numpy(), "vertical")
    tidy(overview, "action")
    overview.set_yticks([])
    overview.set_box_aspect(1)
    overview.set_ylim(0.0, 1.75)
    overview.legend(fontsize=8, frameon=False, loc="upper center", ncols=2)
    overview.set_title("policy: actions follow exp(Q / temperature)", fontsize=10)
    uniform = torch.rand(2, number, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found, floor = _distances(paths[-1, :, None], BANDIT.sample(uniform[0]), BANDIT.sample(uniform[1]))
    return {
        "picture": "policy",
        "distance": "energy",
        "to exact samples": found,
        "of exact samples": floor,
        "outside": "",
    }


def _histogram(axes: Axes, actions: np.ndarray, orientation: Literal["horizontal", "vertical"]) -> None:
    """Actions of the policy beside the exact density."""
    bins = np.linspace(-1.0, 1.0, 61)
    axes.hist(actions, bins, density=True, orientation=orientation, color=ORANGE, alpha=0.7, label="policy")
    place = torch.linspace(-1.0, 1.0, 400, dtype=torch.float64)
    value, _ = BANDIT.value_and_gradient(place[:, None])
    line = [place.numpy(), (value - BANDIT.log_normaliser()).exp().numpy()]
    axes.plot(
        *(line if orientation == "vertical" else line[::-1]), color=BLUE, linewidth=2.0, label="exp(Q / temperature)"
    )


def _distances(sample: Tensor, exact: Tensor, again: Tensor) -> tuple[float, float]:
    """Energy distance of 4,000 samples to exact ones, and of other exact ones to them."""
    exact = exact[:4000].double()
    return tuple(float(energy_distance(points[:4000].double(), exact)) for points in (sample, again))  # pyright: ignore


def _gaussians(number: int, seed: int = 0) -> Tensor:
    """Exact samples, float32, shape (number, 2)."""
    return EightGaussians().sample(number, torch.Generator().manual_seed(seed))[0].float()


def _real(state: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """States at geometric times, shape (K, 4)."""
    steps = geometric_steps(torch.rand(number, generator=generator), DISCOUNT, 1000)
    return _follow(state)[steps - 1]


def _follow(state: Tensor, number: int = 1000) -> Tensor:
    """States of the policy after a state, shape (T, 4)."""
    return MAZE.futures(LOOP, state, LOOP.act(state), torch.zeros(number, MAZE.noise_dim))[0]


def _mode(points: np.ndarray) -> np.ndarray:
    """Nearest of the eight Gaussians, 0 to 7."""
    return np.round(np.arctan2(points[:, 1], points[:, 0]) * 4.0 / np.pi) % 8


def _bare(axes: Axes) -> None:
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)


def _scatter(axes: Axes, points: np.ndarray, colors: np.ndarray, limit: float) -> None:
    axes.scatter(*points.T, c=colors, cmap="Dark2", s=2.0, linewidths=0, alpha=0.7)
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
    _bare(axes)


def _density(axes: Axes, points: np.ndarray, limits: Any, norm: LogNorm | None) -> None:
    counts, x, y = np.histogram2d(*points[:, :2].T, bins=CELLS, range=limits)
    axes.pcolormesh(x, y, np.ma.masked_equal(counts.T, 0.0), cmap="viridis_r", norm=norm, rasterized=True)
    _bare(axes)


def _maze(axes: Axes, states: np.ndarray, start: np.ndarray) -> None:
    size = MAZE.half_width
    _density(axes, states, ((-1.1 * size, 1.1 * size),) * 2, LogNorm(1.0, 0.1 * len(states)))
    for x_low, y_low, x_high, y_high in MAZE.walls().tolist():
        axes.add_patch(Rectangle((x_low, y_low), x_high - x_low, y_high - y_low, color="0.35", linewidth=0, zorder=0))
    axes.add_patch(Rectangle((-size, -size), 2 * size, 2 * size, fill=False, edgecolor="0.35", linewidth=1.5))
    axes.plot(*start[:2], "o", markersize=9, markerfacecolor="none", markeredgecolor=RED, markeredgewidth=2)
