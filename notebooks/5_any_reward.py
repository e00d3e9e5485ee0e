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
# # Any reward
#
# Draw a reward on a maze, and get a policy for it: without a simulator, from random data that were collected before
# anybody thought of a reward.
#
# 1. Data without rewards
# 2. One occupancy for a whole family of policies
# 3. Draw a reward
# 4. From values to a policy
# 5. Another drawing
# 6. Next steps

# %%
import logging
import os
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from IPython.display import display
from lightning.pytorch import Trainer

from flowmatch_rl.data import OfflineData, collect_transitions
from flowmatch_rl.envs import ProcessEnvironment
from flowmatch_rl.evaluation import map_values
from flowmatch_rl.experiments import improve
from flowmatch_rl.experiments.improvement import Draws
from flowmatch_rl.figures import draw_value_map
from flowmatch_rl.figures.style import GREY, tidy
from flowmatch_rl.inference import load_occupancy
from flowmatch_rl.models import Horizon
from flowmatch_rl.modules import FlowOptimizer, OccupancyModule
from flowmatch_rl.nets import EmaSettings, FilmUNetArchitecture
from flowmatch_rl.objectives import TD2CFM
from flowmatch_rl.solvers import Midpoint
from flowmatch_rl.testbeds import MazeGoalPolicy, PointMassMaze
from flowmatch_rl.types import Reward

# %% [markdown]
# `FLOWMATCH_FAST=1` in the environment runs everything with fewer updates and samples, to test the notebook. The
# numbers in the text are those of the full run.

# %%
FAST = os.environ.get("FLOWMATCH_FAST") == "1"
ROWS = 20_000 if FAST else 200_000  # of the data set
UPDATES = 3 if FAST else 1_000  # of the occupancy
DRAWS = Draws(num_states=64, num_members=4, num_samples=4) if FAST else Draws(num_states=2_048)
POLICY_UPDATES = 4 if FAST else 800  # of each policy
EPISODES, STEPS = (4, 3) if FAST else (200, 120)  # that a policy is tried on
DISCOUNT = 0.95
SEED = 0

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")
warnings.filterwarnings("ignore", message="the data|.* of the reward of modelled states")
plt.rcParams.update({"figure.dpi": 100, "figure.constrained_layout.use": True, "axes.titlesize": 10})
folder = tempfile.TemporaryDirectory()

# %% [markdown]
# ## 1. Data without rewards
#
# A point mass in a square is pushed by a force. A wall in the shape of a cross leaves four gaps. The data are random
# forces from random places, five steps at a time: nobody ever crosses the maze in them.

# %%
maze = PointMassMaze(start_speed=0.4, action_repeat=4)
data_path = str(Path(folder.name) / "maze")
collect_transitions(
    ProcessEnvironment(maze, max_steps=5), data_path, ROWS, None, num_envs=ROWS // 100, block_steps=5, progress=False
)
data = OfflineData(data_path, batch_size=256, num_updates=UPDATES, epoch_updates=UPDATES)
print(f"{ROWS:,} transitions of {', '.join(data.store.info.columns)}, no reward")

# %% [markdown]
# ## 2. One occupancy for a whole family of policies
#
# The **occupancy** of a policy $\pi$ from a state $s$ and an action $a$ is the distribution of the state after a random
# number of steps,
#
# $$m^\pi(\cdot \mid s, a) = (1 - \gamma) \sum_{k \geq 0} \gamma^k\, \Pr(S_{k+1} = \cdot \mid s, a, \pi),$$
#
# and the value of **any** reward $r$ of the state is a mean over it,
# $Q^\pi(s, a) = \mathbb E_{X \sim m^\pi(s, a)}\, r(X) / (1 - \gamma)$. A flow is trained to sample $m$ from single
# transitions ([notebook 2](2_occupancy.ipynb)). Here it is that of a *family* of policies, "go to the point $g$", with
# $g$ as one more input: one model knows where each of them will be.

