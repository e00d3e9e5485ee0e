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
# # Reverse flow policies
#
# A policy of maximum entropy draws actions with probability proportional to $\exp(Q(a) / \lambda)$. A flow could draw
# them, but flow matching learns from samples, and here there are none: all there is, is $Q$, at any action one asks
# for. *Reverse flow matching* ([Li et al., 2026](https://arxiv.org/abs/2601.08136)) turns the question around. Given a
# point on the way from noise to action, which action may it be on the way to? This notebook shows why the answer is all
# a flow needs, how to estimate it and what goes wrong, on problems with known answers. At the end critics take the
# place of the known value.
#
# 1. Velocity is a posterior mean
# 2. Importance samples
# 3. Control variates
# 4. Small flow times
# 5. Published methods as special cases
# 6. Four modes, two proposals
# 7. One step
# 8. From bandit to pendulum
# 9. What is not shown

# %%
import logging
import os
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Image, display
from lightning.pytorch import Trainer

from flowmatch_rl.callbacks import PolicyFigures, PosteriorFigures
from flowmatch_rl.data import BanditData, OnlineData
from flowmatch_rl.envs import GymnasiumEnvironment
from flowmatch_rl.estimators import (
    FisherControlVariate,
    FixedControlVariate,
    GradientControlVariate,
    LikelihoodProposal,
    NoControlVariate,
    PointScoreEstimator,
    PosteriorMeanEstimator,
    ProductProposal,
    RegressControlVariate,
    ReweightedEndpoints,
    boltzmann_density,
)
from flowmatch_rl.evaluation import estimator_errors, exact_posterior_mean
from flowmatch_rl.figures.style import BLUE, GREEN, GREY, ORANGE, RED, tidy
from flowmatch_rl.inference import load_policy
from flowmatch_rl.metrics import energy_distance, saturated_entries
from flowmatch_rl.models import Acting, FlowPolicyArchitecture
from flowmatch_rl.modules import (
    ActorCriticOptimizer,
    BanditFlow,
    Critics,
    ReverseFlowActorCritic,
    TrainingPoints,
)
from flowmatch_rl.nets import CriticArchitecture, VelocityArchitecture
from flowmatch_rl.objectives import ConditionalFlowMatching, MeanFlow
from flowmatch_rl.paths import AffinePath, GaussianSource, PathPoints, TanhSquash
from flowmatch_rl.samplers import AverageVelocitySampler, OdeSampler
from flowmatch_rl.solvers import Euler, Midpoint
from flowmatch_rl.testbeds import Bimodal, Flat, FourModes, Quadratic

# %% [markdown]
# `FLOWMATCH_FAST=1` in the environment runs everything with fewer updates and samples, to test the notebook. The
# numbers in the text are those of the full run.

# %%
FAST = os.environ.get("FLOWMATCH_FAST") == "1"
PARTICLES = 20 if FAST else 250  # that the exact field of section 1 carries
POINTS, REPEATS = (8, 16) if FAST else (32, 64)  # of the path, and estimates at each, in sections 2 to 4
PAIRS = 50_000 if FAST else 400_000  # endpoints in section 5
UPDATES = 5 if FAST else 800  # of the policies of sections 6 and 7
ACTIONS = 100 if FAST else 2000  # that these are judged by
WARM_UP, ENV_STEPS = (128, 20) if FAST else (200, 400)  # of the pendulum, at random and by the policy

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
logging.getLogger("torchrl").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")
torch.manual_seed(0)
plt.rcParams.update({"figure.dpi": 100, "figure.constrained_layout.use": True, "axes.titlesize": 10})
F64 = torch.float64
settings = {"num_points": POINTS, "num_repeats": REPEATS}

# %% [markdown]
# ## 1. Velocity is a posterior mean
#
# Actions lie in a box, flows in all of space. The flow therefore carries noise to a latent $u$, and the action is $a =
# \tanh u$. In the latent space the distribution to be learned has the density
#
# $$p_1(u) \propto \exp\left(Q(\tanh u) / \lambda\right) \prod_j \left(1 - \tanh^2 u_j\right),$$
#
# with the Jacobian of tanh (`boltzmann_density`). Noise $x_0 \sim \mathcal N(0, I)$ and latent $x_1 \sim p_1$ are
# joined by the path $x_t = \alpha_t x_1 + \sigma_t x_0$, here with $\alpha_t = t$ and $\sigma_t = 1 - t$.
#
# Now take $x_t$ as **evidence** and the endpoints as **latent**. Bayes' rule says what $x_t$ implies about $x_1$:
#
# $$p(x_1 \mid x_t) \propto \underbrace{p_1(x_1)}_\text{prior} \;
# \underbrace{\mathcal N\left(x_1;\ x_t / \alpha_t,\ \rho_t^2 I\right)}_\text{likelihood},
# \qquad \rho_t = \sigma_t / \alpha_t .$$
#
# `Bimodal(1)` is a bandit (one state, a known $Q$) with two good actions. A point goes straight from $x_0 = -1$ to the
# action 0.5; on its way the posterior makes up its mind.

# %%
bandit, path, squash, source = Bimodal(1), AffinePath(), TanhSquash(), GaussianSource()
density = boltzmann_density(bandit.value_and_gradient, temperature=1.0, squash=squash)
grid = torch.linspace(-8.0, 8.0, 4001, dtype=F64)[:, None]
prior, prior_score = density(grid)
TIMES = torch.tensor([0.05, 0.3, 0.6, 0.9], dtype=F64)

start = torch.full((4, 1), -1.0, dtype=F64)
goal = squash.latent(torch.full((4, 1), 0.5, dtype=F64))
points = PathPoints.between(path, start, goal, TIMES)


