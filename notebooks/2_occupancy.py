# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Occupancy
#
# Where will a policy be? This notebook goes from the discounted distribution of future states to a flow that generates
# it, learned from single transitions of another policy by *temporal difference flows*
# ([Farebrother et al., 2025](https://arxiv.org/abs/2503.09817)). Everything it claims is computed below, first against
# closed forms, then against roll-outs.
#
# 1. What an occupancy is
# 2. Its Bellman equation, at every flow time
# 3. A ring, learned from random actions
# 4. Why to follow the flow: variance of the gradient
# 5. A maze: a trained model, and longer horizons than its own
# 6. The value of rewards that the model was not trained on
# 7. Why long horizons are hard, and what shortens them
# 8. What is not shown

# %%
import json
import logging
import os
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from lightning.pytorch import Trainer

import flowmatch_rl
from flowmatch_rl.data import OfflineData, collect_transitions
from flowmatch_rl.envs import ProcessEnvironment
from flowmatch_rl.figures.style import BLUE, GREEN, GREY, ORANGE, RED, tidy
from flowmatch_rl.inference import TrainedOccupancy, load_occupancy
from flowmatch_rl.metrics import wasserstein_distance
from flowmatch_rl.models import Horizon
from flowmatch_rl.modules import FlowOptimizer, OccupancyModule
from flowmatch_rl.nets import EmaSettings, VelocityArchitecture
from flowmatch_rl.objectives import (
    TD2CFM,
    TDCFM,
    Backup,
    BackupNoise,
    CoupledTDCFM,
    MonteCarloCFM,
    flow_matching_loss,
)
from flowmatch_rl.paths import AffinePath, Field, PathPoints
from flowmatch_rl.planning import monte_carlo_value
from flowmatch_rl.solvers import Midpoint
from flowmatch_rl.testbeds import (
    CirculationReward,
    CombinationLock,
    ConstantPolicy,
    GoalReward,
    LinearGaussianProcess,
    LinearPolicy,
    MazeLoopPolicy,
    PointMassMaze,
    RingProcess,
    TabularBackup,
    accumulated_bias,
    accumulated_strays,
    counted_kernel,
    geometric_steps,
)

# %% [markdown]
# `FLOWMATCH_FAST=1` in the environment runs everything with fewer updates and samples, to test the notebook. The
# numbers in the text are those of the full run.

# %%
FAST = os.environ.get("FLOWMATCH_FAST") == "1"
ROLL_OUTS = 500 if FAST else 4000  # on the ring, and as many samples of its model
GRADIENTS = 4000 if FAST else 30_000  # per objective and discount, in section 4
ROWS = 20_000 if FAST else 200_000  # transitions per data set
RING_UPDATES, RING_DECAY = (3, 0.9) if FAST else (2500, 0.95)
SAMPLES, VALUE_SAMPLES = (50, 200) if FAST else (1000, 4000)  # future states per state of the maze

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")
torch.manual_seed(0)
plt.rcParams.update({"figure.dpi": 100, "figure.constrained_layout.use": True, "axes.titlesize": 10})
F64 = torch.float64

# %% [markdown]
# ## 1. What an occupancy is
#
# Take action $a$ in state $s$, then follow the policy $\pi$. The **occupancy**, or successor measure, is the
# distribution of the states met on the way, the one after $k + 1$ steps with weight $(1 - \gamma) \gamma^k$:
#
# $$m^\pi(\cdot \mid s, a) = (1 - \gamma) \sum_{k \ge 0} \gamma^k \, \mathrm{Pr}(S_{k+1} = \cdot \mid s, a, \pi).$$
#
# To draw from it, act for a geometric number of steps of mean $1 / (1 - \gamma)$, the **horizon**, and stop. This sum
# begins at the state arrived at. In the literature there is also the sum that begins at the current one,
# $(1 - \gamma)\, \delta_s + \gamma\, m^\pi$. The package calls them `arrival` (its default) and `current`.
#
# On a finite chain with transition matrix $K$ under the policy,
# $m^\pi = (1 - \gamma)\, P(\cdot \mid s, a)\, (I - \gamma K)^{-1}$. Here twelve cells form a ring, the policy walks
# counterclockwise, and one step in ten is random. Bars are the closed form, dots are roll-outs that stop.

# %%
ring, onward = RingProcess(num_states=12, slip=0.1), ConstantPolicy([1.0])
CELLS = torch.arange(ring.num_states)
here = ring.centres()[:1]


def stopped(process, policy, state, action, discount, num_steps):
    """A state of each roll-out, at a geometric time."""
    noise = torch.randn(num_steps, len(state), process.noise_dim, dtype=state.dtype)
    states, _ = process.futures(policy, state, action, noise)
    steps = geometric_steps(torch.rand(len(state), dtype=F64), discount, num_steps)
    return states[steps - 1, torch.arange(len(state))], steps


def shares(states):
    """Share of the states in each cell of the ring."""
    return torch.bincount(ring.cell(states), minlength=ring.num_states) / len(states)


many = here.expand(ROLL_OUTS, -1)
figure, panels = plt.subplots(1, 3, figsize=(12.0, 3.2), sharey=True)
for axes, discount in zip(panels, (0.5, 0.8, 0.95), strict=True):
    arrival = ring.occupancy(here, onward.act(here), onward, discount)[0]
    current = ring.occupancy(here, onward.act(here), onward, discount, include_current=True)[0]
    states, steps = stopped(ring, onward, many, onward.act(many), discount, num_steps=400)
    axes.bar(CELLS - 0.2, arrival, 0.4, color=BLUE, label="arrival, exact")
    axes.bar(CELLS + 0.2, current, 0.4, color=ORANGE, label="current, exact")
    axes.plot(CELLS - 0.2, shares(states), "o", color="black", markersize=4, label=f"{ROLL_OUTS:,} roll-outs")
    axes.set_title(
        f"discount {discount}: horizon {1 / (1 - discount):.0f}, roll-outs stop after {steps.double().mean():.2f}"
    )
    axes.set_xticks(CELLS)
    tidy(axes, "cell (now in cell 0)", "probability" if axes is panels[0] else "")
    assert (shares(states) - arrival).abs().sum() / 2 < 3.0 / ROLL_OUTS**0.5
