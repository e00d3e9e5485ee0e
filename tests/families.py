"""The families of the package: a new member joins by one line and meets every test of its family."""

from pathlib import Path

from flowmatch_rl.couplings import Coupling, ExactCoupling, IndependentCoupling, SinkhornCoupling
from flowmatch_rl.estimators import (
    BlockMeanEstimator,
    ChainMeanEstimator,
    ControlVariate,
    EndpointEstimator,
    FisherControlVariate,
    FixedControlVariate,
    GradientControlVariate,
    LikelihoodProposal,
    LocalMeanEstimator,
    MarginalProposal,
    MixtureProposal,
    NoControlVariate,
    PointScoreEstimator,
    PosteriorMeanEstimator,
    PosteriorProposal,
    PriorMeanEstimator,
    PriorProposal,
    ProductProposal,
    Proposal,
    RegressControlVariate,
    ReweightedEndpoints,
    TruncatedProposal,
)
from flowmatch_rl.models import (
    DeterministicDynamics,
    DynamicsSettings,
    FirstSelection,
    GreedySelection,
    Selection,
    SoftmaxSelection,
    StochasticDynamics,
)
from flowmatch_rl.nets import (
    Architecture,
    BatchNormLayers,
    CategoricalHead,
    CriticLayers,
    DynamicsArchitecture,
    FilmUNetArchitecture,
    FlowHead,
    PostNormBlocks,
    PreNormBlocks,
    QuantileHead,
    ScalarHead,
    ValueHead,
    VelocityArchitecture,
)
from flowmatch_rl.objectives import (
    TD2CFM,
    TD2DD,
    TDCFM,
    TDDD,
    AnnealedTemperature,
    BiasedChordCFM,
    CappedSignalWeight,
    ConditionalFlowMatching,
    ConstantTemperature,
    CoupledTDCFM,
    DivergenceTemperature,
    EntropyTemperature,
    ErrorOf,
    FlowObjective,
    MeanFlow,
    MonteCarloCFM,
    OccupancyObjective,
    PowerWeight,
    SampleSizeTemperature,
    Temperature,
    TimeWeight,
    UniformWeight,
)
from flowmatch_rl.paths import (
    ClipSquash,
    CosineMapTime,
    CosineSchedule,
    GaussianSource,
    KumaraswamyTime,
    LinearSchedule,
    LogitNormalTime,
    MixtureSource,
    NoSquash,
    Schedule,
    Source,
    Squash,
    TanhSquash,
    TimeDistribution,
    UniformSource,
    UniformTime,
    UShapedTime,
    VarianceExplodingSchedule,
    VariancePreservingSchedule,
)
from flowmatch_rl.samplers import AverageVelocitySampler, DdimSampler, OdeSampler, Sampler, SdeSampler
from flowmatch_rl.solvers import (
    RK4,
    AdaptiveSolver,
    Divergence,
    Euler,
    ExactDivergence,
    FixedStepSolver,
    Heun,
    HutchinsonDivergence,
    Midpoint,
)
from flowmatch_rl.testbeds import (
    Bandit,
    Bimodal,
    BoxReward,
    CirculationReward,
    ConstantPolicy,
    CorrelatedGaussians,
    Flat,
    FourModes,
    FunctionReward,
    GoalReward,
    LabelledReward,
    LinearGaussianProcess,
    LinearPolicy,
    LinearReward,
    MazeGoalPolicy,
    MazeLoopPolicy,
    MazeReachPolicy,
    PointGoalPolicy,
    PointMassMaze,
    PointMassRoom,
    PolicyMixture,
    Process,
    Quadratic,
    QuadraticReward,
    RandomPolicy,
    RandomWalkProcess,
    ReachingArm,
    RingProcess,
    SpeedReward,
    SumReward,
    TwoMoonsEnergy,
)
from flowmatch_rl.types import Policy, Reward

SCHEDULES: list[Schedule] = [
    LinearSchedule(),
    LinearSchedule(sigma_min=0.1),
    CosineSchedule(),
    VariancePreservingSchedule(),
    VarianceExplodingSchedule(),
]

SOLVERS: list[tuple[type[FixedStepSolver], int]] = [
    (Euler, 1),
    (Midpoint, 2),
    (Heun, 2),
    (RK4, 4),
]
"""Fixed-step solvers with their order of accuracy."""

ADAPTIVE_SOLVERS: list[AdaptiveSolver] = [
    AdaptiveSolver(),
    AdaptiveSolver(method="dopri8"),
    AdaptiveSolver(method="bosh3"),
]

DIVERGENCES: list[Divergence] = [
    ExactDivergence(),
    HutchinsonDivergence(),
    HutchinsonDivergence(kind="gaussian", num_probes=3),
]

