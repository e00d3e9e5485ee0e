"""A trainer reduced to what the callbacks that write files ask of it, and a tiny run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn, TrainerState

from flowmatch_rl.data import OnlineData
from flowmatch_rl.envs import GymnasiumEnvironment
from flowmatch_rl.estimators import PosteriorMeanEstimator
from flowmatch_rl.modules import ReverseFlowActorCritic
from flowmatch_rl.nets import CriticArchitecture, VelocityArchitecture
from flowmatch_rl.samplers import OdeSampler
from flowmatch_rl.solvers import Euler
from tests.modules.options import grouped


def stand_in_trainer(folder: Path, **changes: Any) -> Any:
    attributes: dict[str, Any] = {
        "default_root_dir": str(folder),
        "is_global_zero": True,
        "sanity_checking": False,
        "fast_dev_run": False,
        "loggers": [],
        "datamodule": None,
        "callback_metrics": {},
        "state": TrainerState(fn=TrainerFn.FITTING),
    }
    return SimpleNamespace(**attributes | changes)


def tiny_data() -> OnlineData:
    return OnlineData(
        GymnasiumEnvironment("Pendulum-v1"),
        total_env_steps=40,
        warmup_env_steps=20,
        epoch_env_steps=10,
        batch_size=8,
        buffer_capacity=100,
        eval_episodes=2,
        test_episodes=2,
        max_episode_steps=12,
    )


def tiny_module(observation_dim: int = 3, action_dim: int = 1) -> ReverseFlowActorCritic:
    return ReverseFlowActorCritic(
        observation_dim,
        action_dim,
        temperature=1.0,
        **grouped(
            sampler=OdeSampler(Euler(2)),
            velocity=VelocityArchitecture(hidden_dim=8, num_blocks=1, time_features=4),
            critic=CriticArchitecture(hidden_dim=8),
            estimator=PosteriorMeanEstimator(num_samples=4),
            train_particles=2,
            collect_particles=2,
            eval_particles=3,
        ),
    )


def tiny_trainer(folder: Path, callbacks: list[Callback], max_epochs: int) -> Trainer:
    return Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=5,
        default_root_dir=folder,
        callbacks=callbacks,
    )
