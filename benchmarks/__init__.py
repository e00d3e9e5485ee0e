"""Benchmarks, of one thread unless ``OMP_NUM_THREADS`` says otherwise; ``python -m benchmarks`` runs them."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
