"""The contract with TensorRT's Python API: every name and call that we use exists in the real bindings.

Held against 8.6, 10.3 and 11.4 as they are published; see `real_bindings`. It says that names exist and take so many
arguments, and nothing about what they do.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from deploy.real_bindings import VERSIONS, Bindings, stubs

ROOT = Path(__file__).parents[2]
FILES = [
    ROOT / "cpd_edge" / name
    for name in (
        "deploy/build_progress.py", "deploy/engine.py", "deploy/timing_cache.py", "deploy/unsupported.py",
        "measure/agent.py", "measure/engine_runner.py", "measure/listening.py", "pipeline/engines.py",
    )
]  # fmt: skip
NOT_EVERYWHERE = {
    "8.6": {"ComputeCapability", "IProgressMonitor"},
    "10.3": {"ComputeCapability"},
    "11.4": {
        "BuilderFlag.FP16", "BuilderFlag.INT8", "BuilderFlag.OBEY_PRECISION_CONSTRAINTS", "ComputeCapability",
        "NetworkDefinitionCreationFlag.EXPLICIT_BATCH",
    },
}  # fmt: skip
"""What a version lacks of what we use: each of these is asked for with `hasattr` before it is used."""


def used() -> dict[str, Path]:
    """Every chain of attributes that begins at the module, as `BuilderFlag.FP16`."""
    found: dict[str, Path] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            chain = _chain(node)
            if chain:
                found[chain] = path
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("hasattr", "getattr"):
                owner, name = node.args[0], node.args[1]
                stem = "" if ast.unparse(owner) in ("trt", "self._trt") else _chain(owner)
                if isinstance(name, ast.Constant) and (stem or ast.unparse(owner) in ("trt", "self._trt")):
                    found[f"{stem}.{name.value}" if stem else str(name.value)] = path
    plain = {re.sub(r"\.?__\w+$", "", chain): path for chain, path in found.items()}
    return {c: p for c, p in plain.items() if c and not any(o.startswith(f"{c}.") for o in plain)}


def _chain(node: ast.AST) -> str:
    """`BuilderFlag.FP16` of `trt.BuilderFlag.FP16` or `self._trt.BuilderFlag.FP16`; '' of anything else."""
    words: list[str] = []
    while isinstance(node, ast.Attribute):
        if node.attr == "_trt":
            return ".".join(reversed(words))
        words.append(node.attr)
        node = node.value
    return ".".join(reversed(words)) if isinstance(node, ast.Name) and node.id == "trt" else ""


@pytest.fixture(params=VERSIONS, ids=lambda b: b.version)
def bindings(request: pytest.FixtureRequest) -> Bindings:
    found: Bindings = request.param
    return found


def test_we_look_at_what_we_use() -> None:
    """The tests below have something to look at."""
    assert {"Builder", "OnnxParser", "Runtime", "BuilderFlag.FP16", "IProfiler", "ILogger"} <= used().keys()


def test_every_name_of_the_module_exists(bindings: Bindings) -> None:
    """And what a version lacks is exactly what we ask for before we use it."""
    text = (stubs(bindings) / "tensorrt/__init__.pyi").read_text()
    classes = {m[1]: m[2] for m in re.finditer(r"^class (\w+)\(.*?\):\n((?:    .*\n?)*)", text, re.M)}
    plain = {m[1] for m in re.finditer(r"^(\w+): Any$", text, re.M)} | classes.keys()

    def exists(chain: str) -> bool:
        head, _, rest = chain.partition(".")
        member = rest.partition(".")[0]
        own = re.search(rf"^    (?:def )?{member}\b", classes.get(head, ""), re.M) if rest else True
        return head in plain and bool(own)

    assert NOT_EVERYWHERE[bindings.version] == {chain for chain in used() if not exists(chain)}


@pytest.mark.slow
def test_every_call_fits(bindings: Bindings, tmp_path: Path) -> None:
    """mypy, with the real classes in place of our annotations: attributes, arguments and what calls give back."""
    folder = stubs(bindings)
    config = tmp_path / "mypy.ini"
    config.write_text(
        "[mypy]\nfollow_imports = skip\nignore_missing_imports = true\ncheck_untyped_defs = true\n"
        "disable_error_code = misc, no-any-return\n[mypy-tensorrt]\nignore_errors = true\n"
    )
    words = [sys.executable, "-m", "mypy", "--config-file", str(config), "--cache-dir", str(tmp_path / "cache")]
    files = [str(folder / "tensorrt/__init__.pyi"), *map(str, FILES)]
    done = subprocess.run([*words, *files], cwd=ROOT, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stdout
