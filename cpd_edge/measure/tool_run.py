"""An ONNX file built and timed by `trtexec`, for devices where TensorRT has no Python."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpd_edge.errors import DataError, RuntimeMissing
from cpd_edge.measure.layers import EngineLayer, layers_from_inspector, timed
from cpd_edge.measure.tool_command import Exports, bench_command, build_command, find_tool, run_tool
from cpd_edge.measure.tool_exports import Version, read_log, read_profile, read_times
from cpd_edge.types import Measurement

Run = Callable[..., Any]


@dataclass(frozen=True)
class ToolRun:
    """What came of one run of the tool.

    Attributes:
        measurement: its samples, marked as imported.
        layers: what was fused, with times.
        engine: the engine it wrote; it has no record, since the tool does not say all that a record says.
        exports: its files.
    """

    measurement: Measurement
    layers: tuple[EngineLayer, ...]
    engine: Path
    exports: Exports


def tool_version(tool: Path, run: Run = subprocess.run) -> Version:
    """The TensorRT version that the tool prints at the head of everything.

    Raises:
        RuntimeMissing: it prints none.
    """
    done = run([str(tool), "--help"], capture_output=True, text=True, errors="replace", check=False)
    version = read_log(str(done.stdout)).version
    if not version:
        raise RuntimeMissing(f"{tool} does not say which TensorRT it belongs to", hint=f"run {tool} --help by hand")
    return version


def time_with_tool(
    onnx: Path,
    folder: Path,
    *,
    precision: str = "fp32",
    shape: tuple[str, Sequence[int]] | None = None,
    device: str = "",
    tool: Path | None = None,
    run: Run = subprocess.run,
    **bench: Any,
) -> ToolRun:
    """Builds an engine, times it, and reads what was exported.

    Args:
        onnx: the model; from TensorRT 11 on its types are the precision.
        folder: for the engine, logs and exports.
        precision: as in `build_command`.
        shape: name and shape of the input, where the model leaves it free.
        device: its name, for the environment.
        tool: `trtexec`; looked for if None.
        run: runs a list of words, as `subprocess.run` does.
        bench: any option of `bench_command`.

    Raises:
        RuntimeMissing: the tool is not there.
        CpdError: it failed; with its last errors.
    """
    if not onnx.is_file():
        raise DataError(f"no model at {onnx}", hint="give an ONNX file, such as RUN/pruned.onnx")
    tool = tool or find_tool()
    version = tool_version(tool, run)
    folder.mkdir(parents=True, exist_ok=True)
    engine, exports = folder / f"{onnx.stem}.plan", Exports.into(folder, onnx.stem)
    shapes = [shape] if shape else []
    run_tool(
        build_command(tool, version, onnx, engine, precision=precision, shapes=shapes),
        folder / f"{onnx.stem}.build.log",
        run,
    )
    said = run_tool(bench_command(tool, version, engine, exports, shape=shape, **bench), exports.log, run)
    measurement = read_times(
        exports.times,
        name=onnx.stem,
        log=read_log(said),
        version=version,
        device=device,
        precision=precision,
        shape="x".join(map(str, shape[1])) if shape else "",
    )
    layers = timed(layers_from_inspector(exports.layers.read_text()), read_profile(exports.profile).ms)
    return ToolRun(measurement, layers, engine, exports)


__all__ = ["ToolRun", "time_with_tool", "tool_version"]
