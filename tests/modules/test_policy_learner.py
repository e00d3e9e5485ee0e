"""How a flow policy learns toward a density that is known."""

import pytest
import torch
from torch import Tensor

from flowmatch_rl.estimators import (
    FisherControlVariate,
    LikelihoodProposal,
    NoControlVariate,
    PointScoreEstimator,
    PosteriorMeanEstimator,
    ProductProposal,
    RegressControlVariate,
    ReweightedEndpoints,
)
from flowmatch_rl.models import Flow, FlowPolicy
from flowmatch_rl.modules.policy_learner import PolicyLearner
from flowmatch_rl.nets import VelocityArchitecture
from flowmatch_rl.objectives import ConditionalFlowMatching, MeanFlow
from flowmatch_rl.paths import AffinePath, GaussianSource, LinearSchedule, NoSquash, TanhSquash, UniformSource
from flowmatch_rl.samplers import AverageVelocitySampler, OdeSampler
from flowmatch_rl.solvers import Euler
from tests.combinations import each_value
from tests.families import SCHEDULES
from tests.models.exact_policy import SCALES, exact_policy
from tests.models.test_policy import PREDICTIONS
from tests.oracles import F64, normal

B, A = 12, 2
EXACT = RegressControlVariate(limit=1e6, ridge=1e-14)
"""The regression of one linear function on another: exact for any number of samples."""
ODE = OdeSampler(Euler(2))


@pytest.fixture(autouse=True)
def double_precision():
    """The learner draws its noise in the default type."""
    torch.set_default_dtype(F64)
    torch.manual_seed(4)
    yield
    torch.set_default_dtype(torch.float32)


def gaussian(observation: Tensor, scale: Tensor = SCALES):
    """Log-density and score of the latent points that ``exact_policy`` samples."""
    mean = 0.5 * observation[:, None]

    def density(x: Tensor) -> tuple[Tensor, Tensor]:
        pull = (mean - x) / scale**2
        return 0.5 * (pull * (x - mean)).sum(-1), pull

    return density


@each_value
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_loss_and_gradient_vanish_at_the_exact_field(schedule, prediction) -> None:
    policy = exact_policy(schedule, ODE, prediction, scales=True, t_min=0.05)
    learner = PolicyLearner(
        policy, ConditionalFlowMatching(prediction), PosteriorMeanEstimator(5, ProductProposal(), EXACT)
    )
    observation, x_1 = normal(B, A, seed=1), normal(B, A, seed=2)
    loss, learned = learner.loss(observation, x_1, gaussian(observation))
    assert loss.shape == (B,)
    assert float(loss.detach().max()) < 1e-8
    loss.mean().backward()
    assert abs(float(policy.flow.network.error.grad)) < 1e-3
    assert learned.points.x_1 is x_1
    with torch.no_grad():
        policy.flow.network.error.fill_(0.3)
    assert float(learner.loss(observation, x_1, gaussian(observation))[0].min()) > 1e-6


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_loss_of_mean_flow_vanishes_at_the_exact_average_velocity(schedule) -> None:
    policy = exact_policy(schedule, AverageVelocitySampler(), averages=True, t_min=0.05)
    learner = PolicyLearner(policy, MeanFlow(), PosteriorMeanEstimator(5, ProductProposal(), EXACT))
    observation, x_1 = normal(B, A, seed=1), normal(B, A, seed=2)
    loss, _ = learner.loss(observation, x_1, gaussian(observation))
    scale = 1.0 + float(policy.flow.path.output_scale(torch.tensor(0.05), "velocity")) ** 2
    assert float(loss.detach().max()) < 1e-9 * scale
    with torch.no_grad():
        policy.flow.network.error.fill_(0.3)
    assert float(learner.loss(observation, x_1, gaussian(observation))[0].min()) > 1e-3


def test_many_samples_without_control_variate_come_near() -> None:
    policy = exact_policy(LinearSchedule(), ODE, t_min=0.1)
    observation, x_1 = normal(B, A, seed=1), normal(B, A, seed=2)

    def loss(count: int) -> float:
        learner = PolicyLearner(
            policy,
            ConditionalFlowMatching(),
            PosteriorMeanEstimator(count, ProductProposal(), NoControlVariate()),
        )
        return float(learner.loss(observation, x_1, gaussian(observation))[0].mean())

    few, many = loss(100), loss(10000)
    assert many < 0.01
    assert few == pytest.approx(100.0 * many, rel=0.7)  # the variance falls as one over the samples