def noise_end(x_t, t):
    """Noise endpoints that pass through x_t, for data endpoints on the grid."""
    return (x_t - path.schedule.alpha(t) * grid) / path.schedule.sigma(t)


def normalised(log_density):
    """Density on the grid."""
    weights = torch.softmax(log_density, 0)
    return weights / (grid[1] - grid[0])


exact = exact_posterior_mean(bandit, points.x_t, points.t)
figure, panels = plt.subplots(1, 4, figsize=(12.0, 2.9), sharey=True)
for axes, t, x_t, mean in zip(panels, TIMES, points.x_t, exact, strict=True):
    likelihood = source.log_prob(noise_end(x_t, t))
    posterior = normalised(prior + likelihood)
    axes.fill_between(grid[:, 0], normalised(prior), color="0.85", label="prior")
    axes.plot(grid, (likelihood - likelihood.max()).exp(), color=ORANGE, label="likelihood (peak 1)")
    axes.plot(grid, posterior, color=BLUE, label="posterior")
    axes.axvline(float(mean), color=RED, linewidth=1.2, linestyle="--", label="its mean")
    axes.set(xlim=(-2.0, 2.0), ylim=(0.0, 4.4), title=f"t = {t:.2f}, $x_t$ = {float(x_t):.2f}")
    tidy(axes, "latent $x_1$", "density" if axes is panels[0] else "")
    assert abs(float((posterior * grid[:, 0]).sum() * (grid[1] - grid[0]) - mean)) < 1e-5
panels[0].legend(fontsize=8, loc="upper left")

# %% [markdown]
# Early the evidence says next to nothing, and the posterior is the prior. Late it is a spike. In between is where modes
# are chosen.
#
# The **velocity** of the flow is the mean velocity of all pairs that pass through $x_t$, hence linear in the two
# posterior means $\bar x_0$ and $\bar x_1$. These are tied by $x_t = \alpha_t \bar x_1 + \sigma_t \bar x_0$, so that
# one is enough. For the linear path,
#
# $$v_t(x_t) = \bar x_1 - \bar x_0 = \frac{\bar x_1 - x_t}{1 - t} = \frac{x_t - \bar x_0}{t} .$$
#
# The same holds for the score and for every other prediction (`AffinePath.convert`). So whoever can compute $\bar x_1$
# from $Q$ holds the velocity of a flow to $\exp(Q / \lambda)$. And the target is a function of $t$ and $x_t$ alone: a
# network may be trained on it **at any points**, drawn from the true path or not, if only they cover it.
#
# In one dimension $\bar x_1$ is an integral that quadrature does (`exact_posterior_mean`). Below, noise is carried by
# the velocity it gives.

# %%
x_0 = (points.x_t - points.t[:, None] * exact) / (1.0 - points.t[:, None])
forms = [
    path.target("velocity", x_0, exact, points.t),
    path.convert(exact, points.x_t, points.t, "data", "velocity"),
    path.convert(x_0, points.x_t, points.t, "noise", "velocity"),
]
assert max(float((form - forms[0]).abs().max()) for form in forms) < 1e-9


def exact_velocity(x, t, condition):
    """Velocity of the flow to the bandit's distribution."""
    x_1 = exact_posterior_mean(bandit, x, t.expand(len(x)))
    return path.convert(x_1, x, t, "data", "velocity")


noise = torch.randn(PARTICLES, 1, dtype=F64)
times, trajectories = Midpoint(num_steps=16).trajectory(exact_velocity, noise, 0.001, 0.999)
made = squash.action(trajectories[-1])
truth = bandit.sample(torch.rand(20_000, 1, dtype=F64))

figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.4), width_ratios=[2.0, 1])
colors = [BLUE if end > 0 else ORANGE for end in trajectories[-1, :80, 0]]
for line, color in zip(trajectories[:, :80, 0].T, colors, strict=True):
    left.plot(times, line, color=color, linewidth=0.7, alpha=0.7)
left.set_title("80 trajectories of the exact velocity, coloured by where they end")
tidy(left, "flow time t (noise to action)", "latent $x_t$")
actions = torch.linspace(-1.0, 1.0, 400, dtype=F64)[:, None]
right.hist(made[:, 0], bins=25, range=(-1, 1), density=True, color=ORANGE, alpha=0.6, label="carried noise")
right.plot(actions, bandit.log_prob(actions).exp(), color=BLUE, label=r"$\exp(Q / \lambda)$, normalised")
right.legend(fontsize=8, loc="upper center")
right.set(ylim=(0.0, 2.2), title=f"energy distance {energy_distance(made, truth):.4f}")
tidy(right, "action", "density")

# %% [markdown]
# ## 2. Importance samples
#
# In many dimensions there is no quadrature. Draw $x_1^k$, $k = 1, \dots, K$, from a **proposal** and weight them. With
# the likelihood as the proposal (`LikelihoodProposal`: draw noise $x_0^k$ and go back, $x_1^k = (x_t - \sigma_t x_0^k)
# / \alpha_t$) the weights are those of the prior alone,
#
# $$\bar x_1 \approx \sum_k w_k x_1^k, \qquad w_k = \frac{p_1(x_1^k)}{\sum_j p_1(x_1^j)} .$$
#
# $Q$ need not be normalised, and no sample of the distribution is needed: this is the paper's estimator in its plainest
# form. Sixteen samples each, at points of section 1:

