"""Updates that are compiled as a whole."""

import pytest
import torch
from torch import Tensor

from flowmatch_rl.estimators import FisherControlVariate, PosteriorMeanEstimator, ProductProposal
from flowmatch_rl.modules import ReverseFlowActorCritic, SoftActorCritic
from flowmatch_rl.modules.actor_critic import ActorCritic
from flowmatch_rl.nets import CriticArchitecture, PostNormBlocks, chunks
from flowmatch_rl.nets.chunks import map_in_chunks
from flowmatch_rl.objectives import MeanFlow
from flowmatch_rl.samplers import AverageVelocitySampler
from tests.modules import test_reverse_flow_actor_critic as reverse_flow
from tests.modules import test_soft_actor_critic as soft
from tests.tracing import trace_compilations

FISHER = PosteriorMeanEstimator(8, ProductProposal(1.0), FisherControlVariate())
LEAN = {
    "objective": MeanFlow(interval_fraction=0.5, adaptive_power=0.0),
    "sampler": AverageVelocitySampler(1),
    "estimator": FISHER,
    "train_particles": 1,
    "share_samples": True,
    "policy_batch_size": 3,
}
CASES = {
    "soft": (soft.build, {}),
    "lean": (reverse_flow.build, LEAN),
    "blocks": (reverse_flow.build, {"critic": CriticArchitecture(hidden_dim=16, layers=PostNormBlocks())}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_compiled_update_is_one_graph_and_equals_the_plain_one(monkeypatch, case) -> None:
    build, options = CASES[case]
    plain: ActorCritic = build(**options)
    graphs = trace_compilations(monkeypatch)
    compiled: ActorCritic = build(**options, compile=True)
    assert isinstance(plain, ReverseFlowActorCritic | SoftActorCritic)
    for index in range(2):
        losses = []
        for module in (plain, compiled):
            torch.manual_seed(index)
            losses.append(module.loss(reverse_flow.transitions(seed=index)))
            losses[-1].backward()
        torch.testing.assert_close(losses[1], losses[0])
    assert len(graphs) == 1, "a second update makes no other graph"
    wanted = {name: weight.grad for name, weight in plain.named_parameters() if weight.grad is not None}
    found = {name: weight.grad for name, weight in compiled.named_parameters() if weight.grad is not None}
    assert found.keys() == wanted.keys()
    assert len(wanted) > 8
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, msg=name)
    means, others = plain.means.take(), compiled.means.take()
    assert others.keys() == means.keys()
    for name, mean in means.items():
        torch.testing.assert_close(others[name], mean, msg=name)


@pytest.mark.parametrize("share_samples", [False, True])
def test_a_compiled_update_draws_more_particles_than_one_piece_holds(monkeypatch, share_samples: bool) -> None:
    monkeypatch.setattr(chunks, "CPU_ROWS", 8)
    torch.compiler.reset()
    compile_function = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, **options: compile_function(function, backend="eager", **options)
    )
    for train_particles in (4, 5):  # a second number in one process is a constant of a graph too
        losses = []
        for compile in (False, True):
            options = LEAN | {"train_particles": train_particles, "share_samples": share_samples, "compile": compile}
            module: ActorCritic = reverse_flow.build(**options)
            torch.manual_seed(0)
            losses.append(module.loss(reverse_flow.transitions(seed=0)))
        torch.testing.assert_close(losses[1], losses[0])


def test_what_is_too_large_for_one_piece_stays_out_of_a_graph(monkeypatch) -> None:
    monkeypatch.setattr(chunks, "CPU_ROWS", 4)
    sizes = []

    def doubled(x: Tensor) -> tuple[Tensor]:
        if not torch.compiler.is_compiling():
            sizes.append(len(x))
        return (2.0 * x,)

    torch.compiler.reset()
    compiled = torch.compile(lambda x: map_in_chunks(doubled, 2, x)[0] + 1.0, backend="eager")
    for rows, pieces in ((2, []), (6, [2, 2, 2])):
        sizes.clear()
        x = torch.randn(rows, 3)
        torch.testing.assert_close(compiled(x), 2.0 * x + 1.0)
        assert sizes == pieces
