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
# # The continuity equation
#
# Probability is not made and not lost: where it grows, it has flowed in. This notebook shows density, flux and
# divergence of a flow side by side while they move, and checks the equation that ties them together, first on a flow
# with a closed form, then on a trained network.
#
# 1. Density, flux, divergence
# 2. The three in motion
# 3. The equation, checked in three ways
# 4. Many velocities carry one density
# 5. A trained model carries a density of its own
#
# It takes about 40 seconds of processor time on one thread.

# %%
import io
import itertools
import os

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Image, display
from matplotlib.collections import LineCollection
from matplotlib.colors import BoundaryNorm
from PIL import Image as Picture

from flowmatch_rl.figures.style import BLUE, GREY, ORANGE, tidy
from flowmatch_rl.inference import load_flow
from flowmatch_rl.metrics import energy_distance
from flowmatch_rl.paths import AffinePath, GaussianMixture, GaussianSource, LinearSchedule, gaussian_velocity
from flowmatch_rl.solvers import RK4, ExactDivergence, Midpoint, continuity_terms, log_likelihood

# %% [markdown]
# `FLOWMATCH_FAST=1` in the environment runs everything with fewer frames and points, to test the notebook. The numbers
# in the text are those of the full run.

# %%
FAST = os.environ.get("FLOWMATCH_FAST") == "1"
FRAMES = 5 if FAST else 31  # of the animation
SIDE = 17 if FAST else 97  # points per side of the maps
PARTICLES = 200 if FAST else 2000  # that the flow carries
POINTS = 10 if FAST else 400  # at which the trained model is checked
STEPS = (5, 10) if FAST else (10, 20, 40)  # of its solver

torch.manual_seed(0)
plt.rcParams.update({"figure.dpi": 100, "figure.constrained_layout.use": True, "axes.titlesize": 10})
F64 = torch.float64

# %% [markdown]
# ## 1. Density, flux, divergence
#
# A flow moves points with the velocity $v_t(x)$, and with them the density $p_t(x)$. The **flux** $p_t v_t$ is the
# probability that passes a line (in space, a surface) per length and time. Its **divergence**
# $\nabla \cdot (p_t v_t)$ is what leaves a small region more than enters it, per area and time. What leaves is missing
# afterwards, which is the **continuity equation**,
#
# $$\frac{\partial p_t}{\partial t} + \nabla \cdot (p_t v_t) = 0 .$$
#
# The flow here carries a standard normal ($t = 0$) to a mixture of three normals in the plane ($t = 1$) along the path
# $x_t = t\, x_1 + (1 - t)\, x_0$, whose density and velocity have closed forms. Places $x$ and flow time $t$ have no
# unit, so that all terms are plain numbers.

# %%
mixture = GaussianMixture(
    weights=torch.tensor([0.3, 0.45, 0.25], dtype=F64),
    means=torch.tensor([[-1.5, -0.7], [0.3, 1.3], [1.5, -0.9]], dtype=F64),
    scales=torch.tensor([0.35, 0.4, 0.3], dtype=F64),
)
path = AffinePath(LinearSchedule())
velocity = mixture.field(path)


def log_density(x, t):
    """Log-density of the path's marginal, nats."""
    return mixture.marginal_log_prob(path, x, t)


def square(side):
    """Points of the plane by two coordinates from the same list, shape (len(side), len(side), 2)."""
    return torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1)


side = torch.linspace(-3.0, 3.0, SIDE, dtype=F64)
grid = square(side)


def terms_at(t, velocity=velocity, points=grid):
    """The terms of the equation on a grid, at one flow time."""
    return continuity_terms(log_density, velocity, points, torch.full(points.shape[:-1], t, dtype=F64))


noise = torch.randn(PARTICLES, 2, dtype=F64)
times, trajectories = RK4(num_steps=FRAMES - 1).trajectory(velocity, noise, 0.0, 1.0)
movie = [terms_at(float(t)) for t in times]

# %% [markdown]
# ## 2. The three in motion
#
# - **Density**: the darker the denser; the dots are 60 points that the flow carries.
# - **Flux**: arrows where probability moves to, coloured by how much of it.
# - **Divergence**: red where more leaves than arrives, so that the density falls; blue where the density grows. The
#   lines are levels of $-\partial p_t / \partial t$, which is computed from the density alone, without the velocity.
#   They run along the edges of the colours: that is the equation.