# %%
torch.manual_seed(1)
SHOWN = 16
figure, panels = plt.subplots(1, 4, figsize=(12.0, 2.6), sharey=True)
alpha, sigma = (c[:, None, None] for c in (path.schedule.alpha(TIMES), path.schedule.sigma(TIMES)))
z = torch.randn(4, SHOWN, 1, dtype=F64)
x_0, x_1 = LikelihoodProposal().draw(z, source, points.x_t[:, None], alpha, sigma)
weights = torch.softmax(density(x_1)[0], dim=1)
for axes, t, places, heights, mean in zip(panels, TIMES, x_1[..., 0], weights, exact, strict=True):
    width = max(2.0, 1.1 * float(places.abs().max()))
    axes.fill_between(grid[:, 0], normalised(prior) / 2.0, color="0.85", label="prior, half its height")
    axes.vlines(places, 0.0, heights, color=BLUE, linewidth=1.5)
    axes.plot(places, heights, "o", color=BLUE, markersize=3, label="samples, weights")
    axes.axvline(float(mean), color=RED, linewidth=1.2, linestyle="--", label="exact mean")
    axes.axvline(float((heights * places).sum()), color=GREEN, linewidth=1.2, label="estimate")
    axes.set(xlim=(-width, width), ylim=(0.0, 1.05))
    axes.set_title(f"t = {t:.2f}: {1.0 / float(heights.square().sum()):.1f} of {SHOWN} samples count")
    tidy(axes, "latent $x_1$", "weight" if axes is panels[0] else "")
panels[-1].legend(fontsize=7, loc="upper left")

# %% [markdown]
# "Count" is the **effective sample size** $1 / \sum_k w_k^2$. Two things go wrong. Where few samples count, estimates
# scatter. And they are **biased**: the sum in the denominator is random too, and the error of a ratio has a mean, of
# order $1 / K$ once several samples count. Stochastic gradient descent averages scatter away. It learns a bias. Here
# are both, measured against quadrature (`estimator_errors`), by number of samples at $t = 0.3$; and the effective
# sample size by flow time.

# %%
COUNTS = [4, 8, 16, 32, 64, 128, 256]
plain = {k: PosteriorMeanEstimator(k, LikelihoodProposal(), NoControlVariate()) for k in COUNTS}
by_count = estimator_errors(
    Bimodal(1), {str(k): e for k, e in plain.items()}, torch.tensor([0.3]), num_points=64, num_repeats=4 * REPEATS
)
flow_times = torch.tensor([0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97])
by_dim = {d: estimator_errors(Bimodal(d), {"": plain[128]}, flow_times, **settings)[""] for d in (1, 2, 6)}

figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.4))
bias = np.array([float(e.bias) for e in by_count.values()])
left.loglog(COUNTS, [float(e.deviation) for e in by_count.values()], "o-", color=ORANGE, label="standard deviation")
left.loglog(COUNTS, bias, "o-", color=BLUE, label="bias")
left.loglog(COUNTS, bias[3] * COUNTS[3] / np.array(COUNTS), ":", color=GREY, label="1 / K")
left.set_xticks(COUNTS, COUNTS)
left.minorticks_off()
left.set_title("one dimension, t = 0.3")
left.legend(fontsize=8)
tidy(left, "samples K", "error of the mean of $x_1$")
for (dim, errors), color in zip(by_dim.items(), (BLUE, ORANGE, RED), strict=True):
    label = f"{dim} dimension{'s' if dim > 1 else ''}"
    right.semilogy(errors.t, errors.effective_sample_size, "o-", color=color, markersize=4, label=label)
right.set_title("samples that count, of 128")
right.legend(fontsize=8)
tidy(right, "flow time t", "effective sample size")

print("K          ", *(f"{k:8}" for k in COUNTS))
print("bias       ", *(f"{float(e.bias):8.4f}" for e in by_count.values()))
print("deviation  ", *(f"{float(e.deviation):8.4f}" for e in by_count.values()))
assert bias[-1] < 0.2 * bias[1]

# %% [markdown]
# ## 3. Control variates
#
# A score has mean zero: $\mathbb E[\nabla \log p(x_0 \mid x_t) \mid x_t] = 0$. Its negative is
#
# $$r = x_0 + \rho_t \nabla \log p_1(x_1), \qquad \text{so that} \qquad
# \bar x_0 = \mathbb E[x_0 - \eta\, r \mid x_t] \text{ for every } \eta .$$
#
# The two ends have names. At $\eta = 0$ only values of $Q$ are used, the **noise expectation**. At $\eta = 1$ the noise
# cancels, and what remains is the **gradient expectation** $\bar x_0 = -\rho_t\, \mathbb E[\nabla \log p_1(x_1) \mid
# x_t]$. Methods of either kind were proposed as different ones; they estimate one number, and every $\eta$ between does
# so as well. The variance is a parabola,
#
# $$\mathrm{Var}(x_0 - \eta\, r) = \mathrm{Var}(x_0) - 2 \eta\, \mathrm{Cov}(x_0, r) + \eta^2\, \mathrm{Var}(r).$$
#
# Integration by parts gives $\mathrm{Cov}(x_0, r) = 1$, whatever the distribution. Its lowest point is hence at
# $\eta^* = 1 / \mathrm{Var}(r)$: the inverse Fisher information of the posterior. All of it is checked here on the
# grid of section 1.

# %%
ends = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9, 0.97], dtype=F64)
checked = PathPoints.between(path, start[:1].expand(6, -1), goal[:1].expand(6, -1), ends)
etas = torch.linspace(-0.1, 1.1, 121, dtype=F64)

