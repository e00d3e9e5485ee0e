"""Single steps of the samplers against their formulas, and flows that they follow exactly."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from flowmatch_rl.paths import AffinePath, CosineSchedule, Field, LinearSchedule, Schedule, VariancePreservingSchedule
from flowmatch_rl.samplers import AverageVelocitySampler, DdimSampler, OdeSampler, SdeSampler
from flowmatch_rl.solvers import Euler
from flowmatch_rl.types import Prediction
from tests.combinations import each_value, one_test
from tests.families import SCHEDULES
from tests.oracles import F64, ONE_D, normal
from tests.samplers.exact import exact_model, law, seeded, silent

PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)


def posterior(schedule: Schedule, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """E[x_0] and E[x_1] given x_t = x."""
    time = torch.full(x.shape[:-1], t, dtype=F64)
    return ONE_D.posterior_means(x, schedule.alpha(time), schedule.sigma(time))


@each_value
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_without_noise_the_stochastic_equation_is_that_of_the_flow(prediction: Prediction, schedule: Schedule) -> None:
    model, x = exact_model(schedule, prediction), normal(5, 1, seed=1)
    flow = OdeSampler(Euler(9)).sample(model, x, 0.2, 0.9, silent)
    torch.testing.assert_close(SdeSampler(9, 0.0).sample(model, x, 0.2, 0.9, silent), flow)


def test_without_noise_it_starts_even_where_the_path_has_no_data() -> None:
    model, x = exact_model(LinearSchedule()), normal(5, 1, seed=1)
    flow = OdeSampler(Euler(9)).sample(model, x, 0.0, 1.0, silent)
    torch.testing.assert_close(SdeSampler(9, 0.0).sample(model, x, 0.0, 1.0, silent), flow)


@each_value
@pytest.mark.parametrize("noise_scale", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_a_stochastic_step_is_that_of_euler_and_maruyama(schedule: Schedule, noise_scale: float) -> None:
    x, z, t, dt = normal(5, 1, seed=1), normal(5, 1, seed=2), 0.5, 1e-3
    time = torch.tensor(t, dtype=F64)
    sampler = SdeSampler(1, noise_scale)
    found = sampler.sample(exact_model(schedule), x, t, t + dt, lambda like: z)
    x_0, x_1 = posterior(schedule, x, t)
    alpha, sigma = schedule.alpha(time), schedule.sigma(time)
    d_alpha, d_sigma = schedule.d_alpha(time), schedule.d_sigma(time)
    rate = noise_scale * 2.0 * sigma**2 * (d_alpha / alpha - d_sigma / sigma)
    drift = d_alpha * x_1 + d_sigma * x_0 + 0.5 * rate * -x_0 / sigma
    torch.testing.assert_close(found, x + dt * drift + (rate * dt).sqrt() * z, rtol=1e-9, atol=1e-9)


@each_value
@pytest.mark.parametrize("schedule", [LinearSchedule(), CosineSchedule()], ids=repr)
@pytest.mark.parametrize("t", [0.0, 1e-3])
@pytest.mark.parametrize("noise_scale", [0.3, 1.0])
def test_where_noise_would_overshoot_less_is_added(schedule: Schedule, t: float, noise_scale: float) -> None:
    """At the start of a path without data the diffusion is unbounded; the step is that of a smaller one."""
    x, z, dt = normal(5, 1, seed=1), normal(5, 1, seed=2), 0.05
    found = SdeSampler(1, noise_scale).sample(exact_model(schedule), x, t, t + dt, lambda like: z)
    x_0, x_1 = posterior(schedule, x, t)
    time = torch.tensor(t, dtype=F64)
    sigma = schedule.sigma(time)
    flow = x + dt * (schedule.d_alpha(time) * x_1 + schedule.d_sigma(time) * x_0)
    torch.testing.assert_close(found, flow - 0.25 * sigma * x_0 + 0.5**0.5 * sigma * z, rtol=1e-9, atol=1e-9)


@each_value
@pytest.mark.parametrize("num_steps", [20, 50])
@pytest.mark.parametrize("noise_scale", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("schedule", [LinearSchedule(), CosineSchedule()], ids=repr)
def test_few_stochastic_steps_still_match_the_mixture(schedule: Schedule, noise_scale: float, num_steps: int) -> None:
    start = law(schedule, 1e-3).quantiles(1500)[:, None]
    samples = SdeSampler(num_steps, noise_scale).sample(exact_model(schedule), start, 1e-3, 0.999, seeded(1))
    assert (samples[:, 0].sort().values - law(schedule, 0.999).quantiles(1500)).abs().mean() < 0.1


@each_value
@pytest.mark.parametrize("schedule", [LinearSchedule(), LinearSchedule(0.1)], ids=repr)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_on_straight_paths_the_deterministic_ddim_is_euler(prediction: Prediction, schedule: Schedule) -> None:
    model, x = exact_model(schedule, prediction), normal(5, 1, seed=1)
    one = DdimSampler(8).sample(model, x, 0.1, 0.9, silent)
    other = OdeSampler(Euler(8)).sample(exact_model(schedule), x, 0.1, 0.9, silent)
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_one_ddim_step_is_exact_where_the_prediction_is_constant(schedule: Schedule) -> None:
    """All data in one point: the flow shrinks toward it in proportion to the noise."""
    path, point, x = AffinePath(schedule), normal(1, 3, seed=1).expand(4, 3), normal(4, 3, seed=2)
    before, after = torch.tensor(0.2, dtype=F64), torch.tensor(0.9, dtype=F64)
    found = DdimSampler(1).sample(Field(path, lambda x, t, c: point, "data"), x, 0.2, 0.9, silent)
    shrunk = schedule.sigma(after) / schedule.sigma(before) * (x - schedule.alpha(before) * point)
    torch.testing.assert_close(found, schedule.alpha(after) * point + shrunk)
    many = DdimSampler(13).sample(Field(path, lambda x, t, c: point, "data"), x, 0.2, 0.9, silent)
    torch.testing.assert_close(many, found)


@each_value
@pytest.mark.parametrize("schedule", [VariancePreservingSchedule(), CosineSchedule()], ids=repr)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_with_fresh_noise_ddim_takes_the_ancestral_step_of_ddpm(prediction: Prediction, schedule: Schedule) -> None:
    """Ho et al.'s formulas in their letters, where alpha_bar is the square of ours."""
    x, z, t, after = normal(5, 1, seed=1), normal(5, 1, seed=2), 0.6, 0.63
    found = DdimSampler(1, 1.0).sample(exact_model(schedule, prediction), x, t, after, lambda like: z)
    noise, _ = posterior(schedule, x, t)
    alpha_bar, alpha_bar_before = (schedule.alpha(torch.tensor(time, dtype=F64)) ** 2 for time in (t, after))
    alpha = alpha_bar / alpha_bar_before
    beta = 1.0 - alpha
    mean = (x - beta / (1.0 - alpha_bar).sqrt() * noise) / alpha.sqrt()
    variance = (1.0 - alpha_bar_before) / (1.0 - alpha_bar) * beta
    torch.testing.assert_close(found, mean + variance.sqrt() * z, rtol=1e-9, atol=1e-9)


