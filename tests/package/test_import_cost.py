"""The package opens fast: what shows help or a report loads no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "scipy", "pandas", "sklearn")


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after running `code`."""
    report = "import sys; print('LOADED', *{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_importing_the_package_imports_nothing_heavy() -> None:
    """`import cpd_edge` loads neither torch nor NumPy."""
    assert set() == loaded_by("import cpd_edge") & {*HEAVY, "numpy"}


@pytest.mark.parametrize(
    "room", ["bundled", "errors", "kernels", "layout", "measure", "profile", "report", "solve", "store", "types"]
)
def test_rooms_without_torch_stay_without_torch(room: str) -> None:
    """Importing a torch-free room loads no torch, whatever it imports in turn."""
    assert set() == loaded_by(f"import cpd_edge.{room}") & {"torch", "torchvision", "timm"}


@pytest.mark.parametrize("arguments", [["--help"], ["prune", "--help"], ["report", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    """`cpd-edge --help`, and that of a command, loads none of the heavy packages."""
    code = f"""
import sys
sys.argv = ["cpd-edge", *{arguments!r}]
from cpd_edge.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""
    assert set() == loaded_by(code) & set(HEAVY)


def test_what_measures_nothing_opens_on_a_system_without_file_locks() -> None:
    """Where there is no `fcntl`, a report can be written all the same, and what needs a lock says so."""
    code = """
import sys
from pathlib import Path
sys.modules["fcntl"] = None
import cpd_edge.cli, cpd_edge.report, cpd_edge.solve.milp
from cpd_edge.errors import StoreError
from cpd_edge.store import held
try:
    held(Path("unmade")).__enter__()
except StoreError as error:
    assert "WSL" in error.hint and not Path("unmade").exists()
else:
    raise AssertionError("held without a lock")
"""
    assert "cpd_edge" in loaded_by(code)