figure, panels = plt.subplots(1, 6, figsize=(12.0, 2.7), sharey=True)
print("   t    E[r]   Cov(x_0, r)   Var(x_0)     Var(r)   best eta")
for axes, t, x_t in zip(panels, ends, checked.x_t, strict=True):
    x_0 = noise_end(x_t, t)[:, 0]
    posterior = torch.softmax(prior + source.log_prob(x_0[:, None]), 0)
    r = path.schedule.sigma(t) / path.schedule.alpha(t) * prior_score[:, 0] - source.score(x_0)
    mean_r, mean_0 = posterior @ r, posterior @ x_0
    covariance, variance_0, variance_r = posterior @ (x_0 * r), posterior @ (x_0 - mean_0) ** 2, posterior @ r**2
    print(f"{t:4.2f}{mean_r:8.4f}{covariance:14.6f}{variance_0:11.4f}{variance_r:11.4f}{1.0 / variance_r:11.4f}")
    assert abs(float(mean_r)) < 1e-4
    assert abs(float(covariance) - 1.0) < 1e-3
    best = 1.0 / variance_r
    near = torch.cat([etas, best[None]]).sort().values
    axes.semilogy(near, torch.stack([posterior @ (x_0 - eta * r - mean_0) ** 2 for eta in near]), color=BLUE)
    axes.plot([0.0], [variance_0], "o", color=ORANGE, label="noise expectation")
    axes.plot([1.0], [posterior @ (x_0 - r - mean_0) ** 2], "s", color=GREEN, label="gradient expectation")
    axes.plot([best], [variance_0 - best], "*", color=RED, markersize=10, label="least variance")
    axes.set_title(f"t = {t:.2f}")
    tidy(axes, r"$\eta$", "variance of $x_0 - \\eta r$" if axes is panels[0] else "")
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)

# %% [markdown]
# (The axes are logarithmic: parabolas with their lowest points near zero.) Late on the path the gradient expectation is
# better. Early it is useless, for $\rho_t$ multiplies the gradient: at $t = 0.3$ its variance is two thousand times
# that of the noise expectation. The best coefficient goes from 0 to 1, and beats both ends by orders of magnitude late
# on the path. In the package a rule for $\eta$ is a part of the estimator:
#
# - `NoControlVariate` and `GradientControlVariate`: the two ends;
# - `RegressControlVariate`, the paper's: regression on the very samples that it then corrects, or on all states of a
#   batch with like flow times (`num_bins`);
# - `FisherControlVariate`: knows that the covariance is 1, and estimates $\mathrm{Var}(r)$ alone.

# %%
rules = {
    "none (noise)": NoControlVariate(),
    "gradient": GradientControlVariate(),
    "regression": RegressControlVariate(),
    "regression, pooled": RegressControlVariate(num_bins=10),
    "Fisher": FisherControlVariate(),
}
colors = dict(zip(rules, (GREY, GREEN, RED, ORANGE, BLUE), strict=True))
late = torch.tensor([0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97])
found = {
    k: estimator_errors(
        Bimodal(2),
        {n: PosteriorMeanEstimator(k, LikelihoodProposal(), rule) for n, rule in rules.items()},
        late,
        **settings,
    )
    for k in (100, 16)
}

figure, panels = plt.subplots(1, 3, figsize=(12.0, 3.6))
for name, errors in found[100].items():
    panels[0].semilogy(errors.t, errors.rmse, "o-", markersize=4, color=colors[name], label=name)
panels[0].set_title("error of the mean of $x_1$, 100 samples")
panels[0].legend(fontsize=8)
tidy(panels[0], "flow time t", "root mean square error")
for axes, (count, by_rule) in zip(panels[1:], found.items(), strict=True):
    for name in ("none (noise)", "regression", "regression, pooled", "Fisher"):
        ratio = by_rule[name].rmse / by_rule["none (noise)"].rmse
        axes.plot(late, ratio, "o-", markersize=4, color=colors[name], label=name)
    axes.set(title=f"relative to none, {count} samples", ylim=(0.0, 2.5))
    tidy(axes, "flow time t", "ratio of the errors")

print(f"{'16 samples, relative to none':30}" + "".join(f"  t={t:.2f}" for t in late))
for name, errors in found[16].items():
    ratios = errors.rmse / found[16]["none (noise)"].rmse
    print(f"{name:30}" + "".join(f"{ratio:8.2f}" for ratio in ratios))
fisher = found[16]["Fisher"].rmse / found[16]["none (noise)"].rmse
assert float(fisher.max()) < 1.1

# %% [markdown]
# So much for the best coefficient. An estimated one is another matter. Regression on the samples of a single state is
# the most accurate rule where many samples carry weight. Where few do, it fits their noise and then removes it: with
# sixteen samples its error is about twice that of no control variate at all up to $t = 0.6$. That the best coefficient
# is never worse than 0 or 1 holds for that of the distribution, not for that of sixteen samples. The Fisher rule has
# one quantity less to estimate, and its error stays below that of none at every time measured. Pooling over a batch
# gives regression its samples back; it is among the best rules everywhere here, where all states of a batch have one
# flow time.
#
# ## 4. Small flow times
#
# The likelihood says less and less about $x_1$ as $t$ goes to 0. As a proposal its standard deviation is $\rho_t = (1 -
# t) / t$, which is 99 at $t = 0.01$. Almost all samples then lie where tanh is flat, and their actions at a bound. The
# Jacobian gives such samples next to no weight: what counts is the one sample of least magnitude.
#
# `ProductProposal` multiplies the likelihood by a fixed normal, of about the width of the latent of a uniform action.
# Its standard deviation stays below that of the normal, and late on the path it turns into the likelihood.

# %%
flat = Flat(6)
early = torch.tensor([0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9], dtype=F64)
proposals = {"likelihood": LikelihoodProposal(), "product": ProductProposal()}
looks = {"likelihood": RED, "product": BLUE}
errors = estimator_errors(
    flat, {n: PosteriorMeanEstimator(100, p, NoControlVariate()) for n, p in proposals.items()}, early, **settings
)

