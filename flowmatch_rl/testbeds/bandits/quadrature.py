"""Gauss-Legendre quadrature on [-1, 1], and quantiles of the densities it integrates."""

import functools
import math

import numpy as np
import torch
from torch import Tensor

from flowmatch_rl.checks import UserError, check_range

NODES = 8
"""Nodes per panel."""

PANELS_PER_LENGTH = 4.8
"""Panels per length on which a log-density changes: five such lengths from a Gaussian's mean it changes by about one
nat per panel, where the polynomials through the nodes are off by 1e-9 of the density."""

BISECTIONS = 53
"""Halvings of a panel, as many as float64 has binary digits."""


def num_panels(length: float, temperature: float, most: int, name: str) -> int:
    """Panels that resolve a density.

    Args:
        length: Standard deviation of its narrowest feature at temperature 1, in units of the action.
        temperature: Temperature, positive; lengths shrink with its root.
        most: Panels that can be afforded.
        name: Name of the density, for the error.

    Raises:
        UserError: If the temperature is not positive, or so low that more panels are needed.
    """
    check_range("(0, inf)", temperature=temperature)
    wanted = 2.0 * PANELS_PER_LENGTH / (length * temperature**0.5)
    if wanted > most:
        least = (2.0 * PANELS_PER_LENGTH / (length * most)) ** 2
        raise UserError(f"{name} is resolved at a temperature of at least {least:.2g}, got {temperature}")
    return max(8, math.ceil(wanted))


def panel_nodes(panels: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Nodes in [-1, 1] and their weights, which sum to 2.

    Args:
        panels: Panels P of equal width.
        device: Device.

    Returns:
        Nodes and weights, float64, shape (P, ``NODES``) each.
    """
    node, weight = (torch.from_numpy(array).to(device) for array in np.polynomial.legendre.leggauss(NODES))
    centre = (2.0 * torch.arange(panels, dtype=torch.float64, device=device) + 1.0) / panels - 1.0
    return centre[:, None] + node / panels, (weight / panels).expand(panels, -1)


def quantiles(log_density: Tensor, uniform: Tensor) -> Tensor:
    """Quantiles of densities on [-1, 1] that are known up to a constant at the nodes of panels.

    Within a panel the density is the polynomial through its nodes.

    Args:
        log_density: Log-density in nats at ``panel_nodes``, float64, shape (N, P, ``NODES``), or (1, P, ``NODES``) for
            one density.
        uniform: Levels in [0, 1], float64, shape (N,).

    Returns:
        Quantiles, shape (N,).
    """
    panels = log_density.shape[1]
    _, weights = panel_nodes(panels, log_density.device)
    density = (log_density - log_density.amax((1, 2), keepdim=True)).exp()
    edges = (density * weights).sum(-1).cumsum(-1)  # (N, P) masses up to the right edge of each panel
    wanted = uniform[:, None] * edges[:, -1:]
    panel = torch.searchsorted(edges.expand(len(uniform), -1).contiguous(), wanted).clamp_max(panels - 1)
    before = torch.where(panel > 0, edges.expand(len(uniform), -1).gather(1, (panel - 1).clamp_min(0)), 0.0)
    rows = torch.arange(len(uniform), device=uniform.device) if len(density) > 1 else torch.zeros_like(panel[:, 0])
    powers = density[rows, panel[:, 0]] @ _monomials(log_density.device).T  # (N, NODES): density = sum c_k s^k
    s = _inside_panel(powers, ((wanted - before) * panels)[:, 0])
    return ((2.0 * panel[:, 0] + 1.0 + s) / panels - 1.0).clamp(-1.0, 1.0)


def _inside_panel(powers: Tensor, mass: Tensor) -> Tensor:
    """The s in [-1, 1] up to which a polynomial sum c_k s^k of shape (N, K) integrates to a mass of shape (N,).

    Found by bisection: a Newton step at the edge of a panel leaves the panel by rounding and is lost.
    """
    coefficients = [c / (k + 1) for k, c in enumerate(powers.unbind(-1))]  # of s^(k + 1) in the antiderivative

    def antiderivative(s: Tensor) -> Tensor:
        total = torch.zeros_like(s)
        for c in reversed(coefficients):
            total = (total + c) * s
        return total

    wanted = antiderivative(torch.full_like(mass, -1.0)) + mass
    s = torch.zeros_like(mass)
    for halving in range(1, BISECTIONS + 1):
        s = torch.where(antiderivative(s) < wanted, s + 0.5**halving, s - 0.5**halving)
    return s


@functools.cache
def _monomials_on_cpu() -> Tensor:
    node, _ = np.polynomial.legendre.leggauss(NODES)
    return torch.from_numpy(np.linalg.inv(np.vander(node, increasing=True)))


def _monomials(device: torch.device) -> Tensor:
    """Matrix from values at the nodes of [-1, 1] to the coefficients of the polynomial through them."""
    return _monomials_on_cpu().to(device)
