"""Arguments of the policy-learning modules by short names, so that a test states in one line what it changes."""

from typing import Any

from lightning.pytorch import Trainer

from flowmatch_rl.models import Acting, FlowPolicyArchitecture, GaussianPolicyArchitecture
from flowmatch_rl.modules import ActorCriticOptimizer, Critics, TrainingPoints, WeightCritics

GROUPS = {
    "policy": (FlowPolicyArchitecture, {"velocity": "network"}),
    "points": (TrainingPoints, {"policy_batch_size": "batch_size"}),
    "acting": (Acting, {}),
    "critics": (Critics, {"critic": "architecture", "value_reduction": "reduction"}),
    "weights": (WeightCritics, {"weight_critic": "network", "weight_reduction": "reduction"}),
    "optimizer": (ActorCriticOptimizer, {}),
}


def grouped(gaussian: bool = False, **options: Any) -> dict[str, Any]:
    """Arguments of a module, the options gathered in the objects that they belong to."""
    arguments, left = {}, dict(options)
    for name, (kind, aliases) in GROUPS.items():
        kind = GaussianPolicyArchitecture if gaussian and name == "policy" else kind
        short = {field: field for field in kind.__dataclass_fields__ if field not in ("reduction", "network")}
        short |= {"network": "network"} if name == "policy" else {}
        short |= aliases
        given = {field: left.pop(option) for option, field in short.items() if option in left}
        if given:
            arguments[name] = kind(**given)
    return arguments | left


def quiet_trainer() -> Trainer:
    """A trainer to attach to a module whose hooks a test calls by itself; it logs nothing."""
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, log_every_n_steps=10**9)
