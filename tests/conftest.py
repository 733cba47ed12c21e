"""Every test on one thread, from the same seeds, with the same Hypothesis examples wherever CI runs."""

from __future__ import annotations

import os
import random
import sys

import hypothesis
import pytest

for threads in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[threads] = "1"  # NumPy and torch read it when they load, which is after this file

hypothesis.settings.register_profile("local", deadline=None, print_blob=True)
hypothesis.settings.register_profile("reproducible", deadline=None, print_blob=True, derandomize=True, database=None)
hypothesis.settings.load_profile("reproducible" if os.environ.get("CI") else "local")


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Seeds Python, and NumPy and torch where the test's room has loaded them."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