panels[0].legend(fontsize=8)

# %% [markdown]
# ## 2. Its Bellman equation, at every flow time
#
# The next state, or what comes after it:
#
# $$m^\pi(\cdot \mid s, a) = (1 - \gamma)\, P(\cdot \mid s, a) + \gamma\, \mathbb E_{s' \sim P(\cdot \mid s, a)}
# \left[ m^\pi(\cdot \mid s', \pi(s')) \right].$$
#
# The right side needs a single transition $(s, a, s')$, of whatever policy, and the action of $\pi$ in $s'$.
#
# A flow that generates $m^\pi$ from noise has, at each flow time $t$, a distribution $m_t$ and a velocity $v_t$ (see
# [1_flow_matching](1_flow_matching.ipynb)). The continuity equation is linear in the density $m_t$ and the flux
# $m_t v_t$. Hence **both obey the Bellman equation at every $t$**, not only at the end. Write $P_t$ and $\vec v_t$ for
# distribution and velocity of the path to the next state alone:
#
# $$m_t(x \mid s, a) = (1 - \gamma)\, P_t + \gamma\, \mathbb E_{s'}\!\left[ m_t(x \mid s', \pi(s')) \right], \qquad
# (m_t v_t)(x \mid s, a) = (1 - \gamma)\, P_t \vec v_t + \gamma\, \mathbb E_{s'}\!\left[ (m_t v_t)(x \mid s', \pi(s'))
# \right].$$
#
# On a linear process with normal noise and a linear policy all of these have closed forms. Below, one state with an
# action that the policy would not take, discount 0.8; the mean over $s'$ is a Gauss-Hermite sum.

# %%
line = LinearGaussianProcess(transition=[[0.8]], control=[[0.5]], drift=[0.1], noise_factor=[[0.3]])
linear = LinearPolicy(gain=[[-0.9]], bias=[0.6])
GAMMA = 0.8
path = AffinePath()
grid = torch.linspace(-3.5, 3.5, 281, dtype=F64)


def density_and_flux(state, action, discount, t):
    """Density and flux of the occupancy's path, each of shape (len(state), 281)."""
    points = grid[None, :, None].expand(len(state), -1, -1)
    condition = torch.cat([state, action], 1)[:, None].expand(-1, len(grid), -1)
    mixture = line.occupancy(state, action, linear, discount)
    density = mixture.marginal_log_prob(path, points, t).exp()
    return density, density * line.exact_velocity(linear, discount, path)(points, t, condition)[..., 0]


nodes, weights = (torch.from_numpy(values) for values in np.polynomial.hermite_e.hermegauss(60))
state, action = torch.tensor([[1.2]], dtype=F64), torch.tensor([[0.9]], dtype=F64)
arrivals, _ = line.step(state.expand(60, 1), action.expand(60, 1), nodes[:, None])

figure, panels = plt.subplots(2, 3, figsize=(12.0, 5.0), sharex=True)
for column, moment in zip(panels.T, (0.2, 0.6, 1.0), strict=True):
    t = torch.tensor(moment, dtype=F64)
    whole = density_and_flux(state, action, GAMMA, t)
    direct = density_and_flux(state, action, 0.0, t)  # of the next state alone
    futures = density_and_flux(arrivals, linear.act(arrivals), GAMMA, t)
    for axes, left, one_step, rest in zip(column, whole, direct, futures, strict=True):
        near, far = (1.0 - GAMMA) * one_step[0], GAMMA * (weights / weights.sum()) @ rest
        error = float((left[0] - near - far).abs().max())
        axes.plot(grid, left[0], color=BLUE, linewidth=4, alpha=0.5, label="left side")
        axes.plot(grid, near, color=GREEN, linewidth=1, label="next state")
        axes.plot(grid, far, color=ORANGE, linewidth=1, label="what comes after")
        axes.plot(grid, near + far, "--", color="black", linewidth=1, label="sum of the two")
        axes.set_title(f"t = {moment}: sides differ by at most {error:.0e}")
        tidy(axes, "x" if axes is column[1] else "")
        assert error < 1e-9
panels[0, 0].set_ylabel("density", fontsize=9)
panels[1, 0].set_ylabel("flux", fontsize=9)
panels[0, 2].legend(fontsize=8)

# %% [markdown]
# The velocity that carries the sum is the mean of the two velocities, weighted by the two densities, and that is what
# **regression** on a mixture finds. All objectives are such a regression of the network $v_t(\cdot \mid s, a; \theta)$:
# with weight $1 - \gamma$ on the straight path from fresh noise to $s'$, and with weight $\gamma$ on what an EMA
# copy $\bar\theta$ of the network says at $(s', \pi(s'))$. They differ in this second part. Let
# $x_t = \psi_t(x_0)$ be where the copy's flow at $(s', \pi(s'))$ has carried the noise $x_0$ by time $t$, and
# $x_0'$ more noise.
#
# | | regress at | on | of [arXiv:2503.09817](https://arxiv.org/abs/2503.09817) |
# |---|---|---|---|
# | `TDCFM` | $t\,\psi_1(x_0) + (1 - t)\, x_0'$ | $\psi_1(x_0) - x_0'$ | equation 7 |
# | `CoupledTDCFM` | $t\,\psi_1(x_0) + (1 - t)\, x_0$ | $\psi_1(x_0) - x_0$ | equation 8 |
# | `TD2CFM` | $\psi_t(x_0)$ | $v_t(\psi_t(x_0) \mid s', \pi(s'); \bar\theta)$ | equation 9 |
#
# In words: make a future of $s'$ and treat it as data, under fresh noise or under the noise it was made from; or follow
# the flow only as far as $t$ and learn the velocity it has there. `MonteCarloCFM` regresses on states of real
# trajectories of $\pi$, with nothing bootstrapped; it needs such trajectories.