# %%
MAPS = (  # label, colours, their bounds, and which of these are written
    ("density", "Blues", np.linspace(0.0, 0.48, 13), slice(None, None, 3)),
    ("length of the flux", "Greens", np.array([0.0, 0.02, 0.04, 0.08, 0.15, 0.25, 0.4, 0.6]), slice(None, None, 2)),
    (
        "divergence of the flux",
        "RdBu_r",
        np.array([-0.8, -0.4, -0.2, -0.1, -0.04, -0.01, 0.01, 0.04, 0.1, 0.2, 0.4, 0.8]),
        slice(1, None, 3),
    ),
)
ARROWS = slice(SIDE // 32, None, SIDE // 16)


def draw(panels, terms, points):
    """Density, flux and divergence at one flow time; their images are returned."""
    values = (terms.density, terms.flux.norm(dim=-1), terms.divergence)
    images = []
    for axes, value, (_, colors, bounds, _) in zip(panels, values, MAPS, strict=True):
        extend = "both" if bounds[0] else "max"
        norm = BoundaryNorm(bounds, 256, extend=extend)
        images.append(axes.contourf(side, side, value, bounds, cmap=colors, norm=norm, extend=extend))
        axes.set(xlim=(-2.8, 2.8), ylim=(-2.8, 2.8), aspect="equal", xticks=[-2, 0, 2], yticks=[-2, 0, 2])
    panels[0].scatter(*points[:60].T, s=7, color=ORANGE, edgecolors="white", linewidths=0.3)
    some = (ARROWS, ARROWS)
    arrows = terms.flux[some]
    panels[1].quiver(
        side[ARROWS], side[ARROWS], *arrows.movedim(-1, 0), color="0.15", scale=6.0, width=0.006, minlength=0.5
    )
    panels[2].contour(side, side, -terms.rate, MAPS[2][2], colors="0.2", linewidths=0.6, linestyles="solid")
    return images


def draw_scales(figure, panels, images):
    """What the colours stand for, below the panels."""
    for axes, image, (_, _, bounds, written) in zip(panels, images, MAPS, strict=True):
        bar = figure.colorbar(image, ax=axes, orientation="horizontal", ticks=bounds[written], format="%.3g")
        bar.ax.tick_params(labelsize=8)
        bar.ax.minorticks_off()


def frame(t, terms, points):
    """One picture of the animation."""
    figure, panels = plt.subplots(1, 3, figsize=(9.0, 3.7), dpi=80)
    images = draw(panels, terms, points)
    for axes, (label, *_) in zip(panels, MAPS, strict=True):
        tidy(axes, "$x_1$", "$x_2$" if axes is panels[0] else "")
        axes.set_title(label)
    draw_scales(figure, panels, images)
    figure.suptitle(f"flow time t = {t:.2f}", fontsize=11)
    figure.canvas.draw()
    picture = Picture.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())
    plt.close(figure)
    return picture


def animation(pictures, milliseconds, last):
    """An animated PNG, which browsers play; elsewhere its first picture is shown."""
    wide, high = pictures[0].size
    strip = Picture.new("RGB", (wide, high * len(pictures)))
    for row, picture in enumerate(pictures):
        strip.paste(picture, (0, row * high))
    strip = strip.quantize(64, dither=Picture.Dither.NONE)  # one palette for all
    frames = [strip.crop((0, row * high, wide, (row + 1) * high)) for row in range(len(pictures))]
    durations = [milliseconds] * (len(frames) - 1) + [last]
    file = io.BytesIO()
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True)
    return Image(file.getvalue(), format="png")


pictures = [frame(float(t), *shown) for t, *shown in zip(times, movie, trajectories, strict=True)]
display(animation(pictures, milliseconds=120, last=1500))

# %% [markdown]
# Three moments of it. At first the flux points inward: the noise is drawn to the middle of the data, whose density
# grows. Then it divides into three, and more leaves the middle than arrives. At last each part moves outward, blue
# ahead of it and red behind. (Colours of flux and divergence are not evenly spaced, so that small values show.)

# %%
figure, rows = plt.subplots(3, 3, figsize=(9.0, 9.0), sharex=True, sharey=True)
for row, t in zip(rows, (0.1, 0.5, 0.9), strict=True):
    moment = round(t * (FRAMES - 1))
    images = draw(row, movie[moment], trajectories[moment])
    for axes, (label, *_) in zip(row, MAPS, strict=True):
        tidy(axes, "$x_1$", "$x_2$")
        axes.label_outer()
        axes.set_title(f"{label}, t = {float(times[moment]):.1f}")
draw_scales(figure, rows[-1], images)

