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
# # Flow matching
#
# A flow carries noise to data. This notebook shows why it can be learned by plain regression, what else one network
# then knows, and what decides how many steps a sample takes. Everything it claims is computed below; the mathematics is
# that of the package, on distributions whose exact answers are known.
#
# 1. A flow carries noise to data
# 2. The loss that cannot be evaluated, and the one that can
# 3. One network, four predictions
# 4. Straight and curved paths
# 5. A model of two moons
# 6. Few steps
# 7. Where to continue

# %%
import logging
import os
import tempfile
import warnings
from pathlib import Path
from typing import get_args

import matplotlib.pyplot as plt
import numpy as np
import torch
from lightning.pytorch import Trainer
from matplotlib.collections import LineCollection

from flowmatch_rl.batches import read_samples
from flowmatch_rl.couplings import ExactCoupling, IndependentCoupling
from flowmatch_rl.data import SampleData
from flowmatch_rl.evaluation import FlowTests, distance_by_steps, sample_flow
from flowmatch_rl.figures import draw_samples
from flowmatch_rl.figures.style import BLUE, GREEN, GREY, ORANGE, RED, scale_around_zero, tidy
from flowmatch_rl.inference import load_flow
from flowmatch_rl.metrics import energy_distance
from flowmatch_rl.modules import FlowMatchingModel, FlowOptimizer
from flowmatch_rl.nets import EmaSettings, VelocityArchitecture
from flowmatch_rl.objectives import MeanFlow, flow_matching_loss
from flowmatch_rl.paths import (
    AffinePath,
    CosineSchedule,
    Field,
    GaussianMixture,
    GaussianSource,
    LinearSchedule,
    PathPoints,
    VariancePreservingSchedule,
)
from flowmatch_rl.samplers import AverageVelocitySampler, DdimSampler, OdeSampler, SdeSampler
from flowmatch_rl.solvers import RK4, Euler, ExactDivergence, Midpoint, log_likelihood
from flowmatch_rl.types import Prediction

# %% [markdown]
# `FLOWMATCH_FAST=1` in the environment runs everything with fewer updates and samples, to test the notebook. The
# numbers in the text are those of the full run.

# %%
FAST = os.environ.get("FLOWMATCH_FAST") == "1"
BATCHES = 64 if FAST else 256  # of 1,024 samples, for the gradients of section 2
PARTICLES = 200 if FAST else 2000  # that samplers carry
SMALL_UPDATES = 100 if FAST else 1000  # of the networks of sections 2 and 4
UPDATES, FEW_STEP_UPDATES = (100, 100) if FAST else (3000, 2000)  # of the models of sections 5 and 6
GRID = 12 if FAST else 42  # cells per side of the density maps

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")
torch.manual_seed(0)
plt.rcParams.update({"figure.dpi": 100, "figure.constrained_layout.use": True, "axes.titlesize": 10})

# %% [markdown]
# ## 1. A flow carries noise to data
#
# Let $x_0 \sim \mathcal N(0, I)$ be noise and $x_1$ data. A **probability path** joins them,
#
# $$x_t = \alpha_t x_1 + \sigma_t x_0, \qquad t \in [0, 1],$$
#
# here with $\alpha_t = t$, $\sigma_t = 1 - t$ (`LinearSchedule`). Its **marginal** $p_t$, the distribution of $x_t$, is
# noise at $t = 0$ and data at $t = 1$. The **marginal velocity**
#
# $$v_t(x) = \mathbb E\left[\dot\alpha_t x_1 + \dot\sigma_t x_0 \mid x_t = x\right]$$
#
# moves points so that their distribution is $p_t$ at every time: draw $x_0$, solve $\dot x = v_t(x)$ up to $t = 1$, and
# hold a sample of the data ([Lipman et al., 2022](https://arxiv.org/abs/2210.02747)). For a mixture of normals, $p_t$
# and $v_t$ have closed forms.

# %%
mixture = GaussianMixture(
    weights=torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64),
    means=torch.tensor([[-1.5], [0.3], [1.6]], dtype=torch.float64),
    scales=torch.tensor([0.3, 0.15, 0.3], dtype=torch.float64),
)
path = AffinePath(LinearSchedule())
velocity = mixture.field(path)


def draw(distribution, number):
    """Noise, data and flow times."""
    dim, dtype = distribution.means.shape[1], distribution.means.dtype
    x_0, z = torch.randn(2, number, dim, dtype=dtype)
    uniform, t = torch.rand(2, number, dtype=dtype)
    return x_0, distribution.draw(uniform, z), t


x_0, x_1, t = draw(mixture, PARTICLES)
times, trajectories = RK4(num_steps=100).trajectory(velocity, x_0, 0.0, 1.0)

# %%
side = torch.linspace(-3.0, 3.0, 241, dtype=torch.float64)
grid = side.expand(101, -1)[..., None]
density = mixture.marginal_log_prob(path, grid, torch.linspace(0.0, 1.0, 101, dtype=torch.float64)).exp()

figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.6), sharey=True, width_ratios=[2.2, 1])
left.pcolormesh(times, side, density.T, cmap="Blues", vmax=1.0, shading="gouraud")
left.plot(times, trajectories[:, :40, 0], color=ORANGE, linewidth=0.8)
left.set_title("density $p_t$ (the darker the denser), and 40 trajectories")
tidy(left, "flow time t (noise to data)", "x")
right.hist(
    trajectories[-1, :, 0], bins=80, range=(-3, 3), density=True, orientation="horizontal", color=ORANGE, alpha=0.6
)
right.plot(mixture.log_prob(side[:, None]).exp(), side, color=BLUE)
right.set_title("distribution of the data (line), carried points (bars)")
tidy(right, "density")

# %% [markdown]
# Whether a velocity carries a density is decided by the **continuity equation**
# $\partial_t p_t + \nabla \cdot (p_t v_t) = 0$. Divided by $p_t$ it says that along a trajectory the log-density
# changes at the rate of minus the divergence,
#
# $$\frac{\mathrm d}{\mathrm dt} \log p_t(x_t) + \nabla \cdot v_t(x_t) = 0 .$$
#
# The left side, the residual, is zero to rounding for the mixture's velocity, and for no other one below.


# %%
def residual(velocity, x, t):
    """Rate of the log-density along the trajectory, plus the divergence."""
    v, divergence = ExactDivergence().evaluate(velocity, x, t, None, None)
    ahead = (v, torch.ones_like(t))
    return torch.func.jvp(lambda x, t: mixture.marginal_log_prob(path, x, t), (x, t), ahead)[1] + divergence


others = {
    "the mixture's velocity": velocity,
    "the wrong sign": lambda x, t, condition: -velocity(x, t, condition),
    "a tenth too fast": lambda x, t, condition: 1.1 * velocity(x, t, condition),
    "velocity of the cosine path": mixture.field(AffinePath(CosineSchedule())),
}
x_t = path.sample(x_0, x_1, t)
residuals = {name: float(residual(v, x_t, t).square().mean().sqrt()) for name, v in others.items()}
for name, value in residuals.items():
    print(f"{name:30} residual {value:8.1e} (root mean square)")

assert residuals.pop("the mixture's velocity") < 1e-9
assert min(residuals.values()) > 0.1

# %% [markdown]
# Integrated along a trajectory, the same equation gives the **log-likelihood** of a point: follow it back to the noise
# and collect the divergence, $\log p_1(x_1) = \log p_0(x_0) - \int_0^1 \nabla \cdot v_t(x_t)\,\mathrm dt$.

# %%
solver = RK4(num_steps=50 if FAST else 100)
found, _ = log_likelihood(velocity, x_1, GaussianSource().log_prob, solver, ExactDivergence())
error = (found - mixture.log_prob(x_1)).abs().max()
print(f"largest error of the log-likelihood over {len(x_1)} points: {error:.1e} nats")
assert error < 1e-3

# %% [markdown]
# ## 2. The loss that cannot be evaluated, and the one that can
#
# A network $u_\theta$ should learn $v_t$. The **marginal loss** asks for what is not known of real data:
#
# $$L_\mathrm{marginal}(\theta) = \mathbb E \left\| u_\theta(x_t, t) - v_t(x_t) \right\|^2 .$$
#
# The **conditional loss** takes the velocity of the path through the drawn pair $(x_0, x_1)$ instead:
#
# $$L_\mathrm{conditional}(\theta) = \mathbb E \left\| u_\theta(x_t, t) - (\dot\alpha_t x_1 + \dot\sigma_t x_0)
# \right\|^2 .$$
#
# Through one point pass many pairs, with many velocities; their mean at that point is $v_t$, and regression learns
# means. Hence the two losses have the same gradient and differ by a number that does not depend on $\theta$ (Lipman et
# al., Theorem 2). This is all the training there is:


