import math

import pytest
import torch
from torch import Tensor

from flowmatch_rl.objectives import (
    bellman_map,
    categorical_loss,
    critic_loss,
    projected_probabilities,
    quantile_loss,
    reduced_distribution,
)
from tests.combinations import each_value, one_test
from tests.oracles import F64, normal, stratified_normal, uniform


def one_step_target(reward: Tensor, terminated: Tensor, value: Tensor, discount: float) -> Tensor:
    """The map of one step, applied to the value of the arrival state."""
    shift, scale = bellman_map(reward[:, None], torch.ones_like(terminated, dtype=torch.long), terminated, discount)
    return shift + scale * value


def test_the_target_is_the_reward_and_the_discounted_value_of_the_arrival_state() -> None:
    target = one_step_target(
        torch.tensor([1.0, -2.0, 0.5]), torch.tensor([False, True, False]), torch.tensor([10.0, 10.0, -4.0]), 0.9
    )
    torch.testing.assert_close(target, torch.tensor([10.0, -2.0, -3.1]))


@pytest.mark.parametrize("bonus", [math.nan, math.inf, -math.inf])
def test_the_bonus_of_a_terminal_state_never_counts(bonus: float) -> None:
    length, terminated = torch.ones(1, dtype=torch.long), torch.tensor([True])
    shift, scale = bellman_map(torch.tensor([[0.25]]), length, terminated, 0.99, torch.tensor([bonus]))
    assert torch.equal(shift, torch.tensor([0.25]))
    assert torch.equal(scale, torch.tensor([0.0]))


def test_targets_repeated_on_a_finite_chain_reach_the_values_of_the_linear_system() -> None:
    """States 0, 1, 2 in a ring with reward 1, 2, 3; from state 2 the episode terminates."""
    reward, discount = torch.tensor([1.0, 2.0, 3.0], dtype=F64), 0.8
    value, arrival, terminated = torch.zeros(3, dtype=F64), torch.tensor([1, 2, 0]), torch.tensor([False, False, True])
    for _ in range(5):
        value = one_step_target(reward, terminated, value[arrival], discount)
    torch.testing.assert_close(value, torch.tensor([1 + 0.8 * (2 + 0.8 * 3), 2 + 0.8 * 3, 3.0], dtype=F64))
    for _ in range(200):
        value = one_step_target(reward, torch.zeros(3, dtype=torch.bool), value[arrival], discount)
    ring = torch.tensor([[0, 1, 0], [0, 0, 1], [1, 0, 0]], dtype=F64)
    torch.testing.assert_close(value, torch.linalg.solve(torch.eye(3, dtype=F64) - discount * ring, reward))


@pytest.mark.parametrize(("terminated", "bonus"), [((4, 1), (4,)), ((1,), (4,)), ((4,), (4, 1)), ((4,), (1,))])
def test_lengths_flags_and_bonuses_must_share_one_shape(terminated: tuple[int, ...], bonus: tuple[int, ...]) -> None:
    length = torch.ones(4, dtype=torch.long)
    with pytest.raises(ValueError, match="equal shapes"):
        bellman_map(torch.zeros(4, 2), length, torch.zeros(terminated).bool(), 0.9, torch.zeros(bonus))


@pytest.mark.parametrize(("members", "batch"), [(1, 1), (2, 5), (3, 3), (5, 1)])
def test_the_critic_loss_is_the_mean_over_members_per_sample(members: int, batch: int) -> None:
    values, target = normal(members, batch, seed=1), normal(batch, seed=2)
    loss = critic_loss(values, target)
    assert loss.shape == (batch,)
    for b in range(batch):
        expected = sum((values[m, b] - target[b]) ** 2 for m in range(members)) / members
        torch.testing.assert_close(loss[b], expected)


def test_every_member_is_pulled_toward_the_target_by_its_own_error() -> None:
    values, target = normal(2, 5, seed=1).requires_grad_(), normal(5, seed=2)
    critic_loss(values, target).sum().backward()
    torch.testing.assert_close(values.grad, (values - target).detach())