# %% [markdown]
# ## 3. A ring, learned from random actions
#
# The data are single steps with uniform random actions; the policy to be modelled walks counterclockwise. No trajectory
# of it is in the data.

# %%
with tempfile.TemporaryDirectory() as folder:
    steps = ProcessEnvironment(ring, max_steps=5)  # short, so that the data are spread like the starts
    collect_transitions(steps, f"{folder}/data", ROWS, num_envs=2000, block_steps=5, progress=False)
    torch.manual_seed(0)
    data = OfflineData(f"{folder}/data", batch_size=256, num_updates=RING_UPDATES, epoch_updates=RING_UPDATES)
    module = OccupancyModule(
        **data.dimensions,
        policy=onward,
        horizon=Horizon(0.9),
        objective=TD2CFM(solver=Midpoint(num_steps=2)),
        network=VelocityArchitecture(128, activation="silu", max_frequency=10.0, num_frequencies=3),
        optimizer=FlowOptimizer(4e-3),
        ema=EmaSettings(RING_DECAY),
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
ring_model = TrainedOccupancy(module.model)
print(f"{ROWS:,} transitions, {RING_UPDATES:,} updates")

# %% [markdown]
# How long to train? With an exact fit the error falls like
# $\exp(-(1 - \mathtt{decay})\,(1 - \gamma)\,\mathtt{updates})$: the EMA flow has to move, and each backup looks
# ahead by one step. Below, the model and the closed form, for the policy's own action and for a first step back;
# *distance* is the largest difference of the probabilities of any set of cells (total variation), beside that of as
# many exact draws.

# %%
print(f"{(1 - RING_DECAY) * (1 - 0.9) * RING_UPDATES:.1f} time constants")
figure, panels = plt.subplots(1, 3, figsize=(12.0, 3.4), width_ratios=[1, 0.75, 1])
gaps = {}
for axes, (name, first) in zip(panels[::2], {"a step on": 1.0, "a step back": -1.0}.items(), strict=True):
    taken = torch.tensor([[first]], dtype=F64)
    exact = ring.occupancy(here, taken, onward, 0.9)[0]
    points = torch.from_numpy(ring_model.sample(ROLL_OUTS, here.numpy(), taken.numpy())[0])
    draws = torch.bincount(torch.multinomial(exact, ROLL_OUTS, replacement=True), minlength=12) / ROLL_OUTS
    gaps[name], floor = ((found - exact).abs().sum() / 2 for found in (shares(points), draws))
    axes.bar(CELLS, exact, color=BLUE, alpha=0.5, label="exact")
    axes.plot(CELLS, shares(points), "o", color=RED, markersize=5, label="model")
    axes.set_title(f"first {name}, discount 0.9\ndistance {gaps[name]:.3f} (exact draws {floor:.3f})")
    axes.set_xticks(CELLS)
    axes.legend(fontsize=8)
    tidy(axes, "cell (now in cell 0)", "probability")
    if first > 0:
        panels[1].scatter(*points[:1000].T, s=3, color=RED, linewidths=0, label="model")
        panels[1].scatter(*ring.centres().T, s=30, marker="+", color="black", linewidths=1, label="cells")
panels[1].set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), aspect="equal", title="a step on: states in the plane")
panels[1].legend(fontsize=8, loc="center")
tidy(panels[1], "x", "y")
assert FAST or max(gaps.values()) < 0.1

# %% [markdown]
# ## 4. Why to follow the flow: variance of the gradient
#
# Fresh noise in `TDCFM` means many targets at the same point, whose mean is the copy's velocity. `TD2CFM` takes that
# velocity: same expected gradient, and none of the scatter. At a copy that is exact, the variances differ by
#
# $$\gamma^2\; \mathbb E \left[ \mathrm{Tr}\, \mathrm{Cov}\left( \nabla_\theta v_t(x_t)^\top (x_1 - x_0') \mid s, a, s',
# t, x_t \right) \right].$$
#
# (The paper prints it without $s'$ in the condition, which is the same where the dynamics are deterministic, as in its
# environments.) To measure it, let network and copy be the exact velocity of the linear process, and $\theta$ the
# weights, at zero, of five features added to it. At the optimum the expected gradient has to vanish.

# %%
METHODS = {
    "Monte Carlo": MonteCarloCFM(),
    "TD-CFM": TDCFM(solver=Midpoint(num_steps=12)),
    "coupled TD-CFM": CoupledTDCFM(solver=Midpoint(num_steps=12)),
    "TD2-CFM": TD2CFM(solver=Midpoint(num_steps=12)),
}
DISCOUNTS = (0.5, 0.9, 0.95)


def features(x, t, condition):
    """What is added to the exact velocity."""
    return torch.cat([torch.ones_like(x), x, t[..., None], condition], -1)


def exact_field(discount):
    """The exact velocity of the occupancy's path."""
    known = line.exact_velocity(linear, discount, path)
    return Field(path, lambda x, t, condition: known(x, t, condition.expand(*x.shape[:-1], -1)))


