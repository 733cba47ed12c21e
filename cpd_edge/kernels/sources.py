"""The CUDA sources: which there are, which functions each holds, and what they were when something was made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from cpd_edge.bundled import bundled
from cpd_edge.errors import UsageError

ARCHITECTURES = ("sm_53", "sm_62", "sm_72", "sm_75", "sm_86", "sm_87", "sm_89", "sm_110", "sm_120")
"""What every source is compiled for in CI: Jetson Nano to Thor, and desktop GPUs from Turing to Blackwell."""

FUNCTIONS: Mapping[str, tuple[str, ...]] = {
    "preprocess": ("preprocess_f32", "preprocess_f16", "preprocess_i8"),
    "segmentation": ("argmax_f32", "argmax_f16", "palette"),
    "topk": ("topk_f32", "topk_f16"),
    "timing": ("l2_flush", "spin"),
}
"""Source file without its suffix, and the functions it holds."""

HEADERS = ("edge.cuh",)
"""Files that sources include by name."""

OPTIONS = ("--std=c++14", "--fmad=false")
"""Compiler options that belong to the sources: without them a result is not the reference's, bit for bit."""


def source_path(name: str) -> Path:
    """The file of source `name`.

    Raises:
        UsageError: there is no such source.
    """
    if name not in FUNCTIONS:
        owner = next((source for source, functions in FUNCTIONS.items() if name in functions), "")
        raise UsageError(
            f"no CUDA source is called {name!r}",
            hint=f"the function {name} is in the source {owner!r}" if owner else f"there are {', '.join(FUNCTIONS)}",
        )
    return bundled("kernels") / f"{name}.cu"


def source_of(function: str) -> str:
    """The source that holds `function`.

    Raises:
        UsageError: no source does.
    """
    for source, functions in FUNCTIONS.items():
        if function in functions:
            return source
    known = ", ".join(name for functions in FUNCTIONS.values() for name in functions)
    raise UsageError(f"no kernel is called {function!r}", hint=f"there are {known}")


def texts(name: str) -> dict[str, str]:
    """The source and every header it may include, by file name; the source first."""
    path = source_path(name)
    return {file: (path.parent / file).read_text(encoding="utf-8") for file in (path.name, *HEADERS)}


def digest(name: str) -> str:
    """SHA-256 of everything a cubin depends on besides compiler and architecture: texts and options."""
    state = hashlib.sha256()
    for part in (*OPTIONS, *(part for item in texts(name).items() for part in item)):
        state.update(part.encode() + b"\0")
    return state.hexdigest()