# %%
def train(distribution, coupling, hidden_dim):
    """A velocity network trained on the conditional loss."""
    architecture = VelocityArchitecture(hidden_dim, num_blocks=2, activation="silu", max_frequency=10.0)
    network = architecture.build(distribution.means.shape[1], condition_dim=0).to(distribution.means.dtype)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, SMALL_UPDATES)
    for _ in range(SMALL_UPDATES):
        x_0, x_1, t = draw(distribution, 256)
        x_0 = x_0[coupling.pair(x_0, x_1, torch.rand(256))]
        loss = flow_matching_loss(network, path, PathPoints.between(path, x_0, x_1, t)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return network.requires_grad_(False)


trained = train(mixture, IndependentCoupling(), hidden_dim=64)

# %% [markdown]
# Both losses of three fields, on the same draws. The network was trained without $v_t$. The exact field shows
# the part of the conditional loss that no training removes; only the marginal loss goes to zero.

# %%
torch.manual_seed(1)
untrained = VelocityArchitecture(hidden_dim=32, num_blocks=1, time_features=16, max_frequency=10.0).build(1, 0).double()


def losses(network, x_0, x_1, t, target=velocity):
    """Conditional and marginal loss of each sample."""
    points = PathPoints.between(path, x_0, x_1, t)
    marginal = (network(points.x_t, t, None) - target(points.x_t, t, None)).square().mean(1)
    return flow_matching_loss(network, path, points), marginal


many = draw(mixture, 16 * 1024 if FAST else 128 * 1024)
constants = []
print("field               conditional   marginal   difference")
with torch.no_grad():
    for name, field in {"untrained network": untrained, "trained network": trained, "exact velocity": velocity}.items():
        conditional, marginal = losses(field, *many)
        difference = conditional - marginal
        constants.append((float(difference.mean()), float(difference.std()) / len(difference) ** 0.5))
        constant, deviation = constants[-1]
        print(f"{name:20}{conditional.mean():11.4f}{marginal.mean():11.4f}{constant:13.4f} ± {deviation:.4f}")

(exact, _), *others = constants[::-1]
assert all(abs(constant - exact) < 4.0 * deviation for constant, deviation in others)

# %% [markdown]
# Now the gradients, of the untrained network, averaged over more and more samples. Their difference shrinks like one
# over the root of the number of samples, as the error of a mean does, and stays at the size expected of one. Against
# the velocity of another path, it stays where it is.


# %%
def gradient(loss):
    """Gradient of a mean loss, as one vector."""
    parts = torch.autograd.grad(loss.mean(), list(untrained.parameters()), retain_graph=True)
    return torch.cat([part.flatten() for part in parts])


def relative_length(differences, length):
    """Length of the mean of more and more gradients."""
    counts = torch.arange(1, len(differences) + 1)[:, None]
    return (torch.stack(differences).cumsum(0) / counts).norm(dim=1) / length


cosine_velocity = mixture.field(AffinePath(CosineSchedule()))
gradients, differences, controls = [], [], []
for _ in range(BATCHES):
    batch = draw(mixture, 1024)
    conditional, marginal = (gradient(loss) for loss in losses(untrained, *batch))
    gradients.append(marginal)
    differences.append(conditional - marginal)
    controls.append(conditional - gradient(losses(untrained, *batch, target=cosine_velocity)[1]))

length = torch.stack(gradients).mean(0).norm()
difference, control = relative_length(differences, length), relative_length(controls, length)
expected = torch.stack(differences).var(0).sum().sqrt() / torch.arange(1, BATCHES + 1).sqrt() / length

print(f"{1024 * BATCHES:,} samples: difference {difference[-1]:.4f} of the gradient, expected {expected[-1]:.4f}")
print(f"against the velocity of the cosine path: {control[-1]:.4f}")
assert difference[-1] < 3.0 * expected[-1]
assert control[-1] > 5.0 * expected[-1]

# %%
x_0, x_1, _ = draw(mixture, PARTICLES)
half = torch.full((PARTICLES,), 0.5, dtype=torch.float64)
middle = path.sample(x_0, x_1, half)

figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.8))
target = path.conditional_velocity(x_0, x_1, half)
left.scatter(middle, target, s=5, color=GREY, alpha=0.4, linewidths=0, label="conditional, of one pair each")
inside = side[side.abs() < 1.7][:, None]
left.plot(inside, velocity(inside, half[0], None), color=BLUE, label="marginal, exact")
left.plot(inside, trained(inside, half[0]), "--", color=ORANGE, label="network, trained on the grey points")
left.set_title("velocities at t = 0.5")
left.legend(fontsize=8)
tidy(left, "x", "velocity")
samples = 1024 * torch.arange(1, BATCHES + 1)
right.loglog(samples, control, color=RED, label="against the velocity of the cosine path")
right.loglog(samples, difference, color=BLUE, label="conditional against marginal loss")
right.loglog(samples, expected, "--", color=GREY, label="expected of a sampling error")
right.set_title("difference of two gradients")
right.legend(fontsize=8)
tidy(right, "samples", "length, relative to the gradient")

# %% [markdown]
# ## 3. One network, four predictions
#
# A network may predict the velocity $v_t$, the data $\mathbb E[x_1 \mid x_t]$, the noise $\mathbb E[x_0 \mid x_t]$, or
# the **score** $s_t = \nabla \log p_t = -\mathbb E[x_0 \mid x_t] / \sigma_t$. All are linear in the two posterior
# means, and $x_t = \alpha_t \mathbb E[x_1 \mid x_t] + \sigma_t \mathbb E[x_0 \mid x_t]$ ties these together: **any one
# of the four gives the other three**, at the same point, without another network. For the linear path,
#
# $$\mathbb E[x_1 \mid x_t] = x_t + (1 - t) v_t, \qquad \mathbb E[x_0 \mid x_t] = x_t - t\, v_t, \qquad
# s_t = \frac{t\, v_t - x_t}{1 - t}.$$
#
# `AffinePath.convert` does it for every path. Below, each prediction of the mixture is computed from each other one and
# compared with its closed form.

