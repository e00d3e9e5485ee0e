"""A flow from noise to what a return deviates from its mean, by tables of posterior means.

The path is ``z = (1 - t) noise + t deviation``. The velocity of the flow at (z, t) is ``(m(z, t) - z) / (1 - t)`` with
the posterior mean m of the deviation, which is 0 at t = 0, where nothing is known of it. Tables hold m at the times
where the flow is evaluated, on evenly spaced knots.
"""

import itertools

import torch
from torch import Tensor

from flowmatch_rl.shapes import check_shape


def flow_times(num_steps: int) -> list[float]:
    """Flow times at which the midpoint method evaluates the flow of a return.

    The remaining noise 1 - t falls quadratically over the steps, so that distributions much narrower than the noise are
    resolved too.

    Args:
        num_steps: Steps n of the midpoint method, at least 1.

    Returns:
        Beginnings and midpoints of the steps in turn, 2 n times in [0, 1), the first of them 0.
    """
    ends = [1.0 - (1.0 - step / num_steps) ** 2 for step in range(num_steps + 1)]
    return [time for a, b in itertools.pairwise(ends) for time in (a, (a + b) / 2.0)]


def interpolated(table: Tensor, z: Tensor, half_width: float) -> Tensor:
    """Piecewise linear functions between evenly spaced knots, constant beyond them.

    Args:
        table: Values at the knots from ``-half_width`` to ``half_width``, shape (*batch, G), at least two.
        z: Where to evaluate them, shape (*batch, N).
        half_width: Place of the last knot, positive.

    Returns:
        Values, shape (*batch, N).

    Raises:
        ValueError: If the batches differ.
    """
    if table.shape[:-1] != z.shape[:-1]:
        raise ValueError(f"expected (*batch, G) and (*batch, N), got {tuple(table.shape)} and {tuple(z.shape)}")
    last = table.shape[-1] - 1
    place = ((z + half_width) * (last / (2.0 * half_width))).clamp(0.0, last)
    low = place.floor().clamp_max(last - 1)
    index = low.long()
    return torch.lerp(table.gather(-1, index), table.gather(-1, index + 1), place - low)


def transported(tables: Tensor, noise: Tensor, half_width: float) -> Tensor:
    """Deviations of the return from its mean at the end of the flow, by the midpoint method.

    Args:
        tables: Posterior means at all times of ``flow_times`` but the first, units of the return, shape
            (*batch, 2 n - 1, G).
        noise: Where the flow begins, units of the return, shape (*batch, N).
        half_width: Place of the last knot, units of the return.

    Returns:
        Deviations, in the order of the noise, shape (*batch, N).

    Raises:
        ValueError: If the batches differ.
    """
    times = flow_times((tables.shape[-2] + 1) // 2)
    z = noise
    for step in range(0, len(times), 2):
        t, middle = times[step : step + 2]
        mean = interpolated(tables[..., step - 1, :], z, half_width) if step else 0.0
        halfway = z + (middle - t) / (1.0 - t) * (mean - z)
        mean = interpolated(tables[..., step, :], halfway, half_width)
        z = z + 2.0 * (middle - t) / (1.0 - middle) * (mean - halfway)
    return z


def return_flow_loss(tables: Tensor, deviation: Tensor, noise: Tensor, half_width: float) -> Tensor:
    """Squared error of tabulated posterior means: flow matching with the prediction of data.

    Args:
        tables: Posterior means of an ensemble, as ``transported`` takes them, shape (M, B, 2 n - 1, G).
        deviation: Deviations of returns from the mean, detached, units of the return, shape (M, B, N).
        noise: Noise of each time and deviation, units of the return, shape (B, 2 n - 1, N).
        half_width: Place of the last knot, units of the return.

    Returns:
        Loss per sample, mean over members, times and deviations, shape (B,).

    Raises:
        ValueError: If the shapes do not fit.
    """
    members, batch, count, _ = tables.shape
    check_shape("deviation", deviation, (members, batch, deviation.shape[-1]))
    check_shape("noise", noise, (batch, count, deviation.shape[-1]))
    times = torch.tensor(flow_times((count + 1) // 2)[1:], device=noise.device, dtype=noise.dtype)[:, None]
    wanted = deviation[:, :, None]  # (M, B, 1, N)
    z = (1.0 - times) * noise + times * wanted
    return (interpolated(tables, z, half_width) - wanted).square().mean((0, 2, 3))
