"""Every test on one thread, from the same seeds, with the same Hypothesis examples wherever CI runs."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from measure.loopback import Loopback

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


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    """This machine as another one: a real sshd on loopback, or a skip that says why there is none."""
    from measure.loopback import served

    found = served(tmp_path_factory.mktemp("sshd"))
    yield found
    found.close()
