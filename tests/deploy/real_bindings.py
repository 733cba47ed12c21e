"""The real TensorRT bindings without TensorRT: which names exist in which version, and how they are called.

A bindings wheel holds the extension module alone. Given libraries that define the few symbols it links against, as
functions that return null, it imports, and its classes can be looked at. Nothing of it is ever called. What is read
becomes type stubs in a cache folder, which is not committed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

CACHE = Path(__file__).parents[2] / ".cache/tensorrt-bindings"
PATIENCE_S = 120


@dataclass(frozen=True)
class Bindings:
    """One version's wheel.

    Attributes:
        version: as the tests call it.
        requirement: what pip downloads.
        libraries: soname suffix of the libraries it links against.
    """

    version: str
    requirement: str
    libraries: str


VERSIONS = (
    Bindings("8.6", "tensorrt-bindings==8.6.1", "8"),
    Bindings("10.3", "tensorrt-cu12-bindings==10.3.0", "10"),
    Bindings("11.4", "tensorrt-cu13-bindings==11.4.0.106", "11"),
)

_LOOK = r"""
import inspect, keyword, re
import tensorrt_bindings as trt

def split(text):
    parts, depth, quote, last = [], 0, "", 0
    for i, c in enumerate(text):
        if quote:
            quote = "" if c == quote else quote
        elif c in "'\"":
            quote = c
        elif c in "([{<":
            depth += 1
        elif c in ")]}" or (c == ">" and text[i - 1] != "-"):
            depth -= 1
        elif c == "," and depth == 0:
            parts.append(text[last:i])
            last = i + 1
    return [p.strip() for p in [*parts, text[last:]] if p.strip()]

def type_of(text):
    name = text.strip().rpartition(".")[2]
    return name if name in CLASSES else "Any"

def signature(name, value, doc):
    found = re.match(re.escape(name) + r"\((.*)\) -> ([^\n]*)", doc or "")
    if not found:
        return "*a: Any, **k: Any", "Any"
    words, default = [], False
    for part in split(found[1]):
        word = part.partition(":")[0].partition("=")[0].strip()
        default = default or " = " in part
        if keyword.iskeyword(word) or not word.isidentifier():
            return "*a: Any, **k: Any", type_of(found[2])
        words.append(word + (": Any = ..." if default else ": Any") if word != "self" else word)
    return ", ".join(words), type_of(found[2])

def describe(owner):
    for name, value in vars(owner).items():
        if name == "__init__":
            yield "    def __init__(self, *a: Any, **k: Any) -> None: ..."
        elif name == "__getitem__":
            yield "    def __iter__(self) -> Any: ..."
        elif name.startswith("__"):
            continue
        elif isinstance(value, property):
            found = re.search(r"-> ([^\n]*)", (value.fget and value.fget.__doc__) or "")
            yield f"    {name}: {type_of(found[1]) if found else 'Any'}"
        elif callable(value) and not inspect.isclass(value):
            doc = getattr(value, "__doc__", "") or ""
            arguments, result = signature(name, value, doc)
            mark = "    @staticmethod\n" if isinstance(value, staticmethod) else ""
            yield f"{mark}    def {name}({arguments}) -> {result}: ..."
        else:
            yield f"    {name}: Any"

CLASSES = {n for n, v in vars(trt).items() if inspect.isclass(v) and not n.startswith("_")}
lines = ["from typing import Any"]
for name, value in vars(trt).items():
    if name.startswith("__") and name != "__version__":
        continue
    if name in CLASSES:
        bases = [b.__name__ for b in value.__bases__ if b.__name__ in CLASSES and b.__name__ != name]
        lines.append(f"class {name}({', '.join(bases)}):")
        lines += [*describe(value)] or ["    ..."]
    else:
        lines.append(f"{name}: Any")
print("\n".join(lines))
"""


def stubs(bindings: Bindings) -> Path:
    """A folder with stubs of a version's `tensorrt`; skips the test where they cannot be made, with the reason."""
    folder = CACHE / f"{bindings.version}-cp{sys.version_info.major}{sys.version_info.minor}"
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix=".partial-") as name:
            made = Path(name) / "made"
            _make(bindings, made)
            with contextlib.suppress(OSError):  # another worker was faster, and its folder is as good
                made.rename(folder)
    return folder


def _make(bindings: Bindings, folder: Path) -> None:
    _unpack(bindings, folder)
    _link(bindings, folder)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder)}
    words = [sys.executable, "-c", _LOOK]
    looked = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if looked.returncode:
        pytest.skip(f"the bindings of {bindings.version} do not import: {looked.stderr.splitlines()[-1]}")
    (folder / "tensorrt").mkdir()
    (folder / "tensorrt/__init__.pyi").write_text(looked.stdout)


def _unpack(bindings: Bindings, folder: Path) -> None:
    """Downloads the wheel with pip and unpacks it."""
    wheels = folder / "wheel"
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    words += ["--only-binary=:all:", "--dest", str(wheels), bindings.requirement]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{bindings.requirement} is not reachable in {PATIENCE_S} s")
    found = list(wheels.glob("*.whl"))
    if done.returncode or not found:
        why = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no wheel"]
        pytest.skip(f"{bindings.requirement} is not to be had for this Python: {why[-1]}")
    with zipfile.ZipFile(found[0]) as archive:
        archive.extractall(folder)
    shutil.rmtree(wheels)


def _link(bindings: Bindings, folder: Path) -> None:
    """Libraries that define what the extension module links against, and nothing more."""
    tools = [shutil.which(name) for name in ("cc", "nm")]
    if None in tools:
        pytest.skip("a C compiler and nm are needed to link the bindings against nothing")
    (module,) = (folder / "tensorrt_bindings").glob("tensorrt*.so")
    listed = subprocess.run(["nm", "-D", "--undefined-only", module], capture_output=True, text=True, check=True).stdout
    wanted = set(re.findall(r"^\s+U (\w+)$", listed, re.M))
    ours = sorted(
        s for s in wanted if re.match(r"(create|get|init)\w*(INTERNAL|Registry|Version|Plugins)$|_ZN\d+nv", s)
    )
    source = folder / "empty.c"
    source.write_text("\n".join(f"void *{symbol}(void) {{ return 0; }}" for symbol in ours))
    for name in ("nvinfer", "nvonnxparser", "nvinfer_plugin", "nvparsers"):
        library = f"lib{name}.so.{bindings.libraries}"
        words = ["cc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{library}", "-o", str(folder / library), str(source)]
        subprocess.run(words, check=True, capture_output=True)