figure, panels = plt.subplots(1, 4, figsize=(12.0, 3.2))
x_1 = squash.latent(flat.sample(torch.rand(200, 6, dtype=F64)))
for name, proposal in proposals.items():
    scale, saturated = [], []
    for t in early:
        x_t = path.sample(torch.randn_like(x_1), x_1, t.expand(200))
        alpha, sigma = path.schedule.alpha(t).reshape(1, 1, 1), path.schedule.sigma(t).reshape(1, 1, 1)
        _, drawn = proposal.draw(torch.randn(200, 100, 6, dtype=F64), source, x_t[:, None], alpha, sigma)
        scale.append(float(drawn.std(1).mean()))
        saturated.append(float(saturated_entries(squash.action(drawn.flatten(0, 1)))))
    panels[0].loglog(early, scale, "o-", color=looks[name], markersize=4, label=name)
    panels[1].semilogx(early, saturated, "o-", color=looks[name], markersize=4)
    panels[2].loglog(early, errors[name].rmse, ".:", color=looks[name])
    shown = errors[name].bias.where(errors[name].bias > 2.0 * errors[name].resolution, torch.nan)
    panels[2].loglog(early, shown, "o-", color=looks[name], markersize=4)
for axes, title in zip(
    panels,
    ("standard deviation of a sample", "share of actions above 0.99", "bias (line), total error (dots)"),
    strict=False,
):
    axes.set_title(title)
    tidy(axes, "flow time t")
panels[0].legend(fontsize=8)

t = torch.tensor(0.05, dtype=F64)
place = PathPoints.between(path, torch.randn_like(x_1), x_1, t.expand(200))
flat_density = boltzmann_density(flat.value_and_gradient, 1.0, squash)
for name, proposal in proposals.items():
    estimator = PosteriorMeanEstimator(100, proposal, NoControlVariate())
    estimate = estimator.estimate(path, source, flat_density, place, torch.randn(200, 100, 6, dtype=F64)).x_1
    panels[3].scatter(place.x_t[:, 0], estimate[:, 0], s=6, color=looks[name], alpha=0.6, linewidths=0)
line = torch.linspace(-3.0, 3.0, 61, dtype=F64)
truth = exact_posterior_mean(flat, line[:, None].expand(-1, 6), t.expand(61))[:, 0]
panels[3].plot(line, truth, color="black", linewidth=1.2, label="exact")
panels[3].legend(fontsize=8)
panels[3].set_title("estimates at t = 0.05")
tidy(panels[3], "$x_t$, first entry", "mean of $x_1$, first entry")

print("t                  ", *(f"{float(t):8.2f}" for t in early))
for name in proposals:
    print(f"{name + ', bias':20}", *(f"{float(value):8.3f}" for value in errors[name].bias))
    print(f"{name + ', error':20}", *(f"{float(value):8.3f}" for value in errors[name].rmse))
assert float(errors["likelihood"].bias[0]) > 10.0
assert float(errors["product"].rmse.max()) < 0.3

# %% [markdown]
# In six dimensions and for a flat $Q$, the easiest there is, the error by the likelihood proposal is 58 at $t = 0.01$,
# where the latent of a uniform action has a standard deviation of 0.9. Half of it is no scatter but bias. The estimates
# (right) lean with $x_t$: of samples scattered widely around $x_t / \alpha_t$, the one of least magnitude still lies on
# that side more often. A network that regresses on them learns to overshoot, and its actions end at the bounds. By the
# product proposal the error is at most 0.11, nearly all of it scatter, which training averages away.
#
# Its price: outside the base the weights grow like $\exp(|x_1|^2 / 2 \tau^2)$ for a base of variance $\tau^2$. A policy
# that sits at the bounds of the box needs `base_variance` above 1.
#
# ## 5. Published methods as special cases
#
# The parts so far are path, proposal and rule for $\eta$. Published methods are choices of them
# ([docs/policies.md](../docs/policies.md) has the table, `conf/actor_critic/methods` the configurations). Four of them:
#
# - **Noise expectation** (MaxEntDP, SDAC): weighted mean of the noise that was drawn. `NoControlVariate`.
# - **Gradient expectation** (iDEM, DQS): gradient with respect to $x_t$ of $\log \sum_k p_1(x_1^k)$, by automatic
#   differentiation. `GradientControlVariate` is the same to the last digits.

# %%
torch.manual_seed(2)
z = torch.randn(4, 32, 1, dtype=F64)


def estimate(estimator, points=points, z=z, density=density):
    """What an estimator makes of points."""
    return estimator.estimate(path, source, density, points, z)


noise_expectation = estimate(PosteriorMeanEstimator(32, LikelihoodProposal(), NoControlVariate())).x_0
gradient_expectation = estimate(PosteriorMeanEstimator(32, LikelihoodProposal(), GradientControlVariate())).x_0
mixture = estimate(PosteriorMeanEstimator(32, LikelihoodProposal(), FixedControlVariate(0.3))).x_0

x_t = points.x_t.clone().requires_grad_()
alpha, sigma = (c[:, None, None] for c in (path.schedule.alpha(TIMES), path.schedule.sigma(TIMES)))
x_0, x_1 = LikelihoodProposal().draw(z, source, x_t[:, None], alpha, sigma)
log_density = squash.log_jacobian(x_1) + bandit.value_and_gradient(squash.action(x_1))[0]
(smoothed,) = torch.autograd.grad(log_density.logsumexp(1).sum(), x_t)

