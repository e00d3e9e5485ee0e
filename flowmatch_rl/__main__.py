"""Entry point of ``flowmatch-rl`` and ``python -m flowmatch_rl``."""

import os
import sys
from pathlib import Path

from flowmatch_rl.cli import run


def main() -> None:
    """Run the command line with settings of the process that must precede the import of torch, which ``run`` does."""
    # Two threads beside a busy neighbour stall each other by a factor of ten; the user may ask for more.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # A user's own class in the folder of the command is found by its import path, as with python -m; after all others.
    sys.path.append(str(Path.cwd()))
    sys.exit(run())


if __name__ == "__main__":
    main()
