"""Laws of driving trtexec on another device: the same command lines, run by the real agent.

The shell script of `test_tool_run` stands in for the tool; no TensorRT is involved.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from loopback import device, over_pipes
from measure.test_tool_run import SCRIPT

from cpd_edge.errors import CpdError, RuntimeMissing
from cpd_edge.measure.station import Station
from cpd_edge.measure.tool_run import time_with_tool
from cpd_edge.measure.tool_there import tool_on

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the device's side runs on Linux")


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Station:
    """A device whose root holds what JetPack installs."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    tool = tmp_path / "board/usr/src/tensorrt/bin/trtexec"
    tool.parent.mkdir(parents=True)
    tool.write_text(SCRIPT)
    tool.chmod(0o755)
    return Station(device(tmp_path / "device"), connect=over_pipes(sys.executable), root=str(tmp_path / "board"))


def test_a_model_is_built_and_timed_on_a_device(there: Station, tmp_path: Path) -> None:
    """What it exports comes here; the engine stays there; a hostile name never reaches the device."""
    onnx = tmp_path / "net $(touch gone) #.onnx"
    onnx.write_bytes(b"onnx")
    done = time_with_tool(
        onnx, tmp_path / "out", tool=Path("trtexec"), run=tool_on(there), precision="fp16", device="o"
    )
    assert ("o", "10.3.0") == tuple(done.measurement.environment[k] for k in ("device", "runtime_version"))
    assert 7 == len(done.layers) and not done.engine.exists()
    said = done.exports.log.read_text()
    assert "gone" not in said and "--loadEngine=" in said
    there.close()


def test_what_fails_there_is_said_here(there: Station, tmp_path: Path) -> None:
    """In the tool's own words; and a device without the tool says how to get it."""
    tool = tmp_path / "board/usr/src/tensorrt/bin/trtexec"
    tool.write_text(SCRIPT.replace("*missing*", "*"))
    onnx = tmp_path / "net.onnx"
    onnx.write_bytes(b"onnx")
    with pytest.raises(CpdError, match="Failed to parse onnx file"):
        time_with_tool(onnx, tmp_path / "out", tool=Path("trtexec"), run=tool_on(there))
    tool.unlink()
    with pytest.raises(RuntimeMissing, match="apt install tensorrt"):
        time_with_tool(onnx, tmp_path / "out", tool=Path("trtexec"), run=tool_on(there))
    there.close()