# %%
module = OccupancyModule(
    **data.dimensions,
    policy=MazeGoalPolicy(),
    horizon=Horizon(DISCOUNT),
    objective=TD2CFM(solver=Midpoint(3)),
    network=FilmUNetArchitecture(
        block_dims=(128, 128), time_features=64, time_dims=(64, 32), condition_dims=(128, 128), activation="silu"
    ),
    ema=EmaSettings(0.9),
    optimizer=FlowOptimizer(1e-3, decay="cosine", epsilon=1e-8),
)
trainer = Trainer(
    max_epochs=data.num_epochs,
    accelerator="cpu",
    limit_val_batches=0,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
torch.manual_seed(SEED)
trainer.fit(module, datamodule=data)
checkpoint = Path(folder.name) / "occupancy.ckpt"
trainer.save_checkpoint(checkpoint)
print(f"{UPDATES:,} updates")

# %% [markdown]
# Where will three members of the family be, from the same state at rest?

# %%
model = load_occupancy(checkpoint).model
state = torch.tensor([[-0.15, -0.15, 0.0, 0.0]])
goals = torch.tensor([[-0.15, 0.15], [0.15, -0.15], [0.15, 0.15]])
start, members = state.expand(3, -1), goals / maze.half_width
with torch.no_grad():
    noise = model.draw_noise(3, 1, 300, generator=torch.Generator().manual_seed(0))
    action = model.act(start[:, None], members[:, None])
    futures = model.futures(noise, start[:, None], action, members[:, None], DISCOUNT)[:, 0]

figure, panels = plt.subplots(1, 3, figsize=(10.2, 3.6), sharex=True, sharey=True)
half = maze.half_width
for axes, points, goal in zip(panels, futures, goals, strict=True):
    for left, bottom, right, top in maze.walls().tolist():
        axes.add_patch(plt.Rectangle((left, bottom), right - left, top - bottom, color=GREY))
    axes.scatter(points[:, 0], points[:, 1], s=4, alpha=0.5, linewidths=0)
    axes.plot(*state[0, :2], "o", color="black")
    axes.plot(*goal, "x", color="black")
    axes.set(xlim=(-half, half), ylim=(-half, half), aspect="equal", title=f"to ({goal[0]:g}, {goal[1]:g})")
    tidy(axes, "x", "y")
    axes.label_outer()

# %% [markdown]
# (Dot: where it is. Cross: where the member goes. Points: samples of where it will be.)
#
# ## 3. Draw a reward
#
# Each sign stands for a cell of the arena: `#` pays 1 in every step, `o` pays one half, a dot nothing. Change it and
# run the rest again. Here two places pay the same, at the left and at the right gap.

# %%
DRAWING = """
. . . . . . . . . . . .
. . . . . . . . . . . .
. . . . . . . . . . . .
o o . . . . . . . . o o
# # . . . . . . . . # #
# # . . . . . . . . # #
# # . . . . . . . . # #
# # . . . . . . . . # #
o o . . . . . . . . o o
. . . . . . . . . . . .
. . . . . . . . . . . .
. . . . . . . . . . . .
"""


class DrawnReward(Reward):
    """What the cell pays that the mass is in."""

    def __init__(self, drawing):
        rows = [line.split() for line in drawing.strip().splitlines()]
        paid = {".": 0.0, "o": 0.5, "#": 1.0}
        self.cells = torch.tensor([[paid[sign] for sign in row] for row in reversed(rows)])  # bottom row first

    @property
    def needed_columns(self):
        """The position."""
        return ("x", "y")

    def of_columns(self, values):
        """Look the cell up."""
        last = torch.tensor(self.cells.shape) - 1
        place = ((values / maze.half_width + 1.0) / 2.0).flip(-1) * (last + 1)  # row and column
        row, column = place.long().clamp_min(0).minimum(last).unbind(-1)
        return self.cells[row, column]


reward = DrawnReward(DRAWING)

# %% [markdown]
# ## 4. From values to a policy
#
# `improve` draws future states of members of the family at states of the data, once for all rewards. A reward turns
# them into values. Critics learn these, and then from the transitions of the data; a flow learns the actions of the
# members with the weights $\exp(Q / \lambda)$, which is reverse flow matching with the family as prior.

# %%
policy = improve(checkpoint, reward, data_path, draws=DRAWS, num_updates=POLICY_UPDATES, seed=SEED)


def play(act, reward):
    """States of episodes from random places at rest, (episodes, steps, 4), and the mean reward of a step."""
    generator = torch.Generator().manual_seed(5)
    states = PointMassMaze(action_repeat=4).start(torch.randn(EPISODES, 4, generator=generator))
    visited = [states]
    for _ in range(STEPS):
        states, _ = maze.step(states, act(states), torch.zeros(EPISODES, 4))
        visited.append(states)
    found = torch.stack(visited, 1)
    return found, float(reward.evaluate(found[:, 1:], maze.columns).mean())


def show(policy, reward, title):
    """Play the policy beside random forces, and draw what it is worth and where it goes."""
    actor, generator = policy.module.actor("eval"), torch.Generator().manual_seed(0)
    episodes, mean = play(lambda states: actor(states, generator), reward)
    _, chance = play(lambda states: 2.0 * torch.rand(len(states), 2, generator=generator) - 1.0, reward)
    print(f"mean reward {mean:.2f} in every step; random forces {chance:.2f}")
    display(draw_value_map(map_values(actor, reward, maze, episodes[:3]), title))
    return episodes, mean, chance


episodes, mean, chance = show(policy, reward, "two places that pay the same")
assert FAST or mean > 5.0 * chance

# %% [markdown]
# (Left: the drawing. Right: the value of the policy, samples of its action as arrows, three episodes.) Both places are
# as good, and the policy uses both. A flow can even keep both ways open at one and the same place:

# %%
last = episodes[:, -1, 0]
print(f"{float((last < 0.0).float().mean()):.0%} of {EPISODES} episodes end on the left, the others on the right")
middle = torch.tensor([[0.0, 0.25, 0.0, 0.0], [0.0, -0.25, 0.0, 0.0]])
many = policy.module.actor("eval").sampling()(middle.repeat_interleave(500, 0), torch.Generator().manual_seed(0))
for place, forces in zip(("the upper gap", "the lower gap"), many.unflatten(0, (2, 500)), strict=True):
    left, right = (float((side * forces[:, 0] > 0.3).float().mean()) for side in (-1.0, 1.0))
    print(f"in {place} {left:.0%} of the samples push to the left and {right:.0%} to the right")
assert FAST or 0.3 < float((last < 0.0).float().mean()) < 0.7

# %% [markdown]
# ## 5. Another drawing
#
# The next reward finds occupancy and future states as they are.

# %%
diagonal = DrawnReward("""
. . . . . .
. # # . . .
. # # . . .
. . . . . .
. . . . o .
. . . . . .
""")
other = improve(checkpoint, diagonal, data_path, draws=DRAWS, num_updates=POLICY_UPDATES, seed=SEED)
_, mean, chance = show(other, diagonal, "a place, and a lesser one")
assert FAST or mean > 5.0 * chance

# %% [markdown]
# The lesser place is worth staying at only where the better one is too far: at discount 0.95 a reward that is 14 steps
# away counts half.
#
# ## 6. Next steps
#
# ```bash
# flowmatch-rl collect -c conf/collect/maze.yaml --output data/maze
# flowmatch-rl fit -c conf/occupancy/maze_goals.yaml --trainer.default_root_dir runs/maze_goals
# flowmatch-rl improve --ckpt_path runs/maze_goals/checkpoints/last.ckpt --reward SpeedReward
# ```
#
# - Rewards from labelled states or of your own, a second round, what the printed numbers mean:
#   [docs/any_reward.md](../docs/any_reward.md). Twenty rewards beside planning and other methods:
#   [docs/benchmarks.md](../docs/benchmarks.md).
# - Families of policies from data: [docs/occupancy.md](../docs/occupancy.md).
#
# ### References
#
# - Farebrother et al., *Temporal Difference Flows*, [arXiv:2503.09817](https://arxiv.org/abs/2503.09817)
# - Zheng et al., *Intention-Conditioned Flow Occupancy Models*, [arXiv:2506.08902](https://arxiv.org/abs/2506.08902)

# %%
folder.cleanup()