by_hand = (torch.softmax(log_density, 1)[..., None] * x_0).sum(1)
print("weighted noise           ", noise_expectation[:, 0].tolist())
print("minus sigma d logsumexp  ", gradient_expectation[:, 0].tolist())
assert torch.allclose(noise_expectation, by_hand, rtol=1e-12)
assert torch.allclose(gradient_expectation, -sigma[:, 0] * smoothed, rtol=1e-10, atol=1e-12)
assert torch.allclose(mixture, 0.7 * noise_expectation + 0.3 * gradient_expectation, rtol=1e-10, atol=1e-12)

# %% [markdown]
# - **Q-score matching** (`PointScoreEstimator`) takes $\nabla \log p_1$ at $x_t$ itself for the score at $x_t$: no
#   samples at all. It is right where the path ends, and biased for every $t < 1$: earlier the score is that of the
#   noised distribution.

# %%
figure, panels = plt.subplots(1, 3, figsize=(12.0, 3.0), sharey=True)
line = torch.linspace(-2.0, 2.0, 201, dtype=F64)[:, None]
print("t      error of the velocity by the score at the point, root mean square along the path")
for axes, t in zip(panels, (0.3, 0.7, 0.97), strict=True):
    t = torch.full((len(line),), t, dtype=F64)
    there = PathPoints(line, line, line, t)
    point_score = estimate(PointScoreEstimator(), there, torch.empty(len(line), 0, 1, dtype=F64))
    right_one = path.convert(exact_posterior_mean(bandit, line, t), line, t, "data", "velocity")
    axes.plot(line, right_one, color=BLUE, linewidth=4.0, alpha=0.5, label="exact")
    axes.plot(line, path.target("velocity", point_score.x_0, point_score.x_1, t), color=RED, label="Q-score matching")
    axes.set(ylim=(-4.0, 4.0), title=f"t = {t[0]:.2f}")
    tidy(axes, "$x_t$", "velocity" if axes is panels[0] else "")
    x_1 = squash.latent(bandit.sample(torch.rand(len(t), 1, dtype=F64)))
    drawn = PathPoints.between(path, torch.randn_like(x_1), x_1, t)
    ends = estimate(PointScoreEstimator(), drawn, torch.empty(len(t), 0, 1, dtype=F64))
    error = (ends.x_1 - exact_posterior_mean(bandit, drawn.x_t, t)) / (1.0 - t[:, None])
    print(f"{t[0]:.2f}{float(error.square().mean().sqrt()):8.3f}")
panels[0].legend(fontsize=8)

# %% [markdown]
# - **Mirror descent** (DPMD, `ReweightedEndpoints`) draws no $x_1$ for a given $x_t$. It takes the pairs that the
#   points were made of, and weights them by $\exp(Q / \lambda)$. Regression then finds the posterior mean of *the
#   distribution of the $x_1$, times* $\exp(Q / \lambda)$. For uniform actions that is the Boltzmann distribution. For
#   actions of a policy it is a step from that policy: one at temperature 1 moves to temperature $1/2$.

# %%
slope = Quadratic(1, centre=0.6, scale=0.6)
relative = boltzmann_density(slope.value_and_gradient, 1.0, squash, jacobian=False)
half = torch.full((PAIRS,), 0.5, dtype=F64)
uniform = torch.rand(PAIRS, 1, dtype=F64)
bases = {"uniform actions": (2.0 * uniform - 1.0, 1.0), "actions at temperature 1": (slope.sample(uniform), 0.5)}
edges = torch.linspace(-1.2, 1.6, 29, dtype=F64)
middles = 0.5 * (edges[1:] + edges[:-1])[:, None]

figure, panels = plt.subplots(1, 2, figsize=(9.6, 3.2), sharey=True)
for axes, (name, (actions, temperature)) in zip(panels, bases.items(), strict=True):
    x_1 = squash.latent(actions)
    pairs = PathPoints.between(path, torch.randn_like(x_1), x_1, half)
    ends = estimate(ReweightedEndpoints(), pairs, torch.empty(PAIRS, 0, 1, dtype=F64), relative)
    cell = torch.bucketize(pairs.x_t[:, 0], edges)
    weighted, mass = (
        torch.zeros(30, dtype=F64).index_add(0, cell, v)[1:-1] for v in (ends.weight * ends.x_1[:, 0], ends.weight)
    )
    axes.plot(middles, weighted / mass, "o", color=ORANGE, markersize=4, label="weighted pairs, in bins of $x_t$")
    for level, color in ((1.0, BLUE), (0.5, GREEN)):
        means = exact_posterior_mean(slope, middles, half[: len(middles)], temperature=level)
        axes.plot(middles, means, color=color, linewidth=1.2, label=f"exact, temperature {level}")
        away = float((weighted / mass - means[:, 0]).square().mean().sqrt())
        print(f"{name:26} from temperature {level}: {away:.3f}")
        assert (away < 0.05) == (level == temperature)
    axes.set_title(f"{name}, t = 0.5")
    axes.legend(fontsize=8)
    tidy(axes, "$x_t$", "mean of $x_1$" if axes is panels[0] else "")

# %% [markdown]
# ## 6. Four modes, two proposals
#
# Now a network. `BanditFlow` is the actor-critic of section 8 with the value of a bandit in place of critics.
# An update
#
# 1. draws actions of the current policy as $x_1$, noise, flow times, and the points $x_t$ between them,
# 2. estimates the endpoints at these points from values of $Q$ (the actions drawn are no longer needed),
# 3. regresses the network on the estimate, as flow matching does on real pairs.
#
# Four Gaussians in the plane: by the likelihood proposal with the regression rule, which is the paper's choice; the
# same with the Fisher rule; and by the product proposal with the Fisher rule.

