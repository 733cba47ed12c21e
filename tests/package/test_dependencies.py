"""What is declared is imported, what is imported is declared, and all of it is pinned."""

from __future__ import annotations

import ast
import sys
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
IMPORTED_AS = {
    "cuda-bindings": "cuda",
    "onnxruntime-gpu": "onnxruntime",
    "pillow": "PIL",
    "scikit-learn": "sklearn",
}
"""Distributions whose module has another name."""


def declared() -> list[Requirement]:
    """Every requirement of the installed package, extras included."""
    return [Requirement(line) for line in requires("cpd-edge") or []]


def extra(requirement: Requirement) -> str:
    """The extra that brings a requirement, or ''."""
    return str(requirement.marker).partition('"')[2].rstrip('"') if requirement.marker else ""


def imported() -> set[str]:
    """Top-level names that the package's own code imports from elsewhere."""
    found: set[str] = set()
    for path in (ROOT / "cpd_edge").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {"cpd_edge"}


def module_of(requirement: Requirement) -> str:
    """Name that a requirement is imported by."""
    return IMPORTED_AS.get(requirement.name, requirement.name.replace("-", "_"))


def test_every_import_is_declared() -> None:
    """No module of the package imports a distribution that pip would not install with it."""
    assert set() == imported() - {module_of(r) for r in declared() if extra(r) != "dev"}


def test_every_core_dependency_is_imported() -> None:
    """Nobody installs a package that no line of ours imports; onnxscript is torch's, for its exporter."""
    assert set() == {module_of(r) for r in declared() if not extra(r)} - imported() - {"onnxscript"}


def test_the_cpu_and_gpu_runtimes_are_apart() -> None:
    """No extra brings both onnxruntime and onnxruntime-gpu, which overwrite each other."""
    homes = {name: {extra(r) for r in declared() if r.name == name} for name in ("onnxruntime", "onnxruntime-gpu")}
    assert homes == {"onnxruntime": {"cpu"}, "onnxruntime-gpu": {"gpu"}}


def test_every_dependency_is_pinned_inside_its_range() -> None:
    """`ci/constraints.txt` has one exact version of each requirement, on this Python and inside the open range."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / "ci/constraints.txt").read_text().splitlines()]
    pins = [Requirement(line) for line in lines if line]
    here = {canonicalize_name(p.name): str(p.specifier)[2:] for p in pins if not p.marker or p.marker.evaluate()}
    tested = [r for r in declared() if extra(r) not in ("gpu", "pycuda")]
    assert [] == [str(r) for r in tested if not r.specifier.contains(here.get(canonicalize_name(r.name), "0"))]
