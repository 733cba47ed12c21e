"""NVRTC: compiles a CUDA source to a cubin on a machine with no GPU, no driver and no toolkit.

The wheels `nvidia-cuda-nvrtc-cu11` (11.8: sm_35 to sm_90), `nvidia-cuda-nvrtc-cu12` (12.9: sm_50 to sm_121 without
sm_110) and `nvidia-cuda-nvrtc` (13: sm_75 on) hold different files, but a binding serves only the one it loads. A
toolkit's own library is found too, as on a Jetson. Each runs in a process of its own (`nvrtc_child.py`).

A cubin loads on a driver of its compiler's CUDA major version or a newer one (CUDA Compatibility, "Minor Version
Compatibility"), so the *oldest* compiler that knows an architecture is taken: its cubins load in more places.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cpd_edge.errors import RuntimeMissing, UsageError

Version = tuple[int, int]

_CHILD = Path(__file__).with_name("nvrtc_child.py")
_TOOLKITS = ("/usr/local/cuda", "/usr/local/cuda-*", "/opt/cuda", "/usr/lib/*-linux-gnu")
_WHEELS = {11: "nvidia-cuda-nvrtc-cu11==11.8.*", 12: "nvidia-cuda-nvrtc-cu12==12.9.*", 13: "nvidia-cuda-nvrtc"}
_LONGEST_S = 300


@dataclass(frozen=True)
class Compiler:
    """One NVRTC library.

    Attributes:
        version: CUDA version, `(12, 9)`.
        release: the same to the build, `12.9.86`; the version alone where the library does not say.
        architectures: real architectures it compiles for, `sm_53`.
        path: the library's file.
    """

    version: Version
    release: str
    architectures: tuple[str, ...]
    path: Path


@dataclass(frozen=True)
class Compiled:
    """What NVRTC made: the cubin and what ptxas said of it."""

    cubin: bytes
    log: str


@cache
def compilers() -> tuple[Compiler, ...]:
    """Every NVRTC that runs here, oldest first; one of each version."""
    found: dict[Version, Compiler] = {}
    for path in _libraries():
        answer = _ask({"library": str(path)})
        if isinstance(answer, str):  # another machine's library, or older than cubins from NVRTC (11.1)
            continue
        major, minor = answer["version"]
        names = tuple(f"sm_{number}" for number in answer["architectures"])
        found.setdefault((major, minor), Compiler((major, minor), answer["release"], names, path))
    return tuple(found[version] for version in sorted(found))


def compiler_for(arch: str, cuda: int | None = None) -> Compiler:
    """The oldest NVRTC here that compiles for `arch`.

    Args:
        arch: `sm_87`.
        cuda: CUDA major version it must have; any if None.

    Raises:
        UsageError: `arch` is not written like an architecture.
        RuntimeMissing: no NVRTC here can.
    """
    if not re.fullmatch(r"sm_\d{2,3}", arch):
        raise UsageError(f"{arch!r} is no GPU architecture", hint="write it as sm_87 (compute capability 8.7)")
    for compiler in compilers():
        if arch in compiler.architectures and cuda in (None, compiler.version[0]):
            return compiler
    have = "; ".join(f"{c.release} ({', '.join(c.architectures)})" for c in compilers()) or "none"
    wanted = f"NVRTC {cuda}" if cuda else "NVRTC"
    wheel = _WHEELS.get(cuda or (13 if arch == "sm_110" else 12), "nvidia-cuda-nvrtc")
    raise RuntimeMissing(
        f"no {wanted} here compiles for {arch}; found: {have}",
        hint=f"pip install '{wheel}'; 12.9 knows sm_50 to sm_121 without sm_110, 13 knows sm_75 on",
    )


def compile_text(compiler: Compiler, texts: Mapping[str, str], arch: str, options: Sequence[str]) -> Compiled:
    """Compiles the first of `texts`, which may include the others by name.

    Raises:
        UsageError: the compiler refuses the source; the message holds its log.
        RuntimeMissing: the compiler itself fails.
    """
    name = next(iter(texts))
    flags = [f"--gpu-architecture={arch}", "--ptxas-options=-v", *options]
    answer = _ask({"library": str(compiler.path), "texts": list(texts.items()), "options": flags})
    if isinstance(answer, str):
        raise RuntimeMissing(
            f"NVRTC {compiler.release} at {compiler.path} failed: {answer}", hint="install its wheel again"
        )
    if answer["status"]:
        raise UsageError(
            f"NVRTC {compiler.release} cannot compile {name} for {arch}:\n{answer['log'].strip()}",
            hint="correct the source, or install another NVRTC",
        )
    return Compiled(base64.b64decode(answer["cubin"]), answer["log"])


def _ask(request: Mapping[str, object]) -> dict[str, Any] | str:
    """The child's answer, or in words why there is none."""
    child = [sys.executable, "-I", str(_CHILD)]
    try:
        done = subprocess.run(child, input=json.dumps(request), capture_output=True, text=True, timeout=_LONGEST_S)
    except subprocess.TimeoutExpired:
        return f"no answer within {_LONGEST_S} s"
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        return f"exit status {done.returncode}, {last[0]}"
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _libraries() -> list[Path]:
    """Files that may be NVRTC: those of wheels in `sys.path`'s order, then those of toolkits."""
    wheels = [path for entry in sys.path if entry for path in Path(entry).glob("nvidia/*/lib/libnvrtc.so.*")]
    root = Path("/")
    toolkits = [
        path
        for pattern in _TOOLKITS
        for folder in sorted(root.glob(pattern.lstrip("/")))
        for place in ("lib64", "lib", "targets/*/lib", ".")
        for path in sorted(folder.glob(f"{place}/libnvrtc.so.*"))
    ]
    return list(dict.fromkeys(path.resolve() for path in [*wheels, *toolkits]))