def backups(number, discount):
    """Transitions with random actions, as the objectives take them, and their noise."""
    state, action = torch.randn(number, 1, dtype=F64), 2.0 * torch.rand(number, 1, dtype=F64) - 1.0
    arrival, _ = line.step(state, action, torch.randn(number, 1, dtype=F64))
    weight = torch.full((number,), discount, dtype=F64)
    now, then = torch.cat([state, action], 1), torch.cat([arrival, linear.act(arrival)], 1)
    noise = BackupNoise(*torch.randn(3, number, 1, dtype=F64), *torch.rand(3, number, dtype=F64))
    return Backup(now, arrival, 1.0 - weight, then, weight), noise


def future(condition, discount):
    """One exact draw of the occupancy of each state and action."""
    mixture = line.occupancy(*condition.split(1, 1), linear, discount)
    return mixture.draw(torch.rand(len(condition), dtype=F64), torch.randn(len(condition), 1, dtype=F64))


def gradients(objective, discount, backup, noise):
    """Gradient of each sample's loss, shape (B, 5)."""
    exact, theta = exact_field(discount), torch.zeros(len(backup.state), 5, dtype=F64, requires_grad=True)

    def predict(x, t, condition):
        added = features(x, t, condition.expand(*x.shape[:-1], -1)) * theta[:, None]
        return exact.predict(x, t, condition) + added.sum(-1, keepdim=True)

    if not objective.bootstraps:
        one = torch.ones_like(backup.state_weight)
        backup = replace(backup, state=future(backup.condition, discount), state_weight=one, next_weight=0.0 * one)
    loss = sum(objective.loss(Field(path, predict), exact, backup, noise))
    return torch.autograd.grad(loss.sum(), theta)[0]


def scatter_of_targets(discount, backup, noise):
    """What fresh noise adds to the variance by the identity, from exact futures of the next states."""
    points = PathPoints.between(path, noise.fresh, future(backup.next_condition, discount), noise.t_bootstrap)
    error = flow_matching_loss(exact_field(discount).predict, path, points, backup.next_condition)
    slope = 2.0 * features(points.x_t, points.t, backup.condition)
    return float((slope.square().sum(1) * error).mean()) * discount**2


variance, z_score, added = {}, {}, {}
for discount in DISCOUNTS:
    backup, noise = backups(GRADIENTS, discount)
    added[discount] = scatter_of_targets(discount, backup, noise)
    for name, objective in METHODS.items():
        gradient = gradients(objective, discount, backup, noise)
        variance[name, discount] = float(gradient.var(0).sum())
        z_score[name, discount] = float((gradient.mean(0) / gradient.std(0)).abs().max()) * GRADIENTS**0.5

print("discount   TD-CFM   TD2-CFM   difference   the identity says")
for discount in DISCOUNTS:
    naive, followed = variance["TD-CFM", discount], variance["TD2-CFM", discount]
    print(f"{discount:8}{naive:9.3f}{followed:10.3f}{naive - followed:13.3f}{added[discount]:20.3f}")
    assert abs(naive - followed - added[discount]) < (0.3 if FAST else 0.06) * added[discount]

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(12.0, 3.8))
places = np.arange(len(DISCOUNTS))
for place, (name, color) in enumerate(zip(METHODS, (GREY, BLUE, GREEN, ORANGE), strict=True)):
    for axes, found in ((left, variance), (right, z_score)):
        bars = axes.bar(places + 0.2 * (place - 1.5), [found[name, d] for d in DISCOUNTS], 0.2, color=color, label=name)
        axes.bar_label(bars, fmt="{:.2g}", fontsize=7)
predicted = [variance["TD2-CFM", discount] + added[discount] for discount in DISCOUNTS]
left.plot(places - 0.1, predicted, "_", color="black", markersize=22, label="TD2-CFM plus the identity's term")
right.axhline(4.0, color=RED, linewidth=1, label="4 standard errors")
left.set_title("total variance of the gradient of a sample, at the optimum")
right.set_title(f"mean gradient of {GRADIENTS:,} samples at the optimum, largest entry")
for axes, label in ((left, "variance"), (right, "standard errors")):
    axes.set_yscale("log")
    axes.set_xticks(places, [f"discount {discount}" for discount in DISCOUNTS])
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3)
    tidy(axes, "", label)

for name in ("Monte Carlo", "TD-CFM", "TD2-CFM"):
    assert max(z_score[name, discount] for discount in DISCOUNTS) < 4.5
assert min(z_score["coupled TD-CFM", discount] for discount in (0.9, 0.95)) > 6.0

# %% [markdown]
# The identity's term accounts for the whole difference. At discount 0.95 `TD2CFM` has less than a thirtieth of the
# variance of `TDCFM`, and still less of that of Monte Carlo, whose targets are scattered over the whole future.
#
# The coupled variant lies between the two, but its mean gradient does not vanish: it is off by dozens of standard
# errors. It regresses on chords from $x_0$ to $\psi_1(x_0)$, which halfway are spread a quarter wider than the
# distribution that the direct term is mixed with, whose pairs are independent:

# %%
spot = torch.tensor([[0.4, 0.1]], dtype=F64).expand(GRADIENTS, -1)  # a next state, and its action
half = torch.full((GRADIENTS,), 0.5, dtype=F64)
_, noise = backups(GRADIENTS, 0.9)
mixture = line.occupancy(*spot[:1].split(1, 1), linear, 0.9)
density = mixture.marginal_log_prob(path, grid[None, :, None], half[0]).exp()[0]
deviation = float(
    ((density * grid.square()).sum() / density.sum() - ((density * grid).sum() / density.sum()) ** 2).sqrt()
)

