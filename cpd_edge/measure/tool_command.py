"""Command lines for `trtexec`, for devices where TensorRT has no Python: lists of words, and no shell.

Its options and its defaults changed between versions. These lines say everything, so that a number means the same
whichever version made it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpd_edge.errors import CpdError, RuntimeMissing, UsageError
from cpd_edge.measure.tool_exports import Version

TOOL = "trtexec"
JETPACK = Path("/usr/src/tensorrt/bin/trtexec")
"""Where JetPack puts it, which is on nobody's path."""

_OLDEST = (8, 4)
_SKIPS_INFERENCE = (8, 6)
_HAS_LEVELS = (8, 6)
_STRONGLY_TYPED = (11, 0)


@dataclass(frozen=True)
class Exports:
    """Files that a benchmark writes."""

    times: Path
    profile: Path
    layers: Path
    log: Path

    @classmethod
    def into(cls, folder: Path, name: str) -> Exports:
        """`NAME.times.json`, `NAME.profile.json`, `NAME.layers.json` and `NAME.log` in a folder."""
        return cls(*(folder / f"{name}.{end}" for end in ("times.json", "profile.json", "layers.json", "log")))


def find_tool() -> Path:
    """The tool: on the path, or where JetPack puts it.

    Raises:
        RuntimeMissing: it is in neither place.
    """
    found = shutil.which(TOOL)
    if found:
        return Path(found)
    if os.access(JETPACK, os.X_OK):
        return JETPACK
    raise RuntimeMissing(f"{TOOL} is neither on the path nor at {JETPACK}", hint="on a Jetson: apt install tensorrt")


def build_command(
    tool: Path,
    version: Version,
    onnx: Path,
    engine: Path,
    *,
    precision: str = "fp32",
    shapes: Sequence[tuple[str, Sequence[int]]] = (),
    workspace_mib: int | None = None,
    level: int | None = None,
    dla_core: int | None = None,
    timing_cache: Path | None = None,
) -> list[str]:
    """The words that build an engine and run nothing.

    Args:
        tool: from `find_tool`.
        version: of TensorRT.
        onnx: the model; from 11 on its types are the precision.
        engine: file to write.
        precision: `fp32`, `tf32`, `fp16`, `int8` or `int8+fp16`.
        shapes: name and shape of each free input: the smallest, usual and largest of one input, or one of each.
        workspace_mib, level, dla_core, timing_cache: as in `EngineSpec`.

    Raises:
        UsageError: this version cannot.
    """
    _require(version, _OLDEST, "these command lines")
    words = [str(tool), f"--onnx={onnx}", f"--saveEngine={engine}", "--profilingVerbosity=detailed"]
    words.append("--skipInference" if version >= _SKIPS_INFERENCE else "--buildOnly")
    words += _precision(version, precision)
    words += _shapes(shapes)
    if workspace_mib is not None:
        words.append(f"--memPoolSize=workspace:{workspace_mib}")
    if level is not None:
        _require(version, _HAS_LEVELS, "builder optimisation levels")
        words.append(f"--builderOptimizationLevel={level}")
    if dla_core is not None:
        words += [f"--useDLACore={dla_core}", "--allowGPUFallback"]
    return [*words, f"--timingCacheFile={timing_cache}"] if timing_cache else words


def bench_command(
    tool: Path,
    version: Version,
    engine: Path,
    exports: Exports,
    *,
    shape: tuple[str, Sequence[int]] | None = None,
    warmup_ms: int = 500,
    duration_s: int = 10,
    cuda_graph: bool = False,
    spin_wait: bool = True,
    transfers: bool = False,
    dla_core: int | None = None,
) -> list[str]:
    """The words that time an engine and export everything, the same protocol in every version.

    Raises:
        UsageError: this version cannot.
    """
    _require(version, _OLDEST, "these command lines")
    newer = version >= _STRONGLY_TYPED
    words = [str(tool), f"--loadEngine={engine}", f"--warmUp={warmup_ms}", f"--duration={duration_s}"]
    words += ["--iterations=10", "--avgRuns=1"]
    if shape is not None:
        words.append(f"--shapes={shape[0]}:{_joined(shape[1])}")
    for wanted, on, off in (
        (cuda_graph, "--useCudaGraph", "--noCudaGraph"),
        (spin_wait, "--useSpinWait", "--noSpinWait"),
    ):
        words += ([] if wanted else [off]) if newer else ([on] if wanted else [])
    if transfers == newer:  # the default is to copy before 11, and not to copy from 11 on
        words.append("--includeDataTransfers" if newer else "--noDataTransfers")
    words += [] if newer else ["--separateProfileRun"]
    words += [] if dla_core is None else [f"--useDLACore={dla_core}"]
    return [
        *words, f"--exportTimes={exports.times}", f"--exportProfile={exports.profile}",
        f"--exportLayerInfo={exports.layers}", "--profilingVerbosity=detailed",
    ]  # fmt: skip


def run_tool(words: Sequence[str], log: Path, run: Callable[..., Any] = subprocess.run) -> str:
    """Runs a command line without a shell, keeps what it prints in `log`, and gives it back.

    Raises:
        CpdError: the tool failed; with its last errors.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    done = run(list(words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False)
    log.write_text(done.stdout)
    if done.returncode != 0:
        errors = [line.partition("[E] ")[2] for line in done.stdout.splitlines() if "[E] " in line]
        said = "; ".join(errors[-3:]) or "no error printed"
        tool = Path(words[0]).name
        raise CpdError(f"{tool} ended with status {done.returncode}: {said}", hint=f"all it said is in {log}")
    return str(done.stdout)


def _precision(version: Version, precision: str) -> list[str]:
    flags = {
        "fp32": ["--noTF32"],
        "tf32": [],
        "fp16": ["--fp16"],
        "int8": ["--int8"],
        "int8+fp16": ["--int8", "--fp16"],
    }
    if precision not in flags:
        raise UsageError(f"precision {precision!r}", hint=f"one of {', '.join(flags)}")
    return [f for f in flags[precision] if version < _STRONGLY_TYPED or f == "--noTF32"]


def _shapes(shapes: Sequence[tuple[str, Sequence[int]]]) -> list[str]:
    """Profile options: one shape, or the smallest, usual and largest."""
    if not shapes:
        return []
    if len(shapes) not in (1, 3):
        raise UsageError(f"{len(shapes)} shapes: one, or the smallest, usual and largest")
    names = ("min", "opt", "max")
    each = list(shapes) * (3 // len(shapes))
    return [f"--{which}Shapes={name}:{_joined(dims)}" for which, (name, dims) in zip(names, each, strict=True)]


def _joined(shape: Sequence[int]) -> str:
    return "x".join(str(extent) for extent in shape)


def _require(version: Version, oldest: Version, what: str) -> None:
    if version < oldest:
        raise UsageError(
            f"{what} need TensorRT {'.'.join(map(str, oldest))} or newer, this is "
            f"{'.'.join(map(str, version)) or 'unknown'}"
        )


__all__ = ["Exports", "bench_command", "build_command", "find_tool", "run_tool"]
