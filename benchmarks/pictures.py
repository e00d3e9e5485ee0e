"""The pictures of the README, of models trained for them, with the distances of their samples to exact ones.

Trains by the commands below what ``runs/pictures`` does not hold yet, and draws ``overview.png``, ``flow.png``,
``occupancy.png`` and ``policy.png`` in ``docs``.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle
from torch import Tensor

from flowmatch_rl.data import Checkerboard
from flowmatch_rl.figures.style import BLUE, ORANGE, RED, new_figure, save_figure
from flowmatch_rl.inference import load_flow, load_occupancy
from flowmatch_rl.metrics import energy_distance, wasserstein_distance
from flowmatch_rl.modules import BanditFlow
from flowmatch_rl.testbeds import MazeLoopPolicy, PointMassMaze, TwoMoonsEnergy, geometric_steps

RUNS, DOCS = Path("runs/pictures"), Path(__file__).parents[1] / "docs"
LOOPS = RUNS / "maze_loop_data"
COLLECT = (
    *("collect", "-c=conf/collect/maze_loop.yaml", f"--output={LOOPS}"),
    *("--environment.init_args.max_steps=200", "--num_envs=5000"),
)
FIT = {
    "flow": ("-c=conf/flow/checkerboard.yaml", "--data.init_args.num_updates=5000"),
    "occupancy": (
        *("-c=conf/occupancy/maze_loop.yaml", "-c=conf/occupancy/presets/monte_carlo.yaml"),
        *(f"--data.init_args.path={LOOPS}", "--data.init_args.num_updates=10000"),
        "--model.init_args.horizon.discount=0.95",
    ),
    "policy": ("-c=conf/bandit/two_moons.yaml", "--data.init_args.num_updates=3000"),
}
UNTESTED = ("-c=conf/logger/none.yaml", "--trainer.limit_val_batches=0", "--trainer.limit_test_batches=0")
MAZE, LOOP, DISCOUNT = PointMassMaze(action_repeat=4), MazeLoopPolicy(), 0.95
STATES = torch.tensor([[-0.22, 0.0, 0.0, 0.0], [0.26, -0.26, 0.0, 0.0], [-0.1, 0.08, 0.0, 0.0]])
"""Source states of the occupancy, at rest: on the loop, in a corner, beside the wall."""
CELLS = 64


def run() -> dict[str, Any]:
    """Train, draw and measure; one row per picture."""
    checkpoints = {name: _trained(name) for name in FIT}
    figure = new_figure(10.2, 3.7, "")
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
        _scatter(axes, cloud[:6000], end[:6000, 0] + 0.5 * end[:6000, 1], 4.6)
        axes.set_title(f"t = {float(times[index]):.1f}", fontsize=9)
    save_figure(figure, DOCS / "flow.png")
    _density(overview, end, ((-4.3, 4.3), (-4.3, 4.3)), None)
    overview.set_title("generative model: samples of a checkerboard", fontsize=10)
    exact = model.schema.standardise(_checkerboard(number))
    found, floor = _distances(path[-1], exact, model.schema.standardise(_checkerboard(number, seed=1)))
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
    real = torch.stack([_real(state, number, generator) for state in STATES])  # (3, K, 4)
    again = torch.stack([_real(state, number, generator) for state in STATES])
    source = STATES[:, None].expand(-1, number, -1)
    modelled = model.sample(model.draw_noise(3, number, generator=generator), source, LOOP.act(source))
    figure = new_figure(9.0, 6.2, "")
    grid = figure.subplots(2, 3)
    for column, start in enumerate(STATES):
        for row, (name, cloud) in enumerate((("real", real), ("modelled", modelled))):
            _maze(grid[row, column], cloud[column].numpy(), start.numpy())
            grid[row, column].set_title(f"{name} future states", fontsize=9)
    save_figure(figure, DOCS / "occupancy.png")
    _maze(overview, modelled[0].numpy(), STATES[0].numpy())
    overview.set_title("occupancy: where a policy will be", fontsize=10)
    positions = [cloud[:, :512, :2].double() for cloud in (modelled, real, again)]
    found, floor = (
        sum(float(wasserstein_distance(a, b)) for a, b in zip(clouds, positions[1], strict=True)) / len(STATES)
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
    """Particles from noise to actions over the exact density, and histograms of both entries beside exact ones."""
    policy = BanditFlow.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True).eval().policy
    bandit = TwoMoonsEnergy()
    noise = torch.randn(1, number, policy.noise_dim, generator=torch.Generator().manual_seed(0))
    fine = policy.sampler.with_steps(50)
    assert fine is not None
    policy.sampler = fine
    times, latents = policy.trajectories(torch.zeros(1, 1), noise)
    actions = policy.squash.action(latents)[:, 0]
    exact = bandit.sample(torch.rand(number, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    figure = new_figure(11.4, 2.7, "")
    panels = figure.subplots(1, 5, width_ratios=[1, 1, 1, 1.15, 1.15])
    for axes, t in zip(panels, (0.0, 0.6, 1.0), strict=False):
        index = int((times - t).abs().argmin())
        _over_density(axes, bandit, actions[index, :1500].numpy())
        axes.set_title(f"t = {float(times[index]):.1f}", fontsize=9)
    for entry, axes in enumerate(panels[3:]):
        bins = np.linspace(-1.0, 1.0, 61)
        axes.hist(actions[-1, :, entry].numpy(), bins, density=True, color=ORANGE, alpha=0.7, label="policy")
        place, density = _marginal(bandit, entry)
        axes.plot(place, density, color=BLUE, linewidth=1.8, label="exp(Q / temperature)")
        axes.set_title(f"histogram of action[{entry}]", fontsize=9)
        axes.set_yticks([])
        axes.tick_params(labelsize=8)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    panels[4].legend(fontsize=7, frameon=False, loc="lower center")
    save_figure(figure, DOCS / "policy.png")
    _over_density(overview, bandit, actions[-1, :2500].numpy())
    overview.set_title("policy: actions over exp(Q / temperature)", fontsize=10)
    second = bandit.sample(torch.rand(number, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))
    found, floor = _distances(actions[-1].double(), exact, second)
    return {
        "picture": "policy",
        "distance": "energy",
        "to exact samples": found,
        "of exact samples": floor,
        "outside": "",
    }


def _distances(sample: Tensor, exact: Tensor, again: Tensor) -> tuple[float, float]:
    """Energy distance of 4,000 samples to exact ones, and of other exact ones to them."""
    exact = exact[:4000].double()
    return tuple(float(energy_distance(points[:4000].double(), exact)) for points in (sample, again))  # pyright: ignore


def _checkerboard(number: int, seed: int = 0) -> Tensor:
    """Exact samples, float32, shape (number, 2)."""
    rows = Checkerboard().sample(number, torch.Generator().manual_seed(seed))
    return torch.as_tensor(rows[["x", "y"]].to_numpy(), dtype=torch.float32)


def _real(state: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """States at geometric times, shape (K, 4)."""
    steps = geometric_steps(torch.rand(number, generator=generator), DISCOUNT, 1000)
    states, _ = MAZE.futures(LOOP, state, LOOP.act(state), torch.zeros(1000, MAZE.noise_dim))
    return states[steps - 1]


def _marginal(bandit: TwoMoonsEnergy, entry: int, number: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Exact density of one entry of the action on a grid."""
    middle = (torch.arange(number, dtype=torch.float64) + 0.5) * 2.0 / number - 1.0
    density = bandit.plane_log_prob(torch.cartesian_prod(middle, middle)).exp().reshape(number, number)
    return middle.numpy(), (density.sum(1 - entry) * 2.0 / number).numpy()