spread = {}
figure, panels = plt.subplots(1, 3, figsize=(12.0, 3.0), sharey=True)
for axes, name in zip(panels, ("TD-CFM", "coupled TD-CFM", "TD2-CFM"), strict=True):
    points, _ = METHODS[name].bootstrap(exact_field(0.9).at(spot), replace(noise, t_bootstrap=half), (0.0, 1.0))
    spread[name] = float(points.std())
    axes.hist(
        points[:, 0], bins=80, range=(-2.5, 2.5), density=True, color=ORANGE, alpha=0.6, label="bootstrapped points"
    )
    axes.plot(grid, density, color=BLUE, label="exact distribution")
    axes.set(xlim=(-2.5, 2.5), title=f"{name}, t = 0.5\nstandard deviation {spread[name]:.3f} (exact {deviation:.3f})")
    tidy(axes, "x", "density" if axes is panels[0] else "")
panels[0].legend(fontsize=8)
assert abs(spread["TD2-CFM"] / deviation - 1.0) < 0.05
assert spread["coupled TD-CFM"] > 1.1 * deviation

# %% [markdown]
# At $t = 1$ chords and distribution meet again, so that the coupled variant still has the right occupancy as its fixed
# point; its distribution in between is another one. `TD2CFM` is right at every time. The longer the horizon, the less
# variance it has, and the more `TDCFM`.

# %% [markdown]
# ## 5. A maze: a trained model, and longer horizons than its own
#
# A point mass in four rooms, state $(x, y, \dot x, \dot y)$. The policy runs around clockwise, a lap taking about 40
# steps. The data: single steps with random forces from random starts. Training takes minutes, so that this section
# loads a model that comes with the package, `zoo:maze_loop`. Its discount is 0.99, a horizon of two and a half laps. It
# was trained by 4000 updates of `TD2CFM`, for which each transition was first extended to 128 steps of the policy;
# section 7 shows why. These commands train it again:
#
# ```bash
# flowmatch-rl collect -c conf/collect/maze.yaml --output data/maze
# flowmatch-rl fit -c conf/occupancy/maze_loop.yaml --model.init_args.network.init_args.block_dims [64,64] \
#   --model.init_args.network.init_args.condition_dims [64,64]
# ```
#
# A model also answers for a longer horizon than its own. A geometric time of discount $g$ is a sum of geometric times
# of discount $\gamma < g$: with probability $(1 - g) / (1 - \gamma)$ a future of discount $\gamma$ is one of discount
# $g$, else the policy continues from there to the next one. Nothing is trained for it; a future of discount 0.995 costs
# two of discount 0.99 on average. That the maze has no terminal states is said by `endless`.

# %%
maze, loop = PointMassMaze(action_repeat=4), MazeLoopPolicy()
maze_model = load_occupancy("zoo:maze_loop")
OWN, LONGER = maze_model.model.horizon.discount, 0.995
STEPS = 400 if FAST else 2800  # of a roll-out; the weight of what follows is below 1e-6
sources = torch.tensor([[-0.2, -0.1, 0.0, 0.0], [0.1, 0.25, 0.3, 0.0]])
states, ended = maze.futures(loop, sources, loop.act(sources), torch.zeros(STEPS, len(sources), maze.noise_dim))


def real_futures(start, discount):
    """States of a roll-out at geometric times; the maze is deterministic."""
    return states[geometric_steps(torch.rand(SAMPLES, dtype=F64), discount, STEPS) - 1, start]


def draw_maze(axes, points, source, color, title):
    """Positions over the walls."""
    for x_low, y_low, x_high, y_high in maze.walls().tolist():
        axes.fill([x_low, x_high, x_high, x_low], [y_low, y_low, y_high, y_high], color="0.6")
    axes.scatter(*points[:, :2].T, s=4, color=color, alpha=0.5, linewidths=0)
    axes.plot(*source[:2], "X", color="black", markersize=8)
    axes.set(xlim=(-0.31, 0.31), ylim=(-0.31, 0.31), aspect="equal", title=title)
    tidy(axes, "x", "y")
    axes.label_outer()


distances = []
figure, panels = plt.subplots(2, 4, figsize=(12.0, 6.4), sharex=True, sharey=True)
for start, (row, source) in enumerate(zip(panels, sources, strict=True)):
    for (left, right), discount in zip((row[:2], row[2:]), (OWN, LONGER), strict=True):
        real, other = real_futures(start, discount), real_futures(start, discount)
        made = torch.from_numpy(maze_model.sample(SAMPLES, source.numpy(), discount=discount, endless=True))
        distance, floor = (float(wasserstein_distance(some, real)) for some in (made, other))
        distances.append(distance)
        draw_maze(left, real, source, BLUE, f"real, discount {discount}\ntwice: distance {floor:.3f}")
        draw_maze(right, made, source, ORANGE, f"model, discount {discount}\nto real: distance {distance:.3f}")
assert FAST or max(distances) < 0.12

# %% [markdown]
# The cross marks the start. (Distances are Wasserstein's, over positions in units of the maze and velocities in units
# per second together.) The model knows where the policy goes, from data that never went there, and its chained futures
# are as near to real ones as its own. It is also blurred: real states lie on a line, those of the model around it,
# a few inside the walls.
#
# ## 6. The value of rewards that the model was not trained on
#
# For a reward of the state arrived at,
#
# $$Q^\pi(s, a) = \mathbb E \sum_{k \ge 0} \gamma^k r(S_{k+1}) = \frac{1}{1 - \gamma}\, \mathbb E_{X \sim m^\pi(\cdot
# \mid s, a)} \left[ r(X) \right]:$$
#
# a value is a mean over samples, for any reward, with nothing trained. Below are 361 rewards, being near each point of
# a grid, all valued with the same samples for the upper start, against its roll-out. These values are divided by the
# horizon, which makes them mean rewards.

