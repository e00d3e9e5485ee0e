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
# # Policies from data
#
# A data set holds actions and the rewards they earned. A policy that learns from it alone should earn more than the
# data do, and still stay near them: nobody has tried what lies elsewhere. This notebook trains the methods of the
# package on a data set in the plane whose answer is known, and shows where each puts its actions.
#
# 1. The data and the answer
# 2. Behaviour cloning
# 3. Tilting: two estimators, one temperature
# 4. Uphill: flow Q-learning and the best of 32
# 5. Next steps

# %%
import logging
import os
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from lightning.pytorch import Trainer
from tensordict import TensorDict

from flowmatch_rl.data import PolicyData, StoreInfo, TransitionWriter
from flowmatch_rl.estimators import PriorMeanEstimator, ReweightedEndpoints
from flowmatch_rl.figures.style import BLUE, GREY, ORANGE, RED, tidy
from flowmatch_rl.metrics import energy_distance
from flowmatch_rl.models import FlowPolicyArchitecture, OneStepPolicyArchitecture
from flowmatch_rl.modules import (
    ActorCriticOptimizer,
    BehaviorCloning,
    Critics,
    FlowOptimizer,
    FlowQLearning,
    ImplicitFlowQLearning,
    TiltedFlowActorCritic,
    TrainingPoints,
)
from flowmatch_rl.nets import CriticArchitecture, VelocityArchitecture
from flowmatch_rl.objectives import DivergenceTemperature
from flowmatch_rl.paths import ClipSquash
from flowmatch_rl.testbeds import TiltedMixture

# %% [markdown]
# `FLOWMATCH_FAST=1` in the environment runs everything with fewer updates and samples, to test the notebook. The
# numbers in the text are those of the full run.
# It takes about 90 seconds of processor time on one thread.

# %%
FAST = os.environ.get("FLOWMATCH_FAST") == "1"
ROWS = 2_000 if FAST else 20_000  # of the data set
UPDATES, MORE = (3, 3) if FAST else (700, 1_000)  # of a policy, and of one that learns more slowly
SAMPLES = 200 if FAST else 2_000  # that a policy is judged by
SEED = 0

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")
torch.manual_seed(SEED)
plt.rcParams.update({"figure.dpi": 100, "figure.constrained_layout.use": True, "axes.titlesize": 10})

# %% [markdown]
# ## 1. The data and the answer
#
# The behaviour $b$, the distribution of the actions in the data, has two modes of equal weight. The reward of an action
# falls with the squared distance from a peak that neither mode covers. There is one state only, and an episode ends
# after one action, so that the value $Q(a)$ of an action is its reward.
#
# Which policy should one learn? The peak itself would be best, if one could trust a value learned from data at an
# action that no data are near. A common compromise is the **tilted distribution**
#
# $$\pi(a) \propto b(a) \exp\left(Q(a) / \lambda\right),$$
#
# which is the policy of highest $\mathbb E\, Q - \lambda\, \mathrm{KL}(\pi \,\|\, b)$. It has no mass where the data
# have none, and the temperature $\lambda$ says what a nat of divergence from the data has to earn. For a mixture of
# normals and a quadratic value it is again a mixture of normals, and `TiltedMixture` knows it.

# %%
problem, TEMPERATURE = TiltedMixture(), 0.5
exact = problem.tilted(TEMPERATURE)


def draw(mixture, number):
    """Samples of a mixture."""
    return mixture.draw(torch.rand(number), torch.randn(number, 2)).float()


def show(axes, mixture, actions, title):
    """Actions over the density of a mixture; the cross marks the action of highest value."""
    axes.imshow(mixture.log_prob(grid).exp(), origin="lower", extent=(-1, 1, -1, 1), cmap="Blues", vmin=0.0, vmax=6.0)
    axes.scatter(*actions[:1000].T, s=3, color=RED, alpha=0.5, linewidths=0)
    axes.plot(*problem.peak, "x", color="black")
    ticks = [-1.0, -0.5, 0.0, 0.5, 1.0]
    axes.set(xlim=(-1, 1), ylim=(-1, 1), xticks=ticks, yticks=ticks, title=title)
    tidy(axes, "action[0]", "action[1]")
    axes.label_outer()
    axes.grid(visible=False)


cells = torch.linspace(-0.99, 0.99, 100, dtype=torch.float64)
grid = torch.stack(torch.meshgrid(cells, cells, indexing="xy"), -1)
truth = draw(exact, SAMPLES)

