"""Activations of networks."""

import pytest
import torch
from torch.nn import functional

from flowmatch_rl.nets.architecture import gelu_tanh


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.float64, 1e-14), (torch.bfloat16, 0.0)])
def test_gelu_without_gradient_is_that_of_pytorch(dtype: torch.dtype, error: float) -> None:
    x = torch.cat([torch.linspace(-8.0, 8.0, 4001), torch.tensor([-1e30, 1e30, 0.0])]).to(dtype)
    given = x.clone()
    with torch.no_grad():
        torch.testing.assert_close(gelu_tanh(x), functional.gelu(x, approximate="tanh"), rtol=error, atol=error)
    torch.testing.assert_close(x, given, rtol=0, atol=0)


def test_gelu_has_a_gradient() -> None:
    x = torch.linspace(-4.0, 4.0, 101, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gelu_tanh, (x,))