# %%
predictions = get_args(Prediction)
diffusion = AffinePath(VariancePreservingSchedule())
x_0, x_1, t = draw(mixture, PARTICLES)
t = 0.02 + 0.96 * t
for name, some_path in {"linear path": path, "variance-preserving path": diffusion}.items():
    x_t = some_path.sample(x_0, x_1, t)
    exact = {prediction: mixture.field(some_path, prediction)(x_t, t, None) for prediction in predictions}
    errors = [
        (some_path.convert(exact[source], x_t, t, source, target) - exact[target]).abs().max()
        for source in predictions
        for target in predictions
    ]
    print(f"{name:25} largest error of {len(errors)} conversions: {max(errors):.1e}")
    assert max(errors) < 1e-6

# %% [markdown]
# **Diffusion is one more path.** `VariancePreservingSchedule` is the one of
# [Song et al., 2020](https://arxiv.org/abs/2011.13456), with time reversed. On any path the same field can be sampled
# by
#
# - the ordinary differential equation (ODE) $\dot x = v_t(x)$, for a diffusion its *probability flow*;
# - the reverse stochastic equation (SDE)
#   $\mathrm dx = \left(v_t + \tfrac12 g_t^2 s_t\right) \mathrm dt + g_t\, \mathrm dW$ with
#   $g_t^2 = 2 \sigma_t^2 \frac{\mathrm d}{\mathrm dt} \log \frac{\alpha_t}{\sigma_t}$: fresh noise, pulled back by the
#   score, with the same marginals;
# - DDIM: predict data and noise, mix them again with the next $\alpha$ and $\sigma$.

# %%
samplers = {
    "ODE, 50 Euler steps": OdeSampler(Euler(num_steps=50)),
    "SDE, 200 steps": SdeSampler(num_steps=200),
    "DDIM, 50 steps": DdimSampler(num_steps=50),
}
START = 0.01  # alpha is 0 at the very start of the linear path, and g infinite
noise = torch.randn(PARTICLES, 1, dtype=torch.float64)
fresh = torch.stack([draw(mixture, PARTICLES)[1] for _ in range(40)])
usual = np.quantile([float(energy_distance(*pair)) for pair in fresh.view(20, 2, PARTICLES, 1)], 0.95)

figure, panels = plt.subplots(2, 3, figsize=(9.6, 5.2), sharex=True, sharey=True)
ends = {}
for row, (name, some_path) in zip(panels, {"linear": path, "variance preserving": diffusion}.items(), strict=True):
    field = Field(some_path, mixture.field(some_path))
    for axes, (sampler_name, sampler) in zip(row, samplers.items(), strict=True):
        times, trajectories = sampler.trajectory(field, noise, START, 1.0, torch.randn_like)
        ends[name, sampler_name] = trajectories[-1]
        axes.plot(times, trajectories[:, :25, 0], color=GREY, linewidth=0.7)
        heights, edges = np.histogram(trajectories[-1], bins=60, range=(-3, 3), density=True)
        axes.stairs(1.0 + 0.25 * heights, edges, baseline=1.0, orientation="horizontal", fill=True, color=ORANGE)
        axes.plot(1.0 + 0.25 * mixture.log_prob(side[:, None]).exp(), side, color=BLUE, linewidth=1)
        distance = float(energy_distance(trajectories[-1], fresh[0]))
        axes.set_title(f"{name}: {sampler_name}\nenergy distance {distance:.5f}")
        tidy(axes, "flow time t", "x")
        axes.label_outer()
        axes.set_xticks([0.0, 0.5, 1.0])
        axes.set_ylim(-3.5, 3.5)
print(f"energy distance of two sets of fresh samples: below {usual:.5f} in 19 of 20 cases")

# %% [markdown]
# All six end in the distribution of the data (at the right of each panel, line: exact density, bars: samples; the
# energy distance to fresh samples is an unbiased estimate, and negative by chance). Trajectories of the ODE never
# cross; those of the SDE are rough. On the linear path a DDIM step is an Euler step:

# %%
gap = (ends["linear", "DDIM, 50 steps"] - ends["linear", "ODE, 50 Euler steps"]).abs().max()
print(f"linear path, DDIM against Euler: largest difference {gap:.1e}")
assert gap < 1e-9

# %% [markdown]
# ## 4. Straight and curved paths
#
# A solver with equal steps errs where the trajectories bend or their speed changes. Three schedules, from the same
# noise to a ring of six normals of unit variance in each direction, with exact velocities. Dots are eighths of the flow
# time.

# %%
angle = torch.arange(6) * torch.pi / 3
ring = GaussianMixture(
    torch.full((6,), 1 / 6), 1.4 * torch.stack([angle.cos(), angle.sin()], 1), torch.full((6,), 0.15)
)
schedules = {
    "linear": LinearSchedule(),
    "cosine": CosineSchedule(),
    "variance preserving": VariancePreservingSchedule(),
}
x_0, x_1, _ = draw(ring, PARTICLES)