# %% [markdown]
# ## 3. The equation, checked in three ways
#
# **At every point.** `continuity_terms` takes $\partial p_t / \partial t$ and $\nabla \cdot (p_t v_t)$ by two
# derivatives that know nothing of each other. Their sum, the residual, is zero to rounding for the velocity of the
# path; for one that is a tenth too fast, a tenth of the change is missing.

# %%
print("   t    largest |dp/dt|   largest residual   residual, a tenth too fast")
for t in (0.0, 0.25, 0.5, 0.75, 1.0):
    own, faster = terms_at(t), terms_at(t, lambda x, t, condition: 1.1 * velocity(x, t, condition))
    change, residual = own.rate.abs().max(), own.residual.abs().max()
    print(f"{t:5.2f}{change:15.3f}{residual:20.1e}{faster.residual.abs().max():20.3f}")
    assert residual < 1e-12
    assert faster.residual.abs().max() > 0.05 * change

# %% [markdown]
# **Against a closed form.** A single normal of mean $m$ and deviation $s$ stays normal along the path, with mean
# $t\, m$ and deviation $\varsigma_t = \sqrt{t^2 s^2 + (1 - t)^2}$. Its velocity is that of a shift and a stretch,
# $\dot\varsigma_t / \varsigma_t\, (x - t\, m) + m$ (`gaussian_velocity`), and with $z = (x - t\, m) / \varsigma_t$
# the density at a fixed place changes at the rate
#
# $$\frac{\partial p_t}{\partial t} = p_t \left( \frac{\dot\varsigma_t}{\varsigma_t} (z^\top z - 2)
# + \frac{z^\top m}{\varsigma_t} \right).$$

# %%
mean, scale = torch.tensor([0.9, -0.4], dtype=F64), 0.35
single = GaussianMixture(torch.ones(1, dtype=F64), mean[None], torch.tensor([scale], dtype=F64))
t = torch.full(grid.shape[:-1], 0.7, dtype=F64)
found = continuity_terms(lambda x, t: single.marginal_log_prob(path, x, t), single.field(path), grid, t)

deviation = (t.square() * scale**2 + (1 - t).square()).sqrt()
slope = (t * scale**2 - (1 - t)) / deviation
centre = t[..., None] * mean
exact_velocity = gaussian_velocity(grid, centre, deviation, mean.expand_as(grid), slope)
z = (grid - centre) / deviation[..., None]
exact_rate = found.density * (slope / deviation * (z.square().sum(-1) - 2) + (z @ mean) / deviation)
for name, error in {
    "flux": found.flux - found.density[..., None] * exact_velocity,
    "rate": found.rate - exact_rate,
    "divergence": found.divergence + exact_rate,
}.items():
    print(f"{name:12} largest difference to the closed form {error.abs().max():.1e}")
    assert error.abs().max() < 1e-12

# %% [markdown]
# **Over a region.** Summed over the half plane $x_1 > 0$, the divergence becomes what passes its edge (the theorem of
# Gauss): the probability on the right grows by the flux through the line $x_1 = 0$. Left column: the probability on the
# right at a time $t$, counted among the carried points; then by the density; then what has passed the line until $t$.

# %%
wide = torch.linspace(-5.0, 5.0, 41 if FAST else 161, dtype=F64)  # holds nearly all of the noise
width, middle = float(wide[1] - wide[0]), len(wide) // 2  # x_1 is 0 in the middle
right = torch.where(wide > 0, 1.0, torch.where(wide == 0, 0.5, 0.0))
everywhere = [terms_at(float(t), points=square(wide)) for t in times]
inside = torch.stack([(terms.density * right).sum() * width**2 for terms in everywhere])
passing = torch.stack([terms.flux[:, middle, 0].sum() * width for terms in everywhere])
passed = inside[0] + torch.cumulative_trapezoid(passing, times)
counted = (trajectories[..., 0] > 0).double().mean(1)

print("   t   of the points   of the density   begin + passed the line")
for index in range(FRAMES // 4, FRAMES, FRAMES // 4):
    print(f"{times[index]:5.2f}{counted[index]:13.3f}{inside[index]:16.4f}{passed[index - 1]:19.4f}")
assert (passed - inside[1:]).abs().max() < (0.02 if FAST else 5e-4)
assert (counted - inside).abs().max() < (0.15 if FAST else 0.04)

# %% [markdown]
# ## 4. Many velocities carry one density
#
# Only the divergence of the flux enters the equation. A flux without divergence may be added, such as the gradient of
# the density turned by a right angle, $R \nabla p_t$: it runs along the lines of equal density. Divided by $p_t$ it is
# the turned score, so that $v_t + \tfrac32 R\, \nabla \log p_t$ carries the same density by other trajectories.

# %%
TURN = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=F64)


