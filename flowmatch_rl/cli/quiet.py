"""What libraries say about themselves, left out, and warnings in one line."""

import logging
import warnings
from pathlib import Path


def quieten() -> None:
    """Leave out what libraries say about themselves; once they are imported, since they set their levels then."""
    for name in ("lightning.pytorch", "lightning.fabric", "torchrl"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for category in (DeprecationWarning, FutureWarning, UserWarning):
        warnings.filterwarnings(
            "ignore",
            category=category,
            module=r"(torch|tensordict|torchrl|lightning|mlflow|gymnasium|jsonargparse|pydantic)",
        )
    warnings.formatwarning = _one_line


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning of this package as an error is shown; one of other code with its place."""
    if Path(filename).is_relative_to(Path(__file__).parents[1]):
        return f"flowmatch-rl: warning: {message}\n"
    return f"{Path(filename).name}:{lineno}: {category.__name__}: {message}\n"