@each_value
@pytest.mark.parametrize("schedule", [VariancePreservingSchedule(), CosineSchedule()], ids=repr)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_clipped_data_takes_the_posterior_step_of_ddpm(prediction: Prediction, schedule: Schedule) -> None:
    """Ho et al.'s mean of the posterior given clipped data, in their letters."""
    x, z, t, after = 3.0 * normal(50, 1, seed=1), normal(50, 1, seed=2), 0.6, 0.63
    sampler = DdimSampler(1, 1.0, data_limit=0.7)
    found = sampler.sample(exact_model(schedule, prediction), x, t, after, lambda like: z)
    _, data = posterior(schedule, x, t)
    clipped = data.clamp(-0.7, 0.7)
    assert 0.1 < float((clipped != data).double().mean()) < 1.0
    alpha_bar, alpha_bar_before = (schedule.alpha(torch.tensor(time, dtype=F64)) ** 2 for time in (t, after))
    alpha = alpha_bar / alpha_bar_before
    beta = 1.0 - alpha
    of_data = alpha_bar_before.sqrt() * beta / (1.0 - alpha_bar)
    of_point = alpha.sqrt() * (1.0 - alpha_bar_before) / (1.0 - alpha_bar)
    variance = (1.0 - alpha_bar_before) / (1.0 - alpha_bar) * beta
    wanted = of_data * clipped + of_point * x + variance.sqrt() * z
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_data_within_the_limit_is_left_alone() -> None:
    model, x = exact_model(CosineSchedule()), normal(4, 1, seed=1)
    plain = DdimSampler(6).sample(model, x, 0.1, 0.9, silent)
    torch.testing.assert_close(DdimSampler(6, data_limit=1e3).sample(model, x, 0.1, 0.9, silent), plain)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_a_ddim_step_adds_the_stated_share_of_fresh_noise(eta: float) -> None:
    """Song et al.'s generalised step in their letters, where alpha is the square of ours."""
    schedule, x, z, t, after = VariancePreservingSchedule(), normal(5, 1, seed=1), normal(5, 1, seed=2), 0.6, 0.63
    found = DdimSampler(1, eta).sample(exact_model(schedule), x, t, after, lambda like: z)
    noise, data = posterior(schedule, x, t)
    alpha, alpha_before = (schedule.alpha(torch.tensor(time, dtype=F64)) ** 2 for time in (t, after))
    fresh = eta * ((1.0 - alpha_before) / (1.0 - alpha)).sqrt() * (1.0 - alpha / alpha_before).sqrt()
    expected = alpha_before.sqrt() * data + (1.0 - alpha_before - fresh**2).sqrt() * noise + fresh * z
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@each_value
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_a_ddim_step_keeps_the_amount_of_noise(schedule: Schedule, eta: float) -> None:
    """With data known to lie in the origin the points stay normal, of the standard deviation of the path."""
    signs = torch.tensor([-1.0, 1.0], dtype=F64)
    noise, fresh = (side.reshape(-1, 1) for side in torch.meshgrid(signs, signs, indexing="ij"))
    before, after = (schedule.sigma(torch.tensor(t, dtype=F64)) for t in (0.3, 0.5))
    model = Field(AffinePath(schedule), lambda x, t, c: torch.zeros_like(x), "data")
    found = DdimSampler(1, eta).sample(model, before * noise, 0.3, 0.5, lambda like: fresh)
    torch.testing.assert_close(found.square().mean(), after.square())