# %%
four = FourModes()


def fit(estimator, objective=ConditionalFlowMatching(), **options):
    """A policy of the bandit, and its distances to exact samples."""
    torch.manual_seed(0)
    data = BanditData(four, batch_size=128, num_updates=UPDATES, epoch_updates=UPDATES, eval_samples=ACTIONS)
    architecture = VelocityArchitecture(128, max_frequency=2.0)
    policy = BanditFlow(
        four,
        policy=FlowPolicyArchitecture(network=architecture, **options),
        objective=objective,
        estimator=estimator,
        optimizer=ActorCriticOptimizer(actor_learning_rate=1e-3),
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
    trainer.fit(policy, datamodule=data)
    return policy, trainer.test(policy, datamodule=data, verbose=False)[0]


def draw_actions(axes, actions, title):
    """Actions over the exact density."""
    axes.imshow(heights, origin="lower", extent=(-1, 1, -1, 1), cmap="Blues", vmin=0.0, vmax=1.5 * float(heights.max()))
    axes.scatter(*actions.T, s=3, color=RED, alpha=0.5, linewidths=0)
    axes.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), title=title)
    tidy(axes, "action[0]", "action[1]")
    axes.label_outer()
    axes.grid(visible=False)


cells = torch.linspace(-0.99, 0.99, 100, dtype=F64)
heights = four.log_prob(torch.stack(torch.meshgrid(cells, cells, indexing="xy"), -1)).exp()
product = PosteriorMeanEstimator(32, ProductProposal(), FisherControlVariate())
recipes = {
    "likelihood, regression": PosteriorMeanEstimator(32, LikelihoodProposal(), RegressControlVariate()),
    "likelihood, Fisher": PosteriorMeanEstimator(32, LikelihoodProposal(), FisherControlVariate()),
    "product, Fisher": product,
}
learned = {name: fit(estimator) for name, estimator in recipes.items()}

figure, panels = plt.subplots(1, 4, figsize=(12.0, 3.9), sharex=True, sharey=True)
draw_actions(panels[0], four.sample(torch.rand(ACTIONS, 2, dtype=F64)), "exact samples")
for axes, (name, (policy, metrics)) in zip(panels[1:], learned.items(), strict=True):
    actions = policy.sample_actions(ACTIONS, torch.Generator().manual_seed(0))
    draw_actions(axes, actions, f"{name}\nenergy distance {metrics['test/energy_distance']:.4f}")
    print(f"{name}: {UPDATES:,} updates", *policy.result_lines(metrics), sep="\n")

distance = [metrics["test/energy_distance"] for _, metrics in learned.values()]
assert FAST or distance[-1] < 0.5 * min(distance[:-1])

# %% [markdown]
# By the likelihood proposal more than a third of the actions sit at a bound, whatever the rule, and many of the others
# in the middle: the bias of section 4, learned. (Energy distances hardly show how bad that is; look at samples.) By the
# product proposal none sit at a bound. The rest of its distance is Euler's method and bridges between modes: fifty
# steps of the same weights come to within 0.003.
#
# The paper's configuration has more parts than this comparison. It draws 32 particles and picks one by its value, which
# removes some of the actions in the wrong place.
#
# ## 7. One step
#
# A robot may not have time for ten evaluations of a network. `MeanFlow` learns the average velocity over an interval,
# so that one evaluation carries noise to an action; the notebook on flow matching explains how. It needs pairs of
# endpoints and nothing else, and posterior means are as good as pairs: in its identity the instantaneous velocity
# enters linearly, and the mean of the pairs is that velocity. The same estimator, another objective.

# %%
one_step, metrics = fit(product, objective=MeanFlow(), sampler=AverageVelocitySampler(num_steps=1))
print(f"{UPDATES:,} updates", *one_step.result_lines(metrics), sep="\n")

velocity_policy = learned["product, Fisher"][0]
tried = {
    "velocity, one Euler step": (velocity_policy, 1),
    "average velocity, one step": (one_step, 1),
    "velocity, ten Euler steps": (velocity_policy, 10),
}
truth = four.sample(torch.rand(ACTIONS, 2, dtype=F64)).float()
figure, panels = plt.subplots(1, 3, figsize=(9.6, 4.1), sharex=True, sharey=True)
in_steps = {}
for axes, (name, (policy, steps)) in zip(panels, tried.items(), strict=True):
    actions = policy.sample_actions(ACTIONS, torch.Generator().manual_seed(0), num_steps=steps)
    in_steps[name] = float(energy_distance(actions, truth))
    draw_actions(axes, actions, f"{name}\nenergy distance {in_steps[name]:.4f}")
assert FAST or in_steps["average velocity, one step"] < 0.2 * in_steps["velocity, one Euler step"]

# %% [markdown]
# One Euler step ends near the mean of the actions, where no good action is. One step of the average velocity finds the
# four modes, and ten Euler steps are closer still. The single step is blurred: more of its samples lie between and
# outside the modes, of which the energy distance sees little.
#
# ## 8. From bandit to pendulum
#
# In a task with states, each state is a bandit, and its value is what critics have learned so far. In each update of
# `ReverseFlowActorCritic`
#
# - critics learn from the Bellman target of an action of the policy in the next state, one of several particles, chosen
#   with probability proportional to $\exp(Q / \lambda)$;
# - the policy learns from the critics as in section 6; `share_samples` takes the particle just drawn as $x_1$.
#
# Between updates the policy collects.
#
# Sizes are those of `conf/actor_critic/pendulum.yaml`, which `make train` runs: 7000 environment steps in a few minutes
# ([learning curve](../docs/benchmarks.md#online-reinforcement-learning)). The package comes with the weights of such a
# run, `zoo:pendulum`. Here they are tested, and then trained for 400 updates more, to see what they learn from. The two
# callbacks draw figures that every run leaves behind.

