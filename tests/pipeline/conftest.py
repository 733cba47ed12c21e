"""`cpd-edge` as a function, and one finished run of each task, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli.shell import Done, Shell
from cli.worlds import PRUNE, QUICK, write_world

from cpd_edge.store import Run


@pytest.fixture(scope="session")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """Calls `cpd-edge` where `mine.py` holds networks and data, and `shapes/` pictures with masks."""
    folder: Path = tmp_path_factory.mktemp("world")
    write_world(folder)
    return Shell(folder)


@pytest.fixture(scope="session")
def classified(shell: Shell) -> tuple[Run, Done]:
    """A run on a classification task, and what its command printed."""
    done = shell(*PRUNE, "--speedup", "1.3", *QUICK, "--out", "classified", "--json")
    assert done.code in (0, 1, 3), done.err
    return Run(shell.folder / "classified"), done


@pytest.fixture(scope="session")
def segmented(shell: Shell) -> tuple[Run, Done]:
    """A run on a segmentation task, and what its command printed."""
    words = ("prune", "mine.py:make_dense_head", "--data", "segfolder:shapes", "--speedup", "1.2", *QUICK)
    done = shell(*words, "--out", "segmented", "--json")
    assert done.code in (0, 1, 3), done.err
    return Run(shell.folder / "segmented"), done


@pytest.fixture(params=["classified", "segmented"])
def finished(request: pytest.FixtureRequest) -> tuple[Run, Done]:
    """Both of them, one after the other."""
    made: tuple[Run, Done] = request.getfixturevalue(request.param)
    return made