def draw_trajectories(axes, points, title):
    """Trajectories in the plane, and their mean length over the mean distance of their ends, which is returned."""
    bend = points.diff(dim=0).norm(dim=-1).sum(0).mean() / (points[-1] - points[0]).norm(dim=-1).mean()
    shown = points[:, :40]
    axes.add_collection(LineCollection(list(shown.swapaxes(0, 1).numpy()), colors=GREY, linewidths=0.7))
    axes.scatter(
        *shown[:: len(points) // 8].flatten(0, 1).T, s=6, color=BLUE, linewidths=0, label="eighths of the time"
    )
    axes.scatter(*shown[0].T, s=16, color="black", linewidths=0, label="noise")
    axes.scatter(*shown[-1].T, s=16, color=ORANGE, linewidths=0, label="samples")
    axes.set(xlim=(-2.9, 2.9), ylim=(-2.9, 2.9), aspect="equal")
    axes.set_title(f"{title}: {bend:.3f} times\nas long as the distance of the ends")
    tidy(axes, "x", "y")
    axes.label_outer()
    return float(bend)


exact_ends = {}
figure, panels = plt.subplots(1, 3, figsize=(12.0, 4.8), sharey=True)
for axes, (name, schedule) in zip(panels, schedules.items(), strict=True):
    _, trajectories = Midpoint(num_steps=80 if FAST else 200).trajectory(
        ring.field(AffinePath(schedule)), x_0, 0.0, 1.0
    )
    draw_trajectories(axes, trajectories, name)
    exact_ends[name] = trajectories[-1]
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, markerscale=2)

for name, end in exact_ends.items():
    print(
        f"{name:20} mean distance to the ends of the linear path {(end - exact_ends['linear']).norm(dim=1).mean():.1e}"
    )

assert max(float((end - exact_ends["linear"]).norm(dim=1).mean()) for end in exact_ends.values()) < 0.01

# %% [markdown]
# Two things are easily overlooked.
#
# - **The three fields carry the same noise to the same sample.** A schedule rescales and retimes the path, no more;
#   cosine and variance-preserving trajectories are even the same curves, run through at different speeds (the latter
#   hardly move in the first half of the time). What a schedule decides is how hard the equation is to solve.
# - **Straight lines between noise and data do not make straight trajectories.** Those of single pairs $(x_0, x_1)$ are
#   straight on the linear path. Where they cross, the marginal velocity is a mean of all, and here it first draws
#   everything to the middle.
#
# What makes trajectories straight is to pair noise and data such that the lines of pairs hardly cross: by **optimal
# transport** within each batch ([Tong et al., 2023](https://arxiv.org/abs/2302.00482)), or by pairing each noise with
# the sample that a first model carries it to, *reflow* ([Liu et al., 2022](https://arxiv.org/abs/2209.03003)). For such
# pairs the marginal velocity has no closed form; two networks learn it, one from independent and one from transported
# pairs.

# %%
couplings = {"independent": IndependentCoupling(), "optimal transport": ExactCoupling()}
networks = {name: train(ring, coupling, hidden_dim=128) for name, coupling in couplings.items()}

bends = {}
figure, panels = plt.subplots(2, 2, figsize=(8.4, 8.8), sharex=True, sharey=True)
some_x_0, some_x_1, uniform = draw(ring, 256)
for (left, right), (name, coupling) in zip(panels, couplings.items(), strict=True):
    pairs = torch.stack([some_x_0[coupling.pair(some_x_0, some_x_1, uniform)], some_x_1], dim=1)
    left.add_collection(LineCollection(list(pairs[:80].numpy()), colors=GREY, linewidths=0.7))
    left.scatter(*pairs[:80, 0].T, s=16, color="black", linewidths=0)
    left.scatter(*pairs[:80, 1].T, s=16, color=ORANGE, linewidths=0)
    left.set(aspect="equal", title=f"{name}: 80 pairs\nof a batch of 256")
    tidy(left, "x", "y")
    left.label_outer()
    _, trajectories = Midpoint(num_steps=96).trajectory(networks[name], x_0, 0.0, 1.0)
    bends[name] = draw_trajectories(right, trajectories, "learned trajectories")
figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, markerscale=2)

assert bends["optimal transport"] - 1.0 < 0.3 * (bends["independent"] - 1.0)

# %% [markdown]
# What it does to the number of steps: mean distance between the end of a trajectory in few Euler steps and its end in
# many.

# %%
STEPS = [1, 2, 4, 8, 16, 32, 64]


def step_errors(field, x_0):
    """Mean error of Euler's method by number of steps, against 100 midpoint steps."""
    end = Midpoint(num_steps=100).integrate(field, x_0, 0.0, 1.0)
    return [float((Euler(k).integrate(field, x_0, 0.0, 1.0) - end).norm(dim=1).mean()) for k in STEPS]