def _bare(axes: Axes) -> None:
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)


def _scatter(axes: Axes, points: np.ndarray, colors: np.ndarray, limit: float) -> None:
    axes.scatter(*points.T, c=colors, cmap="viridis", s=1.5, linewidths=0, alpha=0.7)
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
    _bare(axes)


def _density(axes: Axes, points: np.ndarray, limits: Any, norm: LogNorm | None) -> None:
    counts, x, y = np.histogram2d(*points[:, :2].T, bins=CELLS, range=limits)
    axes.pcolormesh(x, y, np.ma.masked_equal(counts.T, 0.0), cmap="viridis_r", norm=norm, rasterized=True)
    _bare(axes)


def _maze(axes: Axes, states: np.ndarray, start: np.ndarray) -> None:
    size = MAZE.half_width
    _density(axes, states, ((-1.1 * size, 1.1 * size),) * 2, LogNorm(1.0, 0.1 * len(states)))
    for x_low, y_low, x_high, y_high in MAZE.walls.tolist():
        axes.add_patch(Rectangle((x_low, y_low), x_high - x_low, y_high - y_low, color="0.35", linewidth=0, zorder=0))
    axes.add_patch(Rectangle((-size, -size), 2 * size, 2 * size, fill=False, edgecolor="0.35", linewidth=1.5))
    axes.plot(*start[:2], "o", markersize=9, markerfacecolor="none", markeredgecolor=RED, markeredgewidth=2)


def _over_density(axes: Axes, bandit: TwoMoonsEnergy, actions: np.ndarray) -> None:
    side = torch.linspace(-1.0, 1.0, 200, dtype=torch.float64)
    density = bandit.plane_log_prob(torch.cartesian_prod(side, side)).exp().reshape(200, 200).T
    axes.contourf(side, side, density, levels=12, cmap="Blues")
    axes.scatter(*actions.T, s=3, color=ORANGE, linewidths=0, alpha=0.7)
    axes.set(xlim=(-1, 1), ylim=(-1, 1))
    _bare(axes)