# %%
torch.manual_seed(0)
task = OnlineData(
    GymnasiumEnvironment("Pendulum-v1"),
    total_env_steps=WARM_UP + ENV_STEPS,
    warmup_env_steps=WARM_UP,
    epoch_env_steps=ENV_STEPS,
    batch_size=128,
    env_steps_per_collection=4,
    test_episodes=2 if FAST else 10,
    max_episode_steps=10 if FAST else 200,
)
agent = ReverseFlowActorCritic(
    **task.dimensions,
    temperature=1.0,
    discount=0.95,
    policy=FlowPolicyArchitecture(sampler=OdeSampler(Euler(num_steps=5)), network=VelocityArchitecture(128)),
    estimator=PosteriorMeanEstimator(num_samples=16),
    points=TrainingPoints(share_samples=True),
    acting=Acting(train_particles=4, collect_particles=4, eval_particles=16),
    critics=Critics(CriticArchitecture(hidden_dim=128), ema_decay=0.98),
)
agent.load_state_dict(load_policy("zoo:pendulum").module.state_dict())
with tempfile.TemporaryDirectory() as folder:
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=task.num_epochs,
        default_root_dir=folder,
        callbacks=[PolicyFigures(), PosteriorFigures()],
        limit_val_batches=0,
        log_every_n_steps=20,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    metrics = trainer.test(agent, datamodule=task, verbose=False)[0]
    trainer.fit(agent, datamodule=task)
    figures = {path.stem: path.read_bytes() for path in (Path(folder) / "figures").glob("*.png")}
print(*agent.result_lines(metrics), sep="\n")
assert FAST or metrics["test/return_mean"] > -400.0

# %% [markdown]
# Random torques earn about $-1200$; a pendulum that is swung up and kept up earns about $-150$. The policy at four
# states of an episode: how the flow moves, and where it ends, beside the Boltzmann density of the critics. (Figures
# count the environment steps of this notebook, without those of the run that the weights are from.)

# %%
display(Image(figures["policy"], width=900))

# %% [markdown]
# And what it learned from, by flow time, the panels of sections 2 to 4 for critics of a real run: how many samples
# count, the coefficient of the Fisher rule, the size of the regression target, actions at a bound.

# %%
display(Image(figures["posterior"], width=900))
profile = agent.posterior_profile
for name, values in profile.means.items():
    print(f"{name:24}", *(f"{value:9.3f}" for value in values))

# %% [markdown]
# At a temperature of 1 the log-density differs by two or three nats over the samples of a state at small flow times,
# and still more than half of the samples carry weight. The coefficient goes from 0 to 1, as in section 3. Hardly an
# estimated action is at a bound.
#
# The states above show a limit. In the first two the critics prefer the full torque, a distribution with a spike at the
# bound, and the flow's samples are wider than it. In the last two all torques are about as good, and the samples leave
# the bounds out. Five Euler steps, sixteen samples and a proposal that covers bounds badly are the suspects. The action
# taken is still right, since it is the best of sixteen.
#
# ## 9. What is not shown
#
# - **Returns of methods against each other.** A better estimate of a policy is not a better return: selection among
#   particles repairs much, critics err, and some tasks like actions at the bounds. `flowmatch-rl compare` trains
#   methods under several seeds ([docs/comparing.md](../docs/comparing.md)); results are in
#   [benchmarks/RESULTS.md](../benchmarks/RESULTS.md).
# - **Low temperatures.** The paper's configuration has 0.02, for values of up to 100. One sample then often outweighs
#   all others, and the estimator is a search for the best of $K$ around $x_t / \alpha_t$. What the figures above say of
#   many effective samples does not hold there.
# - **Policies at the bounds.** A product proposal as wide as a uniform action's latent covers them badly: raise
#   `base_variance`, or mix both proposals (`MixtureProposal`).
# - **Entropy in the critics**, temperatures tuned to an entropy or to a number of effective samples, other sources,
#   squashes and predictions: [docs/policies.md](../docs/policies.md).
#
# From the command line:
#
# ```bash
# flowmatch-rl fit -c conf/bandit/four_modes.yaml
# flowmatch-rl compare -c conf/comparison/bandits.yaml --output runs/bandits
# flowmatch-rl fit -c conf/actor_critic/pendulum.yaml
# flowmatch-rl fit -c conf/actor_critic/pendulum.yaml -c conf/actor_critic/methods/maxentdp.yaml
# ```
#
# ### References
#
# - Li, Tang, Azizan, *Reverse Flow Matching: A Unified Framework for Online Reinforcement Learning with Diffusion and
#   Flow Policies*, [arXiv:2601.08136](https://arxiv.org/abs/2601.08136)
# - Dong et al., MaxEntDP, [arXiv:2502.11612](https://arxiv.org/abs/2502.11612): the noise expectation
# - Akhound-Sadegh et al., *Iterated Denoising Energy Matching*, [arXiv:2402.06121](https://arxiv.org/abs/2402.06121):
#   the gradient expectation
# - Psenka et al., *Learning a Diffusion Model Policy from Rewards via Q-Score Matching*,
#   [arXiv:2312.11752](https://arxiv.org/abs/2312.11752)
# - Ma et al., SDAC and DPMD, [arXiv:2502.00361](https://arxiv.org/abs/2502.00361): the noise expectation by weighted
#   samples, and mirror descent
# - Geng et al., *Mean Flows for One-step Generative Modeling*, [arXiv:2505.13447](https://arxiv.org/abs/2505.13447)