figure, panels = plt.subplots(1, 2, figsize=(7.2, 3.9), sharex=True, sharey=True)
for axes, mixture, name in zip(panels, (problem.behavior, exact), ("the data", "the answer"), strict=True):
    show(
        axes, mixture, draw(mixture, SAMPLES), f"{name}: weights {mixture.weights[0]:.2f} and {mixture.weights[1]:.2f}"
    )
    axes.contour(cells, cells, problem.value_and_gradient(grid)[0], levels=6, colors=GREY, linewidths=0.6)

# %% [markdown]
# (Blue: exact density. Red: samples. Lines: levels of the value.) Tilting moves weight to the mode of higher value, and
# each mode a little uphill.
#
# `TransitionWriter` makes a data set of it, as `flowmatch-rl collect` and `convert` do: rows of observation (here a
# constant), action, reward, and whether the episode ended.

# %%
folder = tempfile.TemporaryDirectory()
actions = draw(problem.behavior, ROWS).clamp(-1.0, 1.0)
constant, ended = torch.zeros(ROWS, 1), torch.ones(ROWS, 1, dtype=torch.bool)
arrival = {
    "observation": constant,
    "reward": problem.value_and_gradient(actions)[0][:, None],
    "terminated": ended,
    "truncated": ~ended,
    "done": ended,
}
info = StoreInfo(num_transitions=ROWS, columns=("constant",), action_dim=2, ordered=True)
with TransitionWriter(Path(folder.name) / "plane", info) as writer:
    writer.append(TensorDict({"observation": constant, "action": actions, "next": arrival}, [ROWS]))
    store = writer.finish()
print(f"{len(store):,} transitions, mean reward {store.info.reward_mean:.3f}")

# %% [markdown]
# From here on the policies see the data set, not the problem. Every module is trained in the same way:

# %%
flow = FlowPolicyArchitecture(
    squash=ClipSquash(), network=VelocityArchitecture(64, max_frequency=10.0, balanced_inputs=True)
)
critics = Critics(CriticArchitecture(hidden_dim=64), reduction="mean")
rates = ActorCriticOptimizer(actor_learning_rate=1e-3, critic_learning_rate=1e-3, temperature_learning_rate=1e-2)
observations = torch.zeros(SAMPLES, 1)


def fit(kind, updates=UPDATES, **options):
    """A module trained on the data set."""
    torch.manual_seed(SEED)
    data = PolicyData(store.path, num_updates=updates, epoch_updates=updates)
    module = kind(**data.dimensions, **options)
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
    print(f"{kind.__name__}: {updates:,} updates")
    return module.eval()


def distance(actions, mixture_samples=truth):
    """Energy distance to exact samples."""
    return float(energy_distance(actions, mixture_samples))


def value(actions):
    """Mean of the true value."""
    return float(problem.value_and_gradient(actions)[0].mean())


# %% [markdown]
# ## 2. Behaviour cloning
#
# The first policy imitates. `BehaviorCloning` is conditional flow matching on the actions, given the observation: noise
# $x_0$ and an action $x_1$ of the data are joined by a path, and the network regresses on its velocity. It needs no
# rewards. A regression on the action itself, or a Gaussian policy, would act between the two modes, where there are no
# data; a flow keeps both.

# %%
cloned = fit(BehaviorCloning, policy=flow, optimizer=FlowOptimizer(2e-3))
copies = cloned.actor("eval")(observations)
behaved, again = draw(problem.behavior, SAMPLES), draw(problem.behavior, SAMPLES)
print(f"energy distance to the data {distance(copies, behaved):.4f}, of two samples {distance(again, behaved):.4f}")
print(f"mean value {value(copies):.3f}; of the data {value(behaved):.3f}")

figure, panels = plt.subplots(1, 2, figsize=(7.2, 3.9), sharex=True, sharey=True)
show(panels[0], problem.behavior, behaved, "the data")
show(panels[1], problem.behavior, copies, "behaviour cloning")
assert FAST or distance(copies, behaved) < 0.01

# %% [markdown]
# ## 3. Tilting: two estimators, one temperature
#
# `TiltedFlowActorCritic` learns critics from the rewards, and a flow toward the tilted distribution of its critics.
# What the flow regresses on is the posterior mean of the action given a point of the path, as in the
# [notebook on reverse flow matching](3_reverse_flow_policy.ipynb), here relative to the data. There are two ways to
# estimate it:
#
# - `ReweightedEndpoints`, **energy-weighted** flow matching: the actions of the data, each with the weight
#   $\exp(Q / \lambda)$. It costs no more than cloning does. At a low temperature few actions of a batch count.
# - `PriorMeanEstimator`, **reverse flow matching with a prior**: a flow that clones the data is trained beside. At each
#   point it proposes actions that the point may be on the way to, which are weighted by $\exp(Q / \lambda)$, and the
#   gradient of $Q$ corrects their mean (a control variate).
#
# Both act here by plain samples of the flow, `actor("eval").sampling()`, as `load_policy(path, samples=True)` does. In
# evaluations a policy takes the best of 32 samples by default, which section 4 comes to.