SAMPLERS: list[Sampler] = [
    OdeSampler(),
    OdeSampler(solver=RK4(num_steps=20)),
    SdeSampler(),
    DdimSampler(),
    DdimSampler(num_steps=200, eta=1.0),
    AverageVelocitySampler(),
    AverageVelocitySampler(num_steps=3),
]

PROPOSALS: list[Proposal] = [
    LikelihoodProposal(),
    ProductProposal(),
    ProductProposal(base_variance=2.5),
    MixtureProposal(),
    TruncatedProposal(limit=1.5),
]

WIDE_PROPOSALS = [proposal for proposal in PROPOSALS if proposal.covers_space]
"""Proposals that control variates may be used with."""

CONTROL_VARIATES: list[ControlVariate] = [
    NoControlVariate(),
    GradientControlVariate(),
    FixedControlVariate(eta=0.3),
    RegressControlVariate(),
    RegressControlVariate(isotropic=True),
    RegressControlVariate(num_bins=20),
    FisherControlVariate(),
    FisherControlVariate(isotropic=True),
    FisherControlVariate(num_bins=20),
]

ESTIMATORS: list[EndpointEstimator] = [
    PosteriorMeanEstimator(num_samples=7),
    PosteriorMeanEstimator(num_samples=5, control_variate=NoControlVariate(), proposal=LikelihoodProposal()),
    ChainMeanEstimator(num_samples=7),
    ChainMeanEstimator(num_samples=7, num_starts=0, num_chains=3, burn_in=0.0, control_variate=NoControlVariate()),
    LocalMeanEstimator(num_samples=7, num_starts=3),
    LocalMeanEstimator(num_samples=6, num_starts=1, power=0.0, control_variate=NoControlVariate()),
    BlockMeanEstimator(num_samples=5),
    BlockMeanEstimator(num_samples=4, num_blocks=1, control_variate=NoControlVariate()),
    PointScoreEstimator(),
    ReweightedEndpoints(),
    ReweightedEndpoints(limit=2.0),
    PriorMeanEstimator(num_samples=6),
    PriorMeanEstimator(num_samples=4, proposal=MarginalProposal(), control_variate=NoControlVariate()),
]

PRIOR_PROPOSALS: list[PriorProposal] = [
    PosteriorProposal(),
    PosteriorProposal(DdimSampler(num_steps=4, eta=1.0)),
    MarginalProposal(),
]

SELECTIONS: list[Selection] = [
    SoftmaxSelection(),
    GreedySelection(),
    FirstSelection(),
]

ARCHITECTURES: list[Architecture] = [
    VelocityArchitecture(hidden_dim=16, time_features=8),
    VelocityArchitecture(hidden_dim=16, time_features=8, activation="mish", residual=False, balanced_inputs=True),
    FilmUNetArchitecture(block_dims=(16, 16), time_features=8, time_dims=(8,), condition_dims=(12, 8)),
    FilmUNetArchitecture(
        block_dims=(16, 8, 4), time_features=8, time_dims=(8, 6), condition_dims=(8,), activation="silu"
    ),
]

DYNAMICS: list[DynamicsSettings] = [
    DeterministicDynamics(DynamicsArchitecture(num_members=2, hidden_dim=8, num_layers=1)),
    StochasticDynamics(network=VelocityArchitecture(hidden_dim=16, num_blocks=1, time_features=8)),
]

CRITIC_LAYERS: list[CriticLayers] = [
    PreNormBlocks(),
    PreNormBlocks(expansion=1),
    PostNormBlocks(),
    BatchNormLayers(warm_up=300),
]

VALUE_HEADS: list[ValueHead] = [
    ScalarHead(),
    ScalarHead(huber_delta=0.5),
    CategoricalHead(num_atoms=7, v_min=-3.0, v_max=4.0),
    QuantileHead(num_quantiles=5),
    QuantileHead(num_quantiles=1, huber_delta=0.0),
    FlowHead(spread=2.0),
    FlowHead(spread=0.5, num_points=3, num_steps=1, num_knots=2),
]

TIME_WEIGHTS: list[TimeWeight] = [
    UniformWeight(),
    PowerWeight(),
    CappedSignalWeight(),
    ErrorOf(),
    ErrorOf("velocity"),
]

OBJECTIVES: list[FlowObjective] = [
    ConditionalFlowMatching(),
    ConditionalFlowMatching(prediction="data", time_distribution=CosineMapTime()),
    ConditionalFlowMatching(prediction="noise", time_weight=ErrorOf("velocity")),
    ConditionalFlowMatching(prediction="score"),
    MeanFlow(),
    MeanFlow(interval_fraction=1.0, time_distribution=UniformTime()),
    MeanFlow(interval_fraction=0.25, time_distribution=LogitNormalTime(mean=0.4), adaptive_power=1.0),
]

