"""`cpd-edge` as a function, in a folder with a small network and small data."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli.shell import Shell
from cli.worlds import write_world


@pytest.fixture(scope="session")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """Calls `cpd-edge` where `mine.py` holds networks and data, and `shapes/` pictures with masks."""
    folder: Path = tmp_path_factory.mktemp("world")
    write_world(folder)
    return Shell(folder)