# %%
side = torch.linspace(-0.27, 0.27, 19).tolist()
near = [GoalReward(("x", "y"), goal=(x, y), radius=0.05, margin=0.05) for y in side for x in side]
earned = torch.stack([reward.evaluate(states[:, 0], maze.columns) for reward in near], dim=1)

figure, panels = plt.subplots(1, 3, figsize=(12.0, 3.8))
print("discount   correlation   root mean square difference   standard error")
correlations = []
for discount, color in ((LONGER, ORANGE), (OWN, BLUE)):
    real = (1.0 - discount) * monte_carlo_value(earned, ended[:, :1].expand_as(earned), discount).value
    futures = torch.from_numpy(maze_model.sample(VALUE_SAMPLES, sources[0].numpy(), discount=discount, endless=True))
    found = torch.stack([reward.evaluate(futures, maze.columns) for reward in near], dim=1)
    found, deviation = found.mean(0), found.std(0) / VALUE_SAMPLES**0.5
    correlations.append(float(np.corrcoef(real, found)[0, 1]))
    error, noise = (float(some.square().mean().sqrt()) for some in (found - real, deviation))
    print(f"{discount:8}{correlations[-1]:14.3f}{error:30.4f}{noise:17.4f}")
    panels[2].errorbar(
        real, found, 2.0 * deviation, fmt="o", color=color, markersize=3, linewidth=0.6, label=f"discount {discount}"
    )
frame = {
    "origin": "lower",
    "extent": (-0.285, 0.285, -0.285, 0.285),
    "cmap": "Blues",
    "vmin": 0.0,
    "vmax": float(real.max()),
}
for axes, (name, values) in zip(panels, {"roll-out": real, "model": found}.items(), strict=False):
    image = axes.imshow(values.view(len(side), -1), **frame)
    axes.set_title(f"value of being near, by {name}, discount {OWN}")
    tidy(axes, "x", "y")
    axes.grid(visible=False)
figure.colorbar(image, ax=panels[:2], shrink=0.8)
panels[2].axline((0.0, 0.0), slope=1.0, color=GREY, linewidth=1)
panels[2].legend(fontsize=8)
tidy(panels[2], "value by roll-out", "value by model, ± 2 standard errors")
assert FAST or min(correlations) > 0.95

# %%
print(f"{'reward':30} discount   roll-out     model   standard error")
rewards = {
    "running clockwise": CirculationReward(scale=0.4),
    "middle of the top right room": GoalReward(("x", "y"), goal=(0.15, 0.15), radius=0.05, margin=0.05),
}
for name, reward in rewards.items():
    for discount in (OWN, LONGER):
        real = monte_carlo_value(reward.evaluate(states[:, 0], maze.columns), ended[:, 0], discount).value
        found = maze_model.value(reward, sources[0].numpy(), discount=discount, number=VALUE_SAMPLES, endless=True)
        print(f"{name:30}{discount:9}{real:11.2f}{found.value:10.2f}{found.standard_error:17.2f}")
        assert FAST or abs(found.value / real - 1.0) < 0.15

# %% [markdown]
# The same samples value all of the rewards, at a correlation of 0.98 with roll-outs. The differences, 0.008 of at most
# 0.15, are more than the standard error of 0.003. Being in the room is valued within two standard errors. The values of
# running are too low by 4 to 5 % at both horizons, which is many standard errors: these are of the samples, and know
# nothing of what the model has wrong.
#
# ## 7. Why long horizons are hard, and what shortens them
#
# A bootstrapped target contains the errors of the model it is taken from. They come back in the next backup, to which
# the next error is added: **the bias of a target accumulates over the horizon**, and more data alone do not take it
# away ([Park et al., 2025](https://arxiv.org/abs/2506.04168)). What helps is to look ahead by $n$ steps of the policy
# before bootstrapping,
#
# $$m^\pi = (1 - \gamma) \sum_{k < n} \gamma^k\, \mathrm{Pr}(S_{k+1} = \cdot) + \gamma^n\, \mathbb E \left[
# m^\pi(\cdot \mid S_n, \pi(S_n)) \right],$$
#
# since a mistake $b$ of every backup adds up to $b\, (1 + \gamma^n + \gamma^{2n} + \dots) = b / (1 - \gamma^n)$.
#
# ### On a table
#
# The ring of section 1, with a table in place of a network: of the value of a reward in cell 0, and of the occupancy.
# Each backup adds 0.01 to every value, and moves one thousandth of each occupancy out of the ring, as networks do. Dots
# are tables after so many backups that they no longer change, lines are closed forms.

# %%
BACKUP_STEPS = {1: BLUE, 4: GREEN, 16: ORANGE, 64: RED}
BIAS, STRAYS = 0.01, 0.001
kernel, in_cells = ring.policy_matrix(onward), torch.eye(ring.num_states, dtype=F64)
horizons = np.geomspace(2.0, 500.0, 60)

