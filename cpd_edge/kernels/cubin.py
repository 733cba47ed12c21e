"""Cubins of our sources, with what each kernel costs a GPU; made once and kept.

Kept under `$CPD_EDGE_CUBINS`, else in the user's cache, as `<source>-<arch>-<key>.cubin` and a `.json` beside it. The
key covers the source, the headers, the options and the compiler to its build, so a stale one is never found. The
`.json` comes last and holds the cubin's own hash: a file that was cut short or changed is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cpd_edge.errors import CpdError
from cpd_edge.kernels.nvrtc import Compiler, compile_text, compiler_for
from cpd_edge.kernels.sources import FUNCTIONS, OPTIONS, digest, texts
from cpd_edge.store import write_bytes, write_json


@dataclass(frozen=True)
class Usage:
    """What one kernel takes of a GPU, by ptxas's own account.

    Attributes:
        function: name to look up in the module.
        registers: per thread.
        spill_store_bytes, spill_load_bytes: registers that went to memory, per thread; 0 is what one wants.
        stack_bytes: local memory per thread.
        shared_bytes: static shared memory per block.
    """

    function: str
    registers: int
    spill_store_bytes: int
    spill_load_bytes: int
    stack_bytes: int
    shared_bytes: int


@dataclass(frozen=True)
class Cubin:
    """One source compiled for one architecture.

    Attributes:
        source: name of the source (`preprocess`).
        arch: `sm_87`.
        compiler: NVRTC's version to the build, `12.9.86`.
        data: the cubin, for `cuModuleLoadData`, PyCUDA's `module_from_buffer` or cuda-core's `ObjectCode.from_cubin`.
        usage: one entry a kernel, in the order of `FUNCTIONS`.
    """

    source: str
    arch: str
    compiler: str
    data: bytes
    usage: tuple[Usage, ...]

    @property
    def cuda(self) -> int:
        """CUDA major version of the compiler: the driver's must be no lower."""
        return int(self.compiler.partition(".")[0])


def compile_cubin(name: str, arch: str, *, cuda: int | None = None) -> Cubin:
    """Compiles source `name` for `arch`; needs NVRTC, and neither a GPU nor a driver. Nothing is kept.

    Args:
        name: `preprocess`, `segmentation`, `topk` or `timing`.
        arch: `sm_53` to `sm_121`, as far as a compiler here knows it.
        cuda: CUDA major version of the compiler; the oldest here that knows `arch` if None.

    Raises:
        UsageError: no such source, no such architecture, or a source that does not compile.
        RuntimeMissing: no NVRTC here compiles for `arch`.
    """
    sources, compiler = texts(name), compiler_for(arch, cuda)
    made = compile_text(compiler, sources, arch, OPTIONS)
    return Cubin(name, arch, compiler.release, made.cubin, parse_usage(made.log, FUNCTIONS[name]))


def cached_cubin(name: str, arch: str, *, cuda: int | None = None, folder: Path | None = None) -> Cubin:
    """`compile_cubin`, or what it made before.

    Args:
        name, arch, cuda: as in `compile_cubin`.
        folder: where cubins are kept; `cache_folder()` if None.

    Raises:
        UsageError, RuntimeMissing: as `compile_cubin`.
    """
    texts(name)
    compiler = compiler_for(arch, cuda)
    path = (folder or cache_folder()) / f"{name}-{arch}-{_key(name, compiler)}.cubin"
    kept = _read(path, name, arch, compiler)
    if kept is not None:
        return kept
    made = compile_cubin(name, arch, cuda=cuda)
    write_bytes(path, made.data)
    record = {"compiler": made.compiler, "sha256": _sha256(made.data), "usage": [asdict(u) for u in made.usage]}
    write_json(path.with_suffix(".json"), record)
    return made


def cache_folder() -> Path:
    """Where cubins are kept: `$CPD_EDGE_CUBINS`, else the user's cache."""
    given = os.environ.get("CPD_EDGE_CUBINS")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cpd-edge" / "cubins"


def parse_usage(log: str, functions: tuple[str, ...]) -> tuple[Usage, ...]:
    """Reads what `--ptxas-options=-v` printed, one entry for each of `functions`.

    Raises:
        CpdError: the log lacks a function, so that a new compiler's format is not taken for zero spills.
    """
    found: dict[str, Usage] = {}
    for part in re.split(r"Compiling entry function ", log)[1:]:
        name = re.match(r"'(\w+)'", part)
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        registers = re.search(r"Used (\d+) registers", part)
        shared = re.search(r"(\d+) bytes smem", part)
        if name and frame and registers:
            stack, stores, loads = map(int, frame.groups())
            found[name[1]] = Usage(name[1], int(registers[1]), stores, loads, stack, int(shared[1]) if shared else 0)
    missing = [name for name in functions if name not in found]
    if missing:
        raise CpdError(
            f"the compiler's log says nothing of {', '.join(missing)}: its format is not known here",
            hint="use NVRTC 12.9 or 13.0: pip install 'nvidia-cuda-nvrtc-cu12==12.9.*'",
        )
    return tuple(found[name] for name in functions)


def _key(name: str, compiler: Compiler) -> str:
    return _sha256(f"{digest(name)} {compiler.release}".encode())[:16]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read(path: Path, name: str, arch: str, compiler: Compiler) -> Cubin | None:
    """The cubin kept at `path`, or None where there is none that is whole."""
    try:
        record: Mapping[str, Any] = json.loads(path.with_suffix(".json").read_text())
        data = path.read_bytes()
        usage = tuple(Usage(**entry) for entry in record["usage"])
        whole = record["sha256"] == _sha256(data) and tuple(u.function for u in usage) == FUNCTIONS[name]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Cubin(name, arch, compiler.release, data, usage) if whole else None