def test_points_lie_between_the_source_and_the_endpoints_at_the_objectives_times() -> None:
    network = exact_policy(LinearSchedule(), ODE).flow.network
    policy = FlowPolicy(Flow(network, AffinePath(), GaussianSource(2.0), t_min=0.2), A, ODE, TanhSquash())
    learner = PolicyLearner(policy, ConditionalFlowMatching(), PosteriorMeanEstimator(3, LikelihoodProposal(), EXACT))
    observation, x_1 = normal(4000, A, seed=1), normal(4000, A, seed=2)
    points = learner.loss(observation, x_1, gaussian(observation))[1].points
    assert 0.2 <= float(points.t.min()) < 0.21
    assert 0.79 < float(points.t.max()) <= 0.8
    assert float(points.x_0.std()) == pytest.approx(2.0, rel=0.05)
    torch.testing.assert_close(points.x_t, points.t[:, None] * x_1 + (1.0 - points.t[:, None]) * points.x_0)


def test_weights_of_the_endpoints_weigh_the_losses() -> None:
    policy = exact_policy(LinearSchedule(), ODE)
    with torch.no_grad():
        policy.flow.network.error.fill_(2.0)
    learner = PolicyLearner(policy, ConditionalFlowMatching(), ReweightedEndpoints())
    observation, x_1 = normal(B, A, seed=1), normal(B, A, seed=2)
    torch.manual_seed(1)
    loss, learned = learner.loss(observation, x_1, gaussian(observation))
    torch.testing.assert_close(learned.estimate.weight.mean(), torch.tensor(1.0))
    values = gaussian(observation)(x_1[:, None])[0][:, 0]
    torch.testing.assert_close(learned.estimate.weight, B * torch.softmax(values, 0))
    torch.manual_seed(1)
    plain, _ = learner.loss(observation, x_1, lambda x: (torch.zeros(B, 1), torch.zeros_like(x)))
    torch.testing.assert_close(loss, learned.estimate.weight * plain)


def test_point_scores_teach_the_score_of_the_density_at_the_point() -> None:
    policy = exact_policy(LinearSchedule(), ODE, "score", t_min=0.1)
    learner = PolicyLearner(policy, ConditionalFlowMatching("score"), PointScoreEstimator())
    observation, x_1 = normal(B, A, seed=1), normal(B, A, seed=2)
    loss, learned = learner.loss(observation, x_1, gaussian(observation))
    score = gaussian(observation)(learned.points.x_t[:, None])[1][:, 0]
    t = learned.points.t
    predicted = policy.flow(learned.points.x_t, t, observation)
    # Errors of scores are measured as errors of the noise.
    torch.testing.assert_close(loss, ((1.0 - t[:, None]) * (predicted - score)).square().mean(1))


def test_one_step_of_a_policy_that_learned_average_velocities_samples_the_gaussian() -> None:
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    network = VelocityArchitecture(hidden_dim=48, time_features=8, balanced_inputs=True).build(1, 1, True)
    flow = Flow(network, AffinePath(), t_min=0.01, averages=True)
    policy = FlowPolicy(flow, 1, AverageVelocitySampler(), NoSquash())
    learner = PolicyLearner(policy, MeanFlow(), PosteriorMeanEstimator(4, ProductProposal(), FisherControlVariate()))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    scale = torch.tensor([0.4])
    for step in range(700):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1.0 - step / 700)
        observation = 2.0 * torch.randn(128, 1)
        x_1 = 0.5 * observation + scale * torch.randn(128, 1)
        optimizer.zero_grad()
        learner.loss(observation, x_1, gaussian(observation, scale))[0].mean().backward()
        optimizer.step()
    states = torch.tensor([[-1.5], [0.0], [1.0]])
    samples = policy.sample_latents(states, torch.randn(3, 2000, 1))[..., 0]
    torch.testing.assert_close(samples.mean(1), 0.5 * states[:, 0], atol=0.15, rtol=0)
    torch.testing.assert_close(samples.std(1), torch.full((3,), 0.4), atol=0.12, rtol=0)


def test_estimator_that_cannot_work_with_the_source_is_refused() -> None:
    network = VelocityArchitecture(hidden_dim=8, time_features=2).build(A, A)
    policy = FlowPolicy(Flow(network, AffinePath(), UniformSource(), t_min=0.1), A, ODE, TanhSquash())
    with pytest.raises(ValueError, match="UniformSource"):
        PolicyLearner(policy, ConditionalFlowMatching(), PosteriorMeanEstimator())