small_ring = GaussianMixture(ring.weights, ring.means / 5, ring.scales / 5)
exact = {
    source: {
        name: step_errors(distribution.field(AffinePath(schedule)), x_0[:500]) for name, schedule in schedules.items()
    }
    for source, distribution in {
        "exact, ring of unit variance": ring,
        "exact, ring a fifth the size": small_ring,
    }.items()
}
curves = exact | {
    "learned, ring of unit variance": {name: step_errors(net, x_0[:500]) for name, net in networks.items()}
}

figure, panels = plt.subplots(1, 3, figsize=(12.0, 3.6), sharey=True)
for axes, (title, errors) in zip(panels, curves.items(), strict=True):
    for (name, values), color in zip(errors.items(), (BLUE, ORANGE, GREEN), strict=False):
        axes.loglog(STEPS, values, "o-", color=color, markersize=4, label=name)
    axes.set_xticks(STEPS, STEPS)
    axes.minorticks_off()
    axes.set_title(title)
    axes.legend(fontsize=8)
    tidy(axes, "Euler steps", "mean distance to the exact end" if axes is panels[0] else "")

learned = curves["learned, ring of unit variance"]
print(f"{'steps':20}" + "".join(f"{k:>9}" for k in STEPS))
for name, values in learned.items():
    print(f"{name:20}" + "".join(f"{value:9.4f}" for value in values))
for name, network in networks.items():
    distance = energy_distance(Midpoint(num_steps=50).integrate(network, x_0, 0.0, 1.0), x_1)
    print(f"{name:20} energy distance to the data {distance:.5f} in 50 midpoint steps")
assert learned["optimal transport"][0] < 0.5 * learned["independent"][0]

# %% [markdown]
# With exact velocities no schedule wins everywhere: from two steps on the cosine path on data of unit variance, from
# eight on the linear one on data much narrower than the noise. The variance-preserving path needs about twice the steps
# of the cosine one, or steps that are short where it moves. Optimal transport saves most: the error of one step is less
# than that of four with independent pairs. Its price is an assignment problem per batch, and pairs that are only
# optimal within their batch.

# %% [markdown]
# ## 5. A model of two moons
#
# In practice the loop of section 2 is a `LightningModule`. `SampleData` draws or reads a table, splits and standardises
# it; `FlowMatchingModel` trains a network on it and keeps an EMA copy of its weights, which everything below is made
# with. The distribution is known here, though not to the model, so that samples and likelihood can be checked.


