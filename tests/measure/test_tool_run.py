"""Laws of driving trtexec: what it exports comes back as a measurement.

A shell script stands in for it, which prints a banner and copies the recorded exports; no TensorRT is involved.
"""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from cpd_edge.errors import CpdError, DataError, RuntimeMissing
from cpd_edge.measure.tool_run import time_with_tool, tool_version

EXPORTS = Path(__file__).parent / "exports"
SCRIPT = f"""#!/bin/sh
echo "&&&& RUNNING TensorRT.trtexec [TensorRT v100300] [b1] # trtexec $*"
for word in "$@"; do
  case "$word" in
    --onnx=*missing*) echo "[01/01/2026-00:00:00] [E] Failed to parse onnx file"; exit 1 ;;
    --saveEngine=*) echo plan > "${{word#*=}}" ;;
    --exportTimes=*) cp '{EXPORTS}/a100.times.json' "${{word#*=}}" ;;
    --exportProfile=*) cp '{EXPORTS}/a100.profile.json' "${{word#*=}}" ;;
    --exportLayerInfo=*) cp '{EXPORTS}/a100.layers.json' "${{word#*=}}" ;;
  esac
done
"""


@pytest.fixture
def tool(tmp_path: Path) -> Path:
    path = tmp_path / "trtexec"
    path.write_text(SCRIPT)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_a_model_is_built_timed_and_read(tool: Path, tmp_path: Path) -> None:
    """Under a hostile name too: the samples, the layers with their times, and what was switched."""
    onnx = tmp_path / "net $(touch gone) #.onnx"
    onnx.write_bytes(b"onnx")
    done = time_with_tool(onnx, tmp_path / "out", tool=tool, precision="fp16", shape=("x", (1, 3, 8, 8)), device="Orin")
    assert done.engine.read_text() == "plan\n"
    assert not (Path.cwd() / "gone").exists()
    expected = {
        "device": "Orin",
        "runtime_version": "10.3.0",
        "precision": "fp16",
        "shape": "1x3x8x8",
        "spin_wait": "on",
    }
    assert expected.items() <= done.measurement.environment.items()
    assert (14, 7) == (
        len(done.measurement.samples_ns) + done.measurement.environment["warmup_dropped"],
        len(done.layers),
    )
    assert {"Conv_0 + Relu_1": 0.111616, "MaxPool_2": 0.062464}.items() <= {
        la.name: la.ms for la in done.layers
    }.items()


def test_a_failed_build_ends_there(tool: Path, tmp_path: Path) -> None:
    """With the tool's own words."""
    onnx = tmp_path / "missing.onnx"
    onnx.write_bytes(b"onnx")
    with pytest.raises(CpdError, match="Failed to parse onnx file"):
        time_with_tool(onnx, tmp_path / "out", tool=tool)


def test_what_is_not_there_is_said(tool: Path, tmp_path: Path) -> None:
    """No model; a tool that is none."""
    with pytest.raises(DataError, match="no model at"):
        time_with_tool(tmp_path / "no.onnx", tmp_path, tool=tool)
    assert (10, 3, 0) == tool_version(tool)
    with pytest.raises(RuntimeMissing, match="does not say which TensorRT"):
        tool_version(Path("/bin/echo"))
