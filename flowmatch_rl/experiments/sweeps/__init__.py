"""Sweeps over hyperparameters, by Optuna: the extra ``flowmatch_rl[sweep]``."""

from flowmatch_rl.callbacks.run_logger import import_extra

# Before the modules of this package import it.
import_extra("optuna", "sweep", "sweep")