@one_test
@pytest.mark.parametrize(
    ("values", "target"), [((2, 5), (5, 1)), ((2, 5), (2, 5)), ((2, 5), (1,)), ((5,), (5,)), ((5, 2), (5,))]
)
def test_values_that_do_not_fit_the_target_are_refused(values: tuple[int, ...], target: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):
        critic_loss(torch.zeros(values), torch.zeros(target))


@each_value
@pytest.mark.parametrize("discount", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(("batch", "n"), [(1, 1), (4, 1), (3, 3), (6, 4)])
def test_the_map_sums_the_discounted_rewards_that_were_taken_and_scales_by_what_is_left(batch, n, discount) -> None:
    rewards, length = normal(batch, n, seed=1), torch.arange(batch) % n + 1
    terminated = torch.arange(batch) % 3 == 1
    shift, scale = bellman_map(rewards, length, terminated, discount)
    for b in range(batch):
        wanted = sum(discount**k * float(rewards[b, k]) for k in range(int(length[b])))
        assert float(shift[b]) == pytest.approx(wanted, abs=1e-14)
        assert float(scale[b]) == pytest.approx(0.0 if terminated[b] else discount ** int(length[b]))
    padded = torch.cat([rewards, torch.full((batch, 2), math.nan, dtype=F64)], 1)
    torch.testing.assert_close(bellman_map(padded, length, terminated, discount), (shift, scale))


@pytest.mark.parametrize(("batch", "n"), [(1, 1), (3, 3), (6, 4)])
def test_a_bonus_is_added_to_the_return_of_the_arrival_state(batch: int, n: int) -> None:
    rewards, length, value = normal(batch, n, seed=1), torch.arange(batch) % n + 1, normal(batch, seed=2)
    terminated, bonus = torch.arange(batch) % 3 == 1, normal(batch, seed=3)
    shift, scale = bellman_map(rewards, length, terminated, 0.9)
    soft_shift, soft_scale = bellman_map(rewards, length, terminated, 0.9, bonus)
    torch.testing.assert_close(soft_scale, scale)
    torch.testing.assert_close(soft_shift + soft_scale * value, shift + scale * (value + bonus))


def test_the_map_of_one_step_is_the_one_step_target_to_the_last_bit() -> None:
    reward, value = normal(50, seed=1, dtype=torch.float32), normal(50, seed=2, dtype=torch.float32)
    terminated = torch.arange(50) % 4 == 0
    wanted = torch.where(terminated, reward, reward + 0.99 * value)
    assert torch.equal(one_step_target(reward, terminated, value, 0.99), wanted)


@one_test
@pytest.mark.parametrize(
    "shapes", [((4,), (4,), (4,)), ((4, 2), (3,), (3,)), ((4, 2), (4, 1), (4, 1)), ((4, 2), (4,), (4, 1))]
)
def test_rewards_and_lengths_that_do_not_fit_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    rewards, length, terminated = shapes
    with pytest.raises(ValueError, match="expected"):
        bellman_map(torch.zeros(rewards), torch.ones(length).long(), torch.zeros(terminated).bool(), 0.9)


def test_the_reduced_distribution_is_the_lowest_members_or_the_mean() -> None:
    values, laws = normal(3, 20, seed=1), normal(3, 20, 5, seed=2)
    lowest, mean = reduced_distribution(values, laws, "min"), reduced_distribution(values, laws, "mean")
    members = set()
    for b in range(20):
        member = min(range(3), key=lambda m, b=b: float(values[m, b]))
        members.add(member)
        assert torch.equal(lowest[b], laws[member, b])
        torch.testing.assert_close(mean[b], (laws[0, b] + laws[1, b] + laws[2, b]) / 3.0)
    assert members == {0, 1, 2}
    torch.testing.assert_close(reduced_distribution(values, values[..., None], "min").squeeze(-1), values.amin(0))


@pytest.mark.parametrize(("values", "laws"), [((2, 5), (2, 5)), ((2, 5), (5, 5, 3)), ((2, 5), (2, 1, 3))])
def test_laws_that_do_not_fit_the_values_are_refused(values, laws) -> None:
    with pytest.raises(ValueError, match="expected"):
        reduced_distribution(torch.zeros(values), torch.zeros(laws), "min")


@pytest.mark.parametrize("delta", [0.1, 1.0, 100.0])
def test_the_huber_loss_is_the_square_up_to_delta_and_its_tangent_beyond(delta) -> None:
    values, target = 3.0 * normal(2, 40, seed=1), normal(40, seed=2)
    loss = critic_loss(values, target, delta)
    for b in range(40):
        total = 0.0
        for m in range(2):
            error = abs(float(values[m, b] - target[b]))
            total += error**2 if error <= delta else delta**2 + 2.0 * delta * (error - delta)
        assert float(loss[b]) == pytest.approx(total / 2.0)


def slow_projection(probabilities: Tensor, shift: Tensor, scale: Tensor, v_min: float, v_max: float) -> Tensor:
    """Mass of each moved atom, shared between its neighbours atom by atom."""
    batch, count = probabilities.shape
    projected = torch.zeros_like(probabilities)
    spacing = (v_max - v_min) / (count - 1)
    for b in range(batch):
        for j in range(count):
            moved = min(max(float(shift[b] + scale[b] * (v_min + j * spacing)), v_min), v_max)
            place = (moved - v_min) / spacing
            low = min(int(place), count - 2)
            projected[b, low] += probabilities[b, j] * (low + 1 - place)
            projected[b, low + 1] += probabilities[b, j] * (place - low)
    return projected


SUPPORTS = [(2, 0.0, 1.0), (5, -1.0, 1.0), (11, -3.0, 2.0), (51, -10.0, 10.0)]


@pytest.mark.parametrize(("count", "v_min", "v_max"), SUPPORTS)
def test_the_projection_equals_a_slow_reference_and_keeps_the_mass(count, v_min, v_max) -> None:
    probabilities = normal(30, count, seed=1).softmax(-1)
    shift, scale = (v_max - v_min) * normal(30, seed=2), uniform(30, seed=3)
    scale[:3] = torch.tensor([0.0, 1.0, 0.99])
    projected = projected_probabilities(probabilities, shift, scale, v_min, v_max)
    torch.testing.assert_close(projected, slow_projection(probabilities, shift, scale, v_min, v_max))
    torch.testing.assert_close(projected.sum(-1), torch.ones(30, dtype=F64))
    assert (projected >= 0.0).all()


@pytest.mark.parametrize(("count", "v_min", "v_max"), SUPPORTS)
def test_inside_the_support_the_projection_keeps_the_mean(count, v_min, v_max) -> None:
    probabilities = normal(30, count, seed=1).softmax(-1)
    scale = 0.9 * uniform(30, seed=2)
    # Between the shifts that move the lowest atom to v_min and the highest to v_max.
    shift = (1.0 - scale) * (v_min + uniform(30, seed=3) * (v_max - v_min))
    atoms = torch.linspace(v_min, v_max, count, dtype=F64)
    projected = projected_probabilities(probabilities, shift, scale, v_min, v_max)
    torch.testing.assert_close(projected @ atoms, shift + scale * (probabilities @ atoms))


def test_a_law_that_does_not_move_is_kept_and_what_leaves_the_support_is_put_on_its_end() -> None:
    probabilities = normal(3, 101, seed=1, dtype=torch.float32).softmax(-1)
    zero, one = torch.zeros(3), torch.ones(3)
    assert torch.equal(projected_probabilities(probabilities, zero, one, -7.0, 31.0), probabilities)
    for shift, end in ((1e6, -1), (-1e6, 0)):
        projected = projected_probabilities(probabilities, one * shift, one, -7.0, 31.0)
        torch.testing.assert_close(projected[:, end], one)


@pytest.mark.parametrize(("shift", "scale"), [((4, 1), (4,)), ((4,), (1,)), ((), (4,))])
def test_shifts_and_scales_of_other_shapes_are_refused(shift, scale) -> None:
    with pytest.raises(ValueError, match="expected s"):
        projected_probabilities(torch.ones(4, 3) / 3, torch.zeros(shift), torch.ones(scale), 0.0, 1.0)


def test_the_cross_entropy_is_that_of_each_member_and_least_at_the_target() -> None:
    logits, target = normal(3, 4, 6, seed=1), normal(4, 6, seed=2).softmax(-1)
    loss = categorical_loss(logits, target)
    for b in range(4):
        wanted = sum(
            -float(target[b, i]) * math.log(float(logits[m, b].exp()[i] / logits[m, b].exp().sum()))
            for m in range(3)
            for i in range(6)
        )
        assert float(loss[b]) == pytest.approx(wanted / 3.0)
    at_target = target.log().expand(2, 4, 6).clone().requires_grad_()
    categorical_loss(at_target, target).sum().backward()
    torch.testing.assert_close(at_target.grad, torch.zeros(2, 4, 6, dtype=F64))


@pytest.mark.parametrize("delta", [0.0, 0.3, 1.0])
def test_the_quantile_loss_equals_a_slow_reference(delta) -> None:
    quantiles, target = normal(2, 3, 4, seed=1), normal(3, 5, seed=2)
    loss = quantile_loss(quantiles, target, delta)
    for b in range(3):
        total = 0.0
        for m in range(2):
            for i in range(4):
                level = (2 * i + 1) / 8
                for j in range(5):
                    error = float(target[b, j] - quantiles[m, b, i])
                    size = abs(error)
                    if delta:
                        huber = error**2 / 2 if size <= delta else delta * (size - delta / 2)
                        size = huber / delta
                    total += (1.0 - level if error < 0.0 else level) * size
        assert float(loss[b]) == pytest.approx(total / (2 * 5))


def test_the_minimiser_of_the_quantile_loss_are_the_quantiles_of_the_law() -> None:
    """Against a fine sample of a normal law, whose quantiles are known; the loss is convex, so bisection finds it."""
    target = (2.0 + 3.0 * stratified_normal(4001))[None]
    low, high = torch.full((1, 1, 5), -20.0, dtype=F64), torch.full((1, 1, 5), 20.0, dtype=F64)
    for _ in range(40):
        middle = ((low + high) / 2.0).requires_grad_()
        (slope,) = torch.autograd.grad(quantile_loss(middle, target, 0.0).sum(), middle)
        low, high = torch.where(slope < 0.0, middle, low).detach(), torch.where(slope < 0.0, high, middle).detach()
    torch.testing.assert_close(low.flatten(), 2.0 + 3.0 * stratified_normal(5), atol=2e-3, rtol=0.0)


@pytest.mark.parametrize(("quantiles", "target"), [((2, 5, 3), (5,)), ((2, 5), (5, 3)), ((2, 5, 3), (1, 3))])
def test_quantiles_that_do_not_fit_the_target_are_refused(quantiles, target) -> None:
    with pytest.raises(ValueError, match="expected"):
        quantile_loss(torch.zeros(quantiles), torch.zeros(target), 1.0)


def test_no_loss_is_rounded_by_autocast() -> None:
    logits, target = normal(2, 9, 51, seed=1, dtype=torch.float32), normal(9, 51, seed=2, dtype=torch.float32)
    probabilities, shift = target.softmax(-1), normal(9, seed=3, dtype=torch.float32)

    def losses() -> list[Tensor]:
        moved = projected_probabilities(probabilities, shift, torch.full((9,), 0.99), -9.0, 9.0)
        return [categorical_loss(logits, moved), quantile_loss(logits, target, 1.0), critic_loss(logits[..., 0], shift)]

    plain = losses()
    with torch.autocast("cpu", torch.bfloat16):
        for got, wanted in zip(losses(), plain, strict=True):
            assert torch.equal(got, wanted)