def test_an_average_velocity_lands_on_the_flow_in_one_step() -> None:
    """``dx/dt = A x``, whose average velocity is a matrix function."""
    matrix, x = 0.8 * normal(3, 3, seed=1), normal(4, 3, seed=2)

    def average_velocity(x: Tensor, t: Tensor, duration: Tensor, condition: Tensor | None) -> Tensor:
        return (x @ torch.linalg.matrix_exp(duration * matrix).T - x) / duration

    def refuse(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        raise AssertionError("the velocity of the moment is not needed")

    model = Field(AffinePath(), refuse, "velocity", average_velocity)
    for num_steps in (1, 2, 7):
        end = AverageVelocitySampler(num_steps).sample(model, x, 0.1, 0.9, silent)
        torch.testing.assert_close(end, x @ torch.linalg.matrix_exp(0.8 * matrix).T)


def test_a_model_without_average_velocities_is_refused() -> None:
    model = Field(AffinePath(), lambda x, t, c: x)
    with pytest.raises(ValueError, match="MeanFlow"):
        AverageVelocitySampler().sample(model, normal(3, 2, seed=1), 0.0, 1.0, silent)


def test_each_sampler_says_what_it_needs() -> None:
    assert SdeSampler().adds_noise
    assert DdimSampler(eta=0.5).adds_noise
    assert not any(s.adds_noise for s in (SdeSampler(5, 0.0), DdimSampler(), AverageVelocitySampler()))
    assert AverageVelocitySampler().needs_average_velocity
    assert not any(s.needs_average_velocity for s in (SdeSampler(), DdimSampler(), OdeSampler()))


@one_test
@pytest.mark.parametrize(
    ("build", "value"),
    [
        *((lambda cls=cls: cls(0), "got 0") for cls in (SdeSampler, DdimSampler, AverageVelocitySampler)),
        *((lambda cls=cls: cls(-3), "got -3") for cls in (SdeSampler, DdimSampler, AverageVelocitySampler)),
        (lambda: SdeSampler(noise_scale=-0.5), "-0.5"),
        (lambda: SdeSampler(noise_scale=math.nan), "nan"),
        (lambda: DdimSampler(eta=-0.1), "-0.1"),
        (lambda: DdimSampler(eta=1.5), "1.5"),
        (lambda: DdimSampler(eta=math.nan), "nan"),
        (lambda: DdimSampler(data_limit=0.0), "0.0"),
        (lambda: DdimSampler(data_limit=-1.0), "-1.0"),
    ],
)
def test_a_bad_constructor_argument_is_named(build: object, value: str) -> None:
    with pytest.raises(ValueError, match=value):
        build()