TEMPERATURES: list[Temperature] = [
    ConstantTemperature(),
    AnnealedTemperature(start=1.0, end=0.01, env_steps=1000),
    EntropyTemperature(),
    SampleSizeTemperature(),
    DivergenceTemperature(),
]

OCCUPANCY_OBJECTIVES: list[OccupancyObjective] = [
    MonteCarloCFM(),
    TDCFM(),
    CoupledTDCFM(),
    TD2CFM(),
    TDDD(),
    TD2DD(),
    BiasedChordCFM(),
]

TIME_DISTRIBUTIONS: list[TimeDistribution] = [
    UniformTime(),
    LogitNormalTime(),
    LogitNormalTime(mean=1.0, scale=0.5),
    CosineMapTime(),
    KumaraswamyTime(),
    KumaraswamyTime(a=2.0, b=1.0),
    UShapedTime(),
]

SOURCES: list[Source] = [
    GaussianSource(),
    GaussianSource(scale=2.0),
    UniformSource(),
    MixtureSource(means=[[1.0, 0.0], [-1.0, 0.5], [0.0, -2.0]]),
]

SQUASHES: list[Squash] = [
    TanhSquash(),
    NoSquash(),
    ClipSquash(),
]

COUPLINGS: list[Coupling] = [
    IndependentCoupling(),
    ExactCoupling(),
    ExactCoupling(condition_weight=1.0),
    SinkhornCoupling(),
    SinkhornCoupling(regularisation=0.5, condition_weight=1.0),
]

PROCESSES: list[Process] = [
    LinearGaussianProcess(),
    LinearGaussianProcess(transition=[[0.8]], control=[[0.5]], drift=[0.1], noise_factor=[[0.3]]),
    PointMassMaze(),
    PointMassRoom(((0.1, -0.3, 0.12, 0.3),), start_half_width=0.01),
    ReachingArm(((0.06, -0.04, 0.14, 0.04),), start_half_width=0.1),
    RingProcess(),
    RingProcess(num_states=5, jitter=0.1, slip=0.0, radius=2.0),
    RandomWalkProcess(),
    RandomWalkProcess(num_states=4, jitter=0.05, slip=0.5, absorbing=False),
]

POLICIES: list[Policy] = [
    LinearPolicy(gain=[[-0.9, 0.1]], bias=[0.6]),
    ConstantPolicy(action=[1.0]),
    RandomPolicy(action_dim=2),
    MazeLoopPolicy(),
    MazeReachPolicy(),
    MazeReachPolicy(room="bottom_right"),
    MazeGoalPolicy(),
    PointGoalPolicy(gain=2.0, damping=0.5, half_width=1.5, action_dim=1),
    PolicyMixture([ConstantPolicy([1.0]), ConstantPolicy([-1.0])]),
]

REWARDS: list[Reward] = [
    GoalReward(columns=("x", "y"), goal=(1.0, -0.5), radius=0.5, margin=0.25),
    BoxReward(low=(None, -0.5), high=(0.7, None)),
    LinearReward(columns=("vx", "x"), weights=(2.0, -1.0), bias=0.25),
    QuadraticReward(columns=("x", "vy"), center=(0.5, 1.0), weights=(1.0, 0.0), bias=3.0),
    CirculationReward(center=(0.5, -0.25), clockwise=False, scale=2.0),
    SpeedReward(),
    SumReward(rewards=(SpeedReward(scale=2.0), LinearReward(columns=("x",), weights=(1.0,))), weights=(0.5, -1.0)),
    FunctionReward(function="tests.testbeds.test_rewards:height", columns=("y", "x")),
    LabelledReward(path=str(Path(__file__).parent / "testbeds" / "labelled_states.csv")),
]

BANDITS: list[Bandit] = [
    FourModes(),
    FourModes(mode=0.6, scale=0.25, weights=(0.1, 0.2, 0.3, 0.4)),
    TwoMoonsEnergy(),
    Bimodal(),
    Bimodal(dimensions=1, mode=0.7, scale=0.3),
    Flat(),
    Quadratic(),
    Quadratic(dimensions=3, centre=-0.9, scale=0.5),
]

DEPENDENT_BANDITS: list[Bandit] = [
    CorrelatedGaussians(),
    CorrelatedGaussians(dimensions=2, mode=0.2, scale=0.15, correlation=-0.5, weight=0.3),
]
"""Bandits whose coordinates depend on each other, known at temperature 1 and without quadrature."""