figure, (values, outside, progress) = plt.subplots(1, 3, figsize=(12.0, 3.6))
for n, color in BACKUP_STEPS.items():
    for discount in (0.8, 0.9, 0.95, 0.99, 0.995):
        unchanged = torch.zeros(round(30.0 / (1.0 - discount**n)), 1, 1, dtype=F64)
        of_values = TabularBackup.of_steps(in_cells[:, :1], kernel, kernel, discount, n)
        of_futures = TabularBackup.of_steps((1.0 - discount) * in_cells, kernel, kernel, discount, n)
        tables = of_values.repeat(unchanged + BIAS)
        error = float((tables[-1] - of_values.fixed_point()).abs().max())
        lost = float(of_futures.with_strays(STRAYS).repeat(unchanged)[-1, :, -1].max())
        values.plot(1.0 / (1.0 - discount), error, "o", color=color, markersize=5)
        outside.plot(1.0 / (1.0 - discount), lost, "o", color=color, markersize=5)
        assert abs(error / accumulated_bias(BIAS, discount, n) - 1.0) < 1e-6
        assert abs(lost / accumulated_strays(STRAYS, discount, n) - 1.0) < 1e-6
        if discount == 0.99:
            missing = (of_values.repeat(unchanged) - of_values.fixed_point()).abs().amax((1, 2))
            progress.plot(range(1, len(missing)), missing[1:], color=color)
    values.plot(horizons, [accumulated_bias(BIAS, 1.0 - 1.0 / h, n) for h in horizons], color=color, label=f"n = {n}")
    outside.plot(horizons, [accumulated_strays(STRAYS, 1.0 - 1.0 / h, n) for h in horizons], color=color)
for axes in (values, outside):
    axes.set(xscale="log", yscale="log")
progress.set(xscale="log", xlim=(1, 1000), yscale="log", ylim=(1e-3, 20.0))
values.set_title("value: error after many backups")
outside.set_title("occupancy: probability outside the ring")
progress.set_title("value without bias, discount 0.99")
tidy(values, "horizon 1 / (1 - discount)", f"error, of {BIAS} per backup")
tidy(outside, "horizon 1 / (1 - discount)", f"probability, of {STRAYS} per backup")
tidy(progress, "backups", "error that is left")
values.legend(fontsize=8)

# %% [markdown]
# With one step the error grows with the horizon. With $n$ steps it is about that of a single backup until the horizon
# exceeds $n$, and an $n$-th of that of one step from there. The right panel shows the other half of the gain: tables
# forget where they began in $n$ times as few backups. For a flow this is the clock of section 3, with $\gamma^n$ in
# place of $\gamma$.
#
# ### Where the steps come from
#
# A **combination lock**: 64 states in a row, in each of which one of two actions is right. The right one leads on (one
# time in 200 it does not), the wrong one back to the first state. The data are single steps from random states with
# random actions. What is the value of the right actions, at discount 0.99, if opening the lock earns 1? There are two
# ways to look ahead:
#
# - **$n$ steps of the data.** The first action is the one whose value is asked for. The others were chosen at random,
#   and hardly ever are all of them right.
# - **$n$ steps in a model.** Count the transitions, then follow the right actions in the counted model: *expansion*.
#
# To imitate a network, each backup has a random error of standard deviation 0.02 in every state.

# %%
lock, LOCK_DISCOUNT, LOCK_STEPS, NOISE = CombinationLock(length=64, slip=0.005), 0.99, 50_000, 0.02
generator = torch.Generator().manual_seed(0)
before = torch.randint(lock.length, (LOCK_STEPS,), generator=generator)
is_right = torch.rand(LOCK_STEPS, generator=generator) < 0.5
after = lock.step(before, is_right, torch.rand(LOCK_STEPS, generator=generator))
counted = counted_kernel(before[is_right], after[is_right], lock.num_states)  # of the right actions
random = counted_kernel(before, after, lock.num_states)  # of the actions in the data
noise = NOISE * torch.randn(400, 20, lock.num_states, 1, generator=generator, dtype=F64)  # 20 repetitions
noise[..., -1, :] = 0.0  # the open lock has no value to learn

right = lock.kernel(1.0)
exact = TabularBackup.of_steps(lock.opened(), right, right, LOCK_DISCOUNT).fixed_point()
figure, (places, progress) = plt.subplots(1, 2, figsize=(12.0, 3.8))
places.plot(exact[:-1], color="black", linewidth=3, alpha=0.4, label="exact")
print(" n   n steps of the data   in a model   in a model, each backup with noise")
noisy = {}
for n, color in BACKUP_STEPS.items():
    of_data, in_model = (
        TabularBackup.of_steps(lock.opened(), counted, rest, LOCK_DISCOUNT, n) for rest in (random, counted)
    )
    tables = in_model.repeat(noise)
    errors = (tables - exact)[..., :-1, 0].square().mean((1, 2)).sqrt()
    noisy[n] = float(errors[-100:].square().mean().sqrt())
    biased, fair = (float((some.fixed_point() - exact)[:-1].square().mean().sqrt()) for some in (of_data, in_model))
    print(f"{n:2}{biased:22.3f}{fair:13.3f}{noisy[n]:37.3f}")
    progress.plot(range(1, len(errors)), errors[1:], color=color, label=f"n = {n}")
    if n in (1, 64):
        places.plot(tables[-1, 0, :-1], color=color, linewidth=1, label=f"n = {n} in the model, with noise")
    if n == 4:
        places.plot(of_data.fixed_point()[:-1], "--", color=color, label="n = 4 of the data, without noise")
    assert fair < 0.02
    assert n == 1 or biased > 0.3
assert 0.7 < noisy[64] / NOISE < 1.3
assert noisy[1] > 3.0 * noisy[64]
places.set_title("value of the right actions")
progress.set_title("error by backups in the model, with noise")
progress.set(xscale="log", xlim=(1, 400), yscale="log")
progress.set_yticks([0.02, 0.05, 0.1, 0.2, 0.5], ["0.02", "0.05", "0.1", "0.2", "0.5"])
progress.minorticks_off()
places.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0.05, 0.08))
progress.legend(fontsize=8)
tidy(places, "state of the lock", "value")
tidy(progress, "backups", "root mean square error")

