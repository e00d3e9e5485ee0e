"""Backups of n steps on finite chains: what their errors add up to, in closed form."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flowmatch_rl.checks import UserError
from flowmatch_rl.testbeds import (
    CombinationLock,
    TabularBackup,
    accumulated_bias,
    accumulated_strays,
    counted_kernel,
    discounted_occupancy,
)

F64 = torch.float64
every_length = pytest.mark.parametrize("num_steps", [1, 4, 16, 64])
every_discount = pytest.mark.parametrize("discount", [0.0, 0.8, 0.995])


def chain(num_states: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(num_states, num_states, generator=generator, dtype=F64).softmax(1)


def rewards(num_states: int = 5) -> Tensor:
    return torch.randn(num_states, 3, generator=torch.Generator().manual_seed(1), dtype=F64)


@every_discount
@every_length
def test_a_constant_bias_adds_up_to_its_closed_form_in_every_entry(discount: float, num_steps: int) -> None:
    backup = TabularBackup.of_steps(rewards(), chain(), chain(), discount, num_steps)
    error = backup.fixed_point(0.3) - backup.fixed_point()
    torch.testing.assert_close(error, torch.full_like(error, accumulated_bias(0.3, discount, num_steps)))
    assert accumulated_bias(0.3, discount, num_steps) == pytest.approx(0.3 / (1.0 - discount**num_steps))


@every_discount
@every_length
def test_strays_add_up_to_a_closed_form_which_is_the_total_variation(discount: float, num_steps: int) -> None:
    features = (1.0 - discount) * torch.eye(5, dtype=F64)
    backup = TabularBackup.of_steps(features, chain(), chain(), discount, num_steps)
    # Of what one backup leaves inside, n steps are observed, and the rest is exposed to the next one.
    inside = sum(0.99 ** (j + 1) * discount ** (num_steps * j) for j in range(20_000)) * (1.0 - discount**num_steps)
    outside = torch.full((5,), accumulated_strays(0.01, discount, num_steps), dtype=F64)
    torch.testing.assert_close(outside, torch.full_like(outside, 1.0 - inside))
    table, exact = backup.with_strays(0.01).fixed_point(), backup.fixed_point()
    torch.testing.assert_close(table[:, -1], outside)
    padded = torch.cat([exact, torch.zeros(5, 1, dtype=F64)], 1)
    torch.testing.assert_close((table - padded).abs().sum(1) / 2.0, outside)


@every_discount
@every_length
def test_on_policy_every_number_of_steps_has_the_exact_occupancy(discount: float, num_steps: int) -> None:
    features = (1.0 - discount) * torch.eye(5, dtype=F64)
    backup = TabularBackup.of_steps(features, chain(), chain(), discount, num_steps)
    torch.testing.assert_close(backup.fixed_point(), discounted_occupancy(chain(), chain(), discount))
    torch.testing.assert_close(backup.near.sum(1) + backup.far.sum(1), torch.ones(5, dtype=F64))


@every_length
def test_each_backup_lets_the_discount_to_the_power_of_its_steps_through(num_steps: int) -> None:
    backup = TabularBackup.of_steps(torch.ones(5, 1, dtype=F64), chain(), chain(), 0.9, num_steps)
    tables = backup.repeat(torch.zeros(3, 5, 1, dtype=F64))
    left = 10.0 * 0.9 ** (num_steps * torch.arange(4.0, dtype=F64))
    torch.testing.assert_close(10.0 - tables, left[:, None, None].expand(-1, 5, 1))


@every_length
def test_fresh_noise_adds_up_to_its_stationary_variance(num_steps: int) -> None:
    ring = torch.eye(5, dtype=F64).roll(1, 1)
    backup = TabularBackup.of_steps(rewards()[:, :1], ring, ring, 0.9, num_steps)
    noise = 0.1 * torch.randn(40, 4000, 5, 1, generator=torch.Generator().manual_seed(2), dtype=F64)
    variance = (backup.repeat(noise)[-1] - backup.fixed_point()).square().mean()
    assert float(variance) == pytest.approx(0.01 / (1.0 - 0.9 ** (2 * num_steps)), rel=0.05)


@pytest.mark.parametrize("slip", [0.0, 0.1])
def test_the_lock_opens_from_the_start_at_its_closed_form(slip: float) -> None:
    lock, discount = CombinationLock(length=7, slip=slip), 0.9
    kernel = lock.kernel(1.0)
    value = TabularBackup.of_steps(lock.opened(), kernel, kernel, discount, num_steps=3).fixed_point()[:, 0]
    onward = (1.0 - slip) * discount
    opens, again = onward**7 / discount, slip * discount * (1.0 - onward**7) / (1.0 - onward)
    assert float(value[0]) == pytest.approx(opens / (1.0 - again))
    assert float(value[-1]) == 0.0
    if slip == 0.0:
        torch.testing.assert_close(value[:-1], discount ** torch.arange(6.0, -1.0, -1.0, dtype=F64))


def test_several_steps_of_random_data_are_biased_and_a_model_is_not() -> None:
    lock, discount = CombinationLock(length=2), 0.9
    right, random = lock.kernel(1.0), lock.kernel(0.5)
    biased = TabularBackup.of_steps(lock.opened(), right, random, discount, num_steps=2).fixed_point()
    # The right action, then either the open lock or the start again.
    assert float(biased[0, 0]) == pytest.approx(0.5 * discount / (1.0 - 0.5 * discount**2))
    one_step = TabularBackup.of_steps(lock.opened(), right, random, discount).fixed_point()
    expanded = TabularBackup.of_steps(lock.opened(), right, right, discount, num_steps=2).fixed_point()
    torch.testing.assert_close(one_step, expanded)
    assert float(expanded[0, 0]) == pytest.approx(discount)


def test_counted_transitions_are_those_of_the_lock() -> None:
    lock, number = CombinationLock(length=4, slip=0.2), 80_000
    generator = torch.Generator().manual_seed(3)
    state = torch.randint(4, (number,), generator=generator)
    uniform = torch.rand(2, number, generator=generator)
    counted = counted_kernel(state, lock.step(state, uniform[0] < 0.3, uniform[1]), lock.num_states)
    assert (counted - lock.kernel(0.3)).abs().max() < 4.0 * 0.5 / math.sqrt(number / 4)
    assert counted.sum(1).tolist() == pytest.approx([1.0, 1.0, 1.0, 1.0, 0.0])
    assert torch.equal(counted > 0.0, lock.kernel(0.3) > 0.0)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda: accumulated_bias(1.0, 1.0), "discount must lie in"),
        (lambda: accumulated_bias(1.0, 0.9, 0), "num_steps must be at least 1"),
        (lambda: accumulated_strays(1.5, 0.9), "fraction must lie in"),
        (lambda: TabularBackup.of_steps(rewards(), chain(), chain(), -0.1), "discount must lie in"),
        (lambda: CombinationLock(length=0), "length must be at least 1"),
        (lambda: CombinationLock(slip=2.0), "slip must lie in"),
        (lambda: CombinationLock().kernel(2.0), "right must lie in"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(broken: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        broken()


def test_kernels_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="first"):
        TabularBackup.of_steps(rewards(4), chain(), chain(), 0.9)
