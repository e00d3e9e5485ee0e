"""The loss of a reparameterised policy."""

import pytest
import torch

from flowmatch_rl.objectives import soft_policy_loss
from tests.oracles import F64


def test_gradient_is_that_of_the_tempered_log_density_minus_the_value() -> None:
    parameter = torch.randn(5, 3, dtype=F64, requires_grad=True)
    action, log_prob = parameter.tanh(), parameter.square().sum(-1)
    value = (action.sin() * torch.tensor([1.0, -2.0, 3.0], dtype=F64)).sum(-1)
    (slope,) = torch.autograd.grad(value.sum(), action, retain_graph=True)
    (wanted,) = torch.autograd.grad((0.3 * log_prob - value).sum(), parameter, retain_graph=True)
    loss = soft_policy_loss(log_prob, action, slope, 0.3)
    assert loss.shape == (5,)
    (found,) = torch.autograd.grad(loss.sum(), parameter)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("shapes", [((4,), (5, 2), (5, 2)), ((5, 1), (5, 2), (5, 2)), ((5,), (5, 2), (5, 3))], ids=str)
def test_shapes_that_do_not_fit_raise(shapes) -> None:
    with pytest.raises(ValueError, match="shape"):
        soft_policy_loss(*(torch.zeros(shape) for shape in shapes), 1.0)