# %%
def fit(updates, max_frequency=10.0, **options):
    """A model of two moons, the data and its trainer."""
    torch.manual_seed(0)
    data = SampleData(batch_size=256, num_updates=updates, epoch_updates=updates, eval_samples=2 * PARTICLES)
    architecture = VelocityArchitecture(
        128, num_blocks=3, activation="gelu_tanh", max_frequency=max_frequency, balanced_inputs=True
    )
    module = FlowMatchingModel(
        data.schema,
        network=architecture,
        t_min=0.001,  # for the stochastic sampler, which divides by alpha
        tests=FlowTests(likelihood_samples=PARTICLES // 8, transport_samples=500),
        optimizer=FlowOptimizer(4e-3),
        ema=EmaSettings(0.95 if FAST else 0.999, interval=10, warm_up=True),
        **options,
    )
    trainer = Trainer(
        accelerator="cpu",
        max_steps=updates,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    return module, data, trainer


module, data, trainer = fit(UPDATES, sampler=OdeSampler(Midpoint(num_steps=10)))
metrics = trainer.test(module, datamodule=data, verbose=False)[0]
model = module.model
print(f"{UPDATES:,} updates")
print(*module.result_lines(metrics), sep="\n")

batch = next(iter(data.test_dataloader()))
held_out = batch["sample"]
nothing = float(energy_distance(model.draw_noise(len(held_out)), held_out))
print(f"energy distance of the noise itself {nothing:.3f}")
assert metrics["test/energy_distance"] < 0.7 * nothing
assert metrics["test/nll"] > metrics["test/nll_exact"] - 4.0 * metrics["test/nll_standard_error"]

# %%
draw_samples(sample_flow(model, read_samples(batch), PARTICLES), "Two moons: data and samples, 10 midpoint steps")

# %% [markdown]
# The same weights, sampled in fewer and fewer steps, and by the other samplers of section 3. Few steps blur: a single
# Euler step ends at the mean of the data, wherever it began.


# %%
def sample(model, sampler):
    """Standardised samples, from the same noise each time."""
    generator = torch.Generator().manual_seed(0)
    return model.sample(model.draw_noise(len(held_out), generator), None, generator, sampler)


def draw_points(axes, points, title):
    """Standardised points, in the units of the data."""
    axes.scatter(*model.schema.restore(points[:PARTICLES]).T, s=3, alpha=0.5, color=ORANGE, linewidths=0)
    axes.set(xlim=(-1.6, 2.6), ylim=(-1.1, 1.6), aspect="equal", title=title)
    tidy(axes, "x", "y")
    axes.label_outer()


tried = {f"{k} Euler step{'s' if k > 1 else ''}": OdeSampler(Euler(num_steps=k)) for k in (1, 2, 4, 8, 32)}
tried |= {"4 midpoint steps": OdeSampler(Midpoint(num_steps=4))}
tried |= {"32 DDIM steps": DdimSampler(num_steps=32), "200 steps of the SDE": SdeSampler(num_steps=200)}
figure, panels = plt.subplots(2, 4, figsize=(12.0, 4.8), sharex=True, sharey=True)
for axes, (name, sampler) in zip(panels.flat, tried.items(), strict=True):
    points = sample(model, sampler)
    draw_points(axes, points, f"{name}\nenergy distance {energy_distance(points, held_out):.4f}")

# %% [markdown]
# The log-likelihood of the model, by the equation of section 1, beside the exact density. The flow is continuous and
# cannot tear its noise apart: it leaves a bridge of samples between the moons, which the likelihood of held-out points
# pays for. (Right: where the exact density is above a hundredth of its peak.)

# %%
box = torch.tensor([[-1.6, 2.6], [-1.1, 1.6]], dtype=torch.float64)
cell = (box[:, 1] - box[:, 0]) / GRID
centres = [low + (torch.arange(GRID) + 0.5) * width for low, width in zip(box[:, 0], cell, strict=True)]
points = torch.stack(torch.meshgrid(*centres, indexing="xy"), dim=-1).flatten(0, 1)
exact = data.dataset.density.log_prob(points).unflatten(0, (GRID, GRID))
learned = model.log_prob(model.schema.standardise(points).float()).double().unflatten(0, (GRID, GRID))

figure, panels = plt.subplots(1, 3, figsize=(12.0, 3.2), sharex=True, sharey=True)
frame = {"origin": "lower", "extent": box.flatten().tolist(), "aspect": "equal"}
for axes, (name, values) in zip(panels, {"exact": exact, "model": learned}.items(), strict=False):
    image = axes.imshow(values.exp(), cmap="Blues", vmin=0.0, vmax=float(exact.exp().max()), **frame)
    axes.set_title(f"density, {name}: sums to {float(values.exp().sum() * cell.prod()):.3f}")
figure.colorbar(image, ax=panels[:2], shrink=0.8, extend="max")
ratio = (learned - exact).where(exact.exp() > 0.01 * exact.exp().max(), torch.nan)
image = panels[2].imshow(ratio, cmap="RdBu_r", vmin=-1.0, vmax=1.0, **frame)
panels[2].set_title("log(model / exact) on the moons")
figure.colorbar(image, ax=panels[2], shrink=0.8, label="nats", extend="both")
for axes in panels:
    tidy(axes, "x", "y")
    axes.label_outer()
    axes.grid(visible=False)

difference = batch["exact_log_prob"][: PARTICLES // 4] - model.log_prob(held_out[: PARTICLES // 4])
print(f"held-out points: exact log-density above the model's by {difference.mean():.3f} nats on average")
assert 0.9 < float(learned.exp().sum() * cell.prod()) < 1.1

# %% [markdown]
# ## 6. Few steps
#
# A single step from noise to data needs the **average velocity** over the whole interval, not that of its first moment,
#
# $$\bar v(x_t, t, \Delta) = \frac 1 \Delta \int_t^{t + \Delta} v_s(x_s)\,\mathrm ds .$$
#
# `MeanFlow` learns it by regression on an identity, which follows by differentiation along the trajectory with its end
# held fixed,
#
# $$\bar v = v_t + \Delta\, \frac{\mathrm d \bar v}{\mathrm dt},$$
#
# with the network's own derivative on the right ([Geng et al., 2025](https://arxiv.org/abs/2505.13447), where time runs
# from data to noise). That derivative grows with the frequencies of the network's time features, so that they
# are kept low here. Beside it flow matching with optimal transport. Both learn from the same data with a network of the
# same size, and take two thirds of the updates of section 5. *Off the moons* is the fraction of samples that are less
# likely than 99 % of the data.

# %%
transported, *_ = fit(FEW_STEP_UPDATES, coupling=ExactCoupling(), sampler=OdeSampler(Euler(num_steps=1)))
mean_flow, *_ = fit(FEW_STEP_UPDATES, 2.0, objective=MeanFlow(), sampler=AverageVelocitySampler(num_steps=1))
model.sampler = OdeSampler(Euler(num_steps=1))
contestants = {
    "independent pairs": model,
    "optimal transport": transported.model,
    "mean flow": mean_flow.model,
}
threshold = batch["exact_log_prob"].quantile(0.01)


def off_the_moons(points):
    """Fraction of samples less likely than 99 % of the data."""
    return float((data.dataset.density.log_prob(model.schema.restore(points)) < threshold).double().mean())


def in_steps(model, number):
    """Samples of a model in some number of steps."""
    return sample(model, AverageVelocitySampler(number) if model is mean_flow.model else OdeSampler(Euler(number)))


figure, panels = plt.subplots(2, 3, figsize=(12.0, 5.6), sharex=True, sharey=True)
for row, number in zip(panels, (1, 16), strict=True):
    for axes, (name, some_model) in zip(row, contestants.items(), strict=True):
        points = in_steps(some_model, number)
        title = f"{name}, {number} step{'s' if number > 1 else ''}"
        draw_points(axes, points, f"{title}\noff the moons {off_the_moons(points):.1%}")

# %%
by_steps = {
    name: distance_by_steps(some_model, read_samples(batch), PARTICLES) for name, some_model in contestants.items()
}
errors = by_steps["mean flow"]

figure, axes = plt.subplots(figsize=(7.0, 3.8))
print(f"{'':20}   energy distance by network evaluations")
print(f"{'':20}" + "".join(f"{round(number):>9}" for number in errors.evaluations))
for (name, found), color in zip(by_steps.items(), (BLUE, GREEN, ORANGE), strict=True):
    axes.plot(found.evaluations, found.distance, "o-", color=color, markersize=4, label=name)
    print(f"{name:20}" + "".join(f"{value:9.4f}" for value in found.distance))
axes.axhspan(-errors.noise, errors.noise, color="0.92", label="as close as two halves of the data (95 %)")
axes.set_xscale("log", base=2)
axes.set_xticks(errors.evaluations, [f"{number:.0f}" for number in errors.evaluations])
scale_around_zero(axes, errors.noise, np.concatenate([found.distance for found in by_steps.values()]))
axes.legend(fontsize=8)
tidy(axes, "network evaluations per sample", "energy distance to held-out data")

assert by_steps["mean flow"].distance[0] < 0.3 * by_steps["independent pairs"].distance[0]
assert by_steps["optimal transport"].distance[0] < 0.3 * by_steps["independent pairs"].distance[0]

# %% [markdown]
# What is gained, and what is lost:
#
# - With independent pairs a single Euler step makes no samples at all; sixteen do. A single step of mean flow makes
#   samples, and so does one of the model with optimal transport.
# - Both leave more samples off the moons in one step than sixteen steps do, and here more steps of mean flow stay
#   behind as many of plain flow matching. The energy distance hardly shows it: one step of optimal transport is within
#   the noise of 2,000 samples, and still one sample in six is where no data are. Look at samples or likelihoods too.
# - An update of either costs one and a half to two times as much as one with independent pairs: for the derivative in
#   the targets of mean flow, or for an assignment problem. In this plane optimal transport is the better one. Its pairs
#   are optimal within a batch only; what that is worth in many dimensions has to be tried.

# %% [markdown]
# ## 7. Next steps
#
# A trained model is a checkpoint, and a checkpoint is all that sampling needs, in NumPy and in the units of the data.

# %%
with tempfile.TemporaryDirectory() as folder:
    trainer.save_checkpoint(Path(folder) / "two_moons.ckpt")
    flow = load_flow(Path(folder) / "two_moons.ckpt")

rows = flow.sample(3)
for row, log_density in zip(rows, flow.log_prob(rows), strict=True):
    print(dict(zip(flow.columns, row.round(3).tolist(), strict=True)), f"log-density {log_density:.2f} nats")

# %% [markdown]
# The same from the command line, with checkpoints, figures and tracked metrics under `runs/`:
#
# ```bash
# flowmatch-rl fit -c conf/flow/two_moons.yaml
# flowmatch-rl predict -c conf/flow/two_moons.yaml --ckpt_path runs/two_moons/<time>/checkpoints/last.ckpt \
#   --samples.path samples.parquet
# ```
#
# What this notebook compared are configuration overlays: `-c conf/flow/presets/optimal_transport.yaml`, `cosine`,
# `diffusion`, `score`, `mean_flow`, `reflow`.
#
# **A table of your own**, each row a sample (a state and an action, a grasp, a trajectory of fixed length):
#
# ```bash
# flowmatch-rl fit -c conf/flow/table.yaml --data.init_args.dataset.init_args.path my.csv
# ```
#
# Columns, conditions, classes, guidance and all samplers are described in
# [docs/generative_model.md](../docs/generative_model.md).
#
# ### References
#
# - Lipman et al., *Flow Matching for Generative Modeling*, [arXiv:2210.02747](https://arxiv.org/abs/2210.02747)
# - Liu et al., *Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow*,
#   [arXiv:2209.03003](https://arxiv.org/abs/2209.03003)
# - Song et al., *Score-Based Generative Modeling through Stochastic Differential Equations*,
#   [arXiv:2011.13456](https://arxiv.org/abs/2011.13456)
# - Tong et al., *Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport*,
#   [arXiv:2302.00482](https://arxiv.org/abs/2302.00482)
# - Geng et al., *Mean Flows for One-step Generative Modeling*, [arXiv:2505.13447](https://arxiv.org/abs/2505.13447)