def turning(x, t, condition=None):
    """The velocity of the path, and one and a half times the score turned by a right angle."""
    score = torch.func.grad(lambda x: log_density(x, t).sum())(x)
    return velocity(x, t, condition) + 1.5 * score @ TURN.T


residual = max(float(terms_at(t, turning).residual.abs().max()) for t in (0.1, 0.5, 0.9))
print(f"largest residual of the turning velocity {residual:.1e}")
assert residual < 1e-12

fields = {"velocity of the path": velocity, "with the turned score": turning}
fresh = mixture.draw(torch.rand(2 * PARTICLES, dtype=F64), torch.randn(2 * PARTICLES, 2, dtype=F64))
figure, panels = plt.subplots(1, 2, figsize=(9.0, 4.7), sharey=True)
for axes, (name, field) in zip(panels, fields.items(), strict=True):
    _, points = RK4(num_steps=20 if FAST else 100).trajectory(field, noise, 0.0, 1.0)
    length = points.diff(dim=0).norm(dim=-1).sum(0).mean()
    away = energy_distance(points[-1], fresh)
    print(f"{name:22} energy distance to the data {away:.4f}, mean length of a trajectory {length:.2f}")
    assert away < (0.05 if FAST else 0.005)
    axes.scatter(*points[-1, :400].T, s=3, color=BLUE, alpha=0.35, linewidths=0, label="400 carried points, t = 1")
    lines = LineCollection(list(points[:, :25].swapaxes(0, 1).numpy()), colors=GREY, linewidths=0.9)
    axes.add_collection(lines, autolim=False)
    axes.scatter(*points[0, :25].T, s=14, color="black", linewidths=0, label="noise, t = 0", zorder=3)
    axes.scatter(*points[-1, :25].T, s=14, color=ORANGE, linewidths=0, label="where it ends, t = 1", zorder=3)
    axes.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), aspect="equal", title=f"{name}, 25 trajectories")
    tidy(axes, "$x_1$", "$x_2$" if axes is panels[0] else "")
_ = figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, markerscale=1.5)

# %% [markdown]
# Flow matching learns the first of the two, the mean velocity of the pairs: of all velocities that carry $p_t$ it is
# the one with the least kinetic energy $\mathbb E \|v_t(x_t)\|^2$ if it is a gradient, as on this path.
#
# ## 5. A trained model carries a density of its own
#
# A network is never the exact velocity of the data. But the density that it makes of the noise obeys the equation with
# the network as velocity, whatever it has learned. Below is `zoo:two_moons`, a trained model of the package. Its
# density at a time $t$ is found by following each point back to the noise (`log_likelihood`); its derivatives go
# through the solver, so that the residual is that of the solver's steps, and falls to a quarter when they are halved.

# %%
flow = load_flow("zoo:two_moons").model.double().flow
network, begin = flow.field().velocity, flow.interval[0]
x, t = torch.randn(POINTS, 2, dtype=F64), 0.1 + 0.8 * torch.rand(POINTS, dtype=F64)
errors = []
for steps in STEPS:

    def model_log_density(x, t, solver=Midpoint(num_steps=steps)):
        """Log-density that the model's flow has made of the noise until t, nats."""
        return log_likelihood(network, x, GaussianSource().log_prob, solver, ExactDivergence(), begin, t)[0]

    terms = continuity_terms(model_log_density, network, x, t)
    errors.append(float(terms.residual.square().mean().sqrt()))
    change = float(terms.rate.square().mean().sqrt())
    print(f"{steps:3} midpoint steps: residual {errors[-1]:.5f}, |dp/dt| {change:.3f} (root mean square)")
assert all(later < 0.35 * earlier for earlier, later in itertools.pairwise(errors))

# %% [markdown]
# In the same way the equation tests any velocity and density of your own:
#
# ```python
# from flowmatch_rl.solvers import continuity_terms
#
# continuity_terms(log_density, velocity, x, t).residual  # zero where the velocity carries the density
# ```
#
# What follows from it, the log-likelihood along a trajectory and a loss that needs no $v_t$, is the subject of
# [1_flow_matching](1_flow_matching.ipynb).
#
# ### Reference
#
# - Lipman et al., *Flow Matching for Generative Modeling*, [arXiv:2210.02747](https://arxiv.org/abs/2210.02747)