# %%
tilted = {"policy": flow, "behavior": flow, "critics": critics, "optimizer": rates}
learned = {
    "energy-weighted": fit(
        TiltedFlowActorCritic,
        temperature=TEMPERATURE,
        estimator=ReweightedEndpoints(),
        points=TrainingPoints(x_1_source="replay"),
        **tilted,
    ),
    "prior": fit(
        TiltedFlowActorCritic,
        temperature=TEMPERATURE,
        estimator=PriorMeanEstimator(num_samples=8),
        **tilted,
    ),
}
found = {name: agent.actor("eval").sampling()(observations) for name, agent in learned.items()}

print(f"\n{'':20}{'energy distance':>18}{'mean value':>12}")
rows = {"exact samples": draw(exact, SAMPLES), "the data": behaved} | found
for name, points in rows.items():
    print(f"{name:20}{distance(points):18.4f}{value(points):12.3f}")

figure, panels = plt.subplots(1, 3, figsize=(10.6, 4.2), sharex=True, sharey=True)
show(panels[0], exact, truth, "exact samples")
for axes, (name, points) in zip(panels[1:], found.items(), strict=True):
    show(axes, exact, points, f"{name}\nenergy distance {distance(points):.4f}")
assert FAST or max(map(distance, found.values())) < 0.5 * distance(behaved)

# %% [markdown]
# Both moved weight to the better mode, which has 0.84 and 0.82 of the samples where it should have 0.83, and both are
# short of the answer. The prior's flow learns from a behaviour flow that is itself being learned: its better mode is
# uneven. And some samples lie between the modes, as those of cloning do: a flow is continuous and cannot tear its noise
# apart.
#
# How much of the error is the critics'? At actions of the data and of the answer they are close to the true value; far
# from the data, at the corners of the box, nothing holds them.

# %%
critic = learned["prior"].critics
corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 2)
for name, points in {"the data": behaved, "the answer": truth, "the corners": corners}.items():
    with torch.no_grad():
        error = (
            critic.values(observations[: len(points)], points[:, None])[:, 0] - problem.value_and_gradient(points)[0]
        )
    print(f"error of the critics at {name:12} {float(error.square().mean().sqrt()):.3f} (root mean square)")

# %% [markdown]
# **The temperature** has the unit of the return, and a good one differs by orders of magnitude between tasks. Whoever
# lowers it lets the policy diverge further from the data, so that one may as well state the divergence and have the
# temperature found: `DivergenceTemperature(nats=1.0)` is the default of `TiltedFlowActorCritic`.

# %%
tuned = fit(
    TiltedFlowActorCritic,
    temperature=DivergenceTemperature(nats=1.0),
    estimator=ReweightedEndpoints(),
    points=TrainingPoints(x_1_source="replay"),
    **tilted,
)
reached = float(tuned.temperature)
moved, target = tuned.actor("eval").sampling()(observations), problem.tilted(reached)
print(f"temperature {reached:.3f}, where the exact divergence is {problem.divergence(reached):.3f} nats")
print(f"energy distance to the exact distribution there {distance(moved, draw(target, SAMPLES)):.4f}")

figure, (left, right) = plt.subplots(1, 2, figsize=(8.2, 3.7))
temperatures = np.geomspace(0.05, 3.0, 60)
left.plot(temperatures, [problem.divergence(level) for level in temperatures], color=BLUE, label="exact")
for agent, color, name in ((learned["prior"], ORANGE, "constant, 0.5"), (tuned, RED, "tuned to 1 nat")):
    measured = float(agent.divergence(observations))
    left.plot(float(agent.temperature), measured, "o", color=color, label=f"{name}: as measured in training")
left.set_xscale("log")
left.legend(fontsize=8)
tidy(left, "temperature, units of the return", "divergence from the data, nats")
show(right, target, moved, f"tuned to 1 nat: temperature {reached:.2f}")