# %% [markdown]
# Several steps of the data are of no use: their value is that of somebody who takes right actions now and then. In the
# model any number of steps has the same fixed point as one step, whose small error is that of the counts. With the
# error of a network, one step ends at four times the error of 64 steps, and takes far more backups to get there: news
# of the open lock moves by one state in each.
#
# ### Of a flow
#
# `Expansion` does the same for the flow: it learns a one-step model of the environment from the transitions, and
# follows the policy in it before bootstrapping. Below are recorded runs on the loop of section 5, each of 1000 updates
# for one discount, or for all from 0.8 to that one (*many horizons*): then the discount is an input of the network,
# drawn for each sample, and a fraction of each batch reaches a long horizon through a shorter one.
# `python -m benchmarks occupancy_bias` repeats them. The dashed line is the distance between two real samples, which no
# model can beat.

# %%
recorded = json.loads((Path(flowmatch_rl.__file__).parents[1] / "benchmarks" / "results.json").read_text())
rows = recorded["occupancy_bias"]["rows"]
NAMES = {
    "transitions": ("one step", BLUE),
    "many horizons": ("one step, many horizons", GREEN),
    "n = 128": ("128 steps in a model", RED),
    "Monte Carlo": ("Monte Carlo, on policy", GREY),
}
figure, (distance, relative) = plt.subplots(1, 2, figsize=(12.0, 3.8))
for name in dict.fromkeys(row["variant"] for row in rows):
    label, color = NAMES[name]
    found = [row for row in rows if row["variant"] == name]
    lengths = sorted({row["horizon"] for row in found})
    for axes, key in ((distance, "emd"), (relative, "relative_error")):
        mean = [np.mean([row[key] for row in found if row["horizon"] == length]) for length in lengths]
        axes.plot([row["horizon"] for row in found], [row[key] for row in found], "o", color=color, markersize=4)
        axes.plot(lengths, mean, color=color, label=label)
floors = sorted({row["horizon"]: row["emd_floor"] for row in rows}.items())
distance.plot(*zip(*floors, strict=True), "--", color="black", linewidth=1, label="two real samples")
distance.set_title("distance to real future states")
relative.set_title("error of the value of running clockwise")
lengths = [length for length, _ in floors]
for axes in (distance, relative):
    axes.set(xscale="log", ylim=(0.0, None))
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.minorticks_off()
tidy(distance, "horizon 1 / (1 - discount)", "Wasserstein-1")
tidy(relative, "horizon 1 / (1 - discount)", "root mean square error / mean value")
distance.legend(fontsize=8)

# %% [markdown]
# With one step the value of running is wrong by a fifth at horizon 5 and by three quarters at horizon 200. With 128
# steps the error falls from 8 % to 4 %, and the distance falls, too: the longer the horizon, the less a future depends
# on where it began, and the easier it is to fit.
#
# Two things come together here, as on the lock. 1000 updates are too few for one step at long horizons (one time
# constant at horizon 100, half of one at 200). But eight times as many bring the distance at horizon 100 only from 0.29
# to 0.22, and the rest is bias. What remains with 128 steps is the error of a single fit and that of the one-step
# model.
#
# Expansion has its limits: the one-step model must be good over as many steps, so that it serves smooth, deterministic
# dynamics, and a gate ends an expansion where an ensemble of such models disagrees (see
# [docs/occupancy.md](../docs/occupancy.md)).
#
# ## 8. What is not shown
#
# - **Long runs.** Thousands of updates of a small network here, millions of a large one in the paper. The distances
#   above are not at their floor.
# - **Comparisons.** All learning here was by `TD2CFM`. The other objectives and the diffusion form `TD2DD` stand beside
#   it in [benchmarks/RESULTS.md](../benchmarks/RESULTS.md).
# - **Losses do not compare** across objectives: at the optimum they still differ by the variance of their targets.
#   Compare distances, likelihoods (`TrainedOccupancy.log_prob`) and values.
# - **Narrow rewards.** One that lives in a small region needs many samples, and any blur of the model shows in it.
# - **Families of policies and planning.** `MazeGoalPolicy` is a policy for every goal; one model of all of them
#   answers, by `TrainedOccupancy.plan`, which of them is worth most here for a new reward.
# - Ends of episodes, actions taken from the data (`policy: null`), settings of the expansion and data sets on disk are
#   described in [docs/occupancy.md](../docs/occupancy.md).
#
# From the command line, with validation against roll-outs:
#
# ```bash
# flowmatch-rl collect -c conf/collect/ring.yaml --output data/ring
# flowmatch-rl fit -c conf/occupancy/ring.yaml
# flowmatch-rl collect -c conf/collect/maze.yaml --output data/maze
# flowmatch-rl fit -c conf/occupancy/maze_loop.yaml -c conf/occupancy/presets/many_horizons.yaml
# ```
#
# ### References
#
# - Farebrother et al., *Temporal Difference Flows*, [arXiv:2503.09817](https://arxiv.org/abs/2503.09817)
# - Farebrother et al., *Compositional Planning with Jumpy World Models*,
#   [arXiv:2602.19634](https://arxiv.org/abs/2602.19634), for the consistency of horizons
# - Park et al., *Horizon Reduction Makes RL Scalable*, [arXiv:2506.04168](https://arxiv.org/abs/2506.04168)
# - Janner et al., *gamma-Models: Generative Temporal Difference Learning for Infinite-Horizon Prediction*,
#   [arXiv:2010.14496](https://arxiv.org/abs/2010.14496)
# - Dayan, *Improving Generalization for Temporal Difference Learning: The Successor Representation*, Neural Computation
#   5 (1993)
