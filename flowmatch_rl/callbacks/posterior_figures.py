"""Targets of a policy by flow time: a profile per stretch of training, kept in checkpoints, drawn at the end."""

import dataclasses
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from flowmatch_rl.callbacks.artifacts import write_figure, writes_files
from flowmatch_rl.callbacks.curves import data_label
from flowmatch_rl.callbacks.progress import env_step_counter
from flowmatch_rl.evaluation import PosteriorProfile
from flowmatch_rl.figures import draw_posterior

FIGURE = "posterior.png"
"""Name of the figure, in the folder of figures."""


class PosteriorFigures(Callback):
    """Draws ``figures/posterior.png``: what the targets of the policy were like by flow time.

    A panel per quantity, with the last stretch of training in full colour and earlier ones fading. It is drawn when
    training ends, and when it breaks off. Profiles are kept in checkpoints, so that the figure of a resumed run is
    whole. Draws nothing where the module has no attribute ``posterior_profile``, or None there.
    """

    def __init__(self) -> None:
        self._profiles: list[PosteriorProfile] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the profile of an epoch without evaluation."""
        self._keep(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the profile of the updates since the last evaluation; checkpoints are written after this."""
        self._keep(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the last profile."""
        self._keep(pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the figure."""
        self._write(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Draw the figure up to the last profile before training broke off."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._keep(pl_module)
            self._write(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The profiles so far."""
        return {"profiles": [dataclasses.asdict(profile) for profile in self._profiles]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the profiles of a checkpoint."""
        self._profiles = [PosteriorProfile(**profile) for profile in state_dict["profiles"]]

    def _keep(self, module: LightningModule) -> None:
        new: PosteriorProfile | None = getattr(module, "posterior_profile", None)
        if new is not None:
            # The same profile may come again; a run resumed from an earlier step has others for the later ones.
            self._profiles = [*(known for known in self._profiles if known.step < new.step), new]

    def _write(self, trainer: Trainer) -> None:
        if writes_files(trainer) and self._profiles:
            unit = "gradient steps" if env_step_counter(trainer) is None else "environment steps"
            title = f"{data_label(trainer)}: what the policy learns from, by flow time"
            write_figure(trainer, draw_posterior(self._profiles, title, unit), FIGURE)