# %% [markdown]
# The critics say how far the policy's target is from the behaviour, and the temperature settles where that is 1 nat. A
# batch measures it with 16 actions of the behaviour flow per state, which comes out a little low: at the temperature
# found here, 0.12, the exact divergence is 1.16 nats. The worse mode has all but disappeared, and the better one is
# narrower and further uphill.
#
# ## 4. Uphill: flow Q-learning and the best of 32
#
# Two more methods start from a behaviour flow and aim at something else.
#
# - `FlowQLearning` learns a map from noise to an action in one step. It goes uphill in $Q$, and pays $\alpha$ times the
#   squared distance from the action that the behaviour flow makes of the same noise.
# - `ImplicitFlowQLearning` draws 32 actions of a behaviour flow and takes the one that its critics like best.

# %%
one_step = OneStepPolicyArchitecture(network=flow.network)
uphill = {
    "flow Q-learning": fit(
        FlowQLearning, MORE, alpha=3.0, policy=one_step, behavior=flow, critics=critics, optimizer=rates
    ),
    "best of 32": fit(ImplicitFlowQLearning, policy=flow, critics=critics, optimizer=rates),
}
found |= {name: agent.actor("eval")(observations) for name, agent in uphill.items()}

print(f"\n{'':27}{'energy distance':>18}{'mean value':>12}{'right half':>13}")
for name, points in ({"exact samples": truth} | found).items():
    right_half = float((points[:, 0] > 0.0).float().mean())
    print(f"{name:27}{distance(points):18.4f}{value(points):12.3f}{right_half:13.2f}")

figure, panels = plt.subplots(1, 3, figsize=(10.6, 4.2), sharex=True, sharey=True)
show(panels[0], exact, truth, f"exact samples\nmean value {value(truth):.3f}")
for axes, name in zip(panels[1:], uphill, strict=True):
    show(axes, exact, found[name], f"{name}\nmean value {value(found[name]):.3f}")

# %% [markdown]
# Both earn more than the tilted distribution at this temperature, and neither samples it:
#
# - **Flow Q-learning** moves each action uphill from where the behaviour flow would have put it, and pays for the
#   squared length of that way. So both modes stay, and become narrower: none is left for the other. The worse one now
#   lies where the data have next to nothing, in part beyond the middle: an action halfway to a good one need not be a
#   good one. Here it is, since the value is a parabola and the critics have learned it; in general nothing says so. A
#   smaller $\alpha$ moves them further.
# - **The best of 32** never leaves the behaviour flow's actions. But it ranks them, and a rank does not see how much
#   better an action is: where all values are equal to within the errors of the critics, it still takes the best of 32.
#   The number plays the part of the temperature. The best of $N$ diverges from the behaviour by $\log N - 1 + 1/N$
#   nats, 2.5 for 32, where the tilted distribution above diverges by 0.3.
#
# Both may be what one wants. A policy that is to be sure of its actions takes the best of many; one that is to stay a
# distribution, for instance to try several ways, is tilted. A tilted policy can also take the best of several samples:
# `TiltedFlowActorCritic` does so in evaluations.
#
# ## 5. Next steps
#
# A problem with one state shows what a method aims at. It does not show which method earns the highest return: with
# states and longer episodes the critics learn from each other, and much depends on how well they judge actions that few
# data are near. The command line trains the same modules on a data set of your own, with evaluations in an environment
# where there is one:
#
# ```bash
# flowmatch-rl fit -c conf/actor_critic/pendulum.yaml --trainer.default_root_dir runs/pendulum
# flowmatch-rl convert -c conf/convert/pendulum.yaml --output data/pendulum
# flowmatch-rl fit -c conf/offline/pendulum.yaml
# flowmatch-rl fit -c conf/offline/pendulum.yaml -c conf/offline/methods/flow_q_learning.yaml
# ```
#
# - All methods with their settings and what a run measures: [docs/offline_policies.md](../docs/offline_policies.md).
# - Data sets, also of logs of your own: [docs/datasets.md](../docs/datasets.md).
# - Why a posterior mean is all that a flow needs, without data:
#   [3_reverse_flow_policy](3_reverse_flow_policy.ipynb).
#
# ### References
#
# - Chi et al., *Diffusion Policy*, [arXiv:2303.04137](https://arxiv.org/abs/2303.04137): behaviour cloning
# - Zhang et al., [arXiv:2503.04975](https://arxiv.org/abs/2503.04975): energy-weighted flow matching
# - Li, Tang, Azizan, *Reverse Flow Matching*, [arXiv:2601.08136](https://arxiv.org/abs/2601.08136): posterior means,
#   there with a uniform prior
# - Park et al., *Flow Q-Learning*, [arXiv:2502.02538](https://arxiv.org/abs/2502.02538)
# - Kostrikov et al., *Implicit Q-Learning*, [arXiv:2110.06169](https://arxiv.org/abs/2110.06169)

# %%
folder.cleanup()
