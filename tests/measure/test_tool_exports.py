"""Laws of imported files: another tool's samples become a measurement that says where it comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpd_edge.errors import DataError, EnvironmentMismatch
from cpd_edge.measure import capture, require_comparable
from cpd_edge.measure.tool_exports import ToolLog, read_log, read_profile, read_times, version_of
from cpd_edge.store import measurement_from, plain

EXPORTS = Path(__file__).parent / "exports"
TIMES = EXPORTS / "a100.times.json"

LOG_8 = """&&&& RUNNING TensorRT.trtexec [TensorRT v8502] # /usr/src/tensorrt/bin/trtexec --onnx=net.onnx --useCudaGraph
[06/17/2025-18:44:33] [I] === Build Options ===
[06/17/2025-18:44:33] [I] Precision: FP32+FP16
[06/17/2025-18:44:33] [I] === Inference Options ===
[06/17/2025-18:44:33] [I] Input inference shape : input=1x3x64x64
[06/17/2025-18:44:33] [I] Duration: 3s (+ 50ms warm up)
[06/17/2025-18:44:33] [I] Data transfers: Enabled
[06/17/2025-18:44:33] [I] Spin-wait: Disabled
[06/17/2025-18:44:33] [I] CUDA Graph: Enabled
[06/17/2025-18:44:33] [I] === Device Information ===
[06/17/2025-18:44:33] [I] Selected Device: Xavier
"""
"""Written by hand after public logs of TensorRT 8.5."""


def row(start: float, latency: float, *, dialect: str = "H2d", end_to_end: bool = False) -> dict[str, Any]:
    """One run as trtexec writes it, by hand after its source; a tenth of it is the copy in."""
    back = "D2h" if dialect == "H2d" else "Out"
    copy, end = 0.1 * latency, start + latency
    times = {
        "startEnqMs": start - 0.1, "endEnqMs": start, f"start{dialect}Ms": start, f"end{dialect}Ms": start + copy,
        "startComputeMs": start + copy, "endComputeMs": end, f"start{back}Ms": end, f"end{back}Ms": end,
        f"{dialect[0].lower()}{dialect[1:]}Ms": copy, "computeMs": latency - copy, f"{back.lower()}Ms": 0,
        "latencyMs": latency,
    }  # fmt: skip
    return {**times, "endToEndMs": latency} if end_to_end else times


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows))
    return path


def test_a_recorded_export_becomes_a_measurement() -> None:
    """Latencies in ns, starts in ns, without the five runs that began in the first 200 ms."""
    found = read_times(TIMES, device="A100", version=(8, 4))
    assert [1996800, 1995770, 1995770] == found.samples_ns[:3].tolist()
    assert (9, 201045000) == (len(found.samples_ns), int(found.starts_ns[0]))
    expected = {
        "imported": True, "warmup_dropped": 5, "format": "exportTimes from 8.4 on", "transfers": "off",
        "cuda_graph": "off", "device": "A100", "runtime_version": "8.4", "precision": "unknown", "clock": "CUDA events",
    }  # fmt: skip
    assert expected.items() <= found.environment.items()


def test_an_imported_measurement_is_kept_like_any_other() -> None:
    """load(save(x)) == x in the run folder's own form."""
    found = read_times(TIMES)
    again = measurement_from(plain(found))  # type: ignore[arg-type]
    assert found.environment == again.environment
    np.testing.assert_array_equal(found.samples_ns, again.samples_ns)


def test_an_imported_measurement_is_compared_with_none_of_ours() -> None:
    """Another protocol, another environment."""
    ours = capture("tensorrt", "8.4", 1, 1, (1, 3, 64, 64), protocol="back-to-back")
    with pytest.raises(EnvironmentMismatch, match="protocol"):
        require_comparable(ours, read_times(TIMES).environment)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([row(300, 2, dialect="In", end_to_end=True)], "the oldest"),
        ([row(300, 2, end_to_end=True)], "before 8.4"),
        ([row(300, 2)], "from 8.4 on"),
    ],
)
def test_the_three_formats_are_told_apart(tmp_path: Path, rows: list[dict[str, Any]], words: str) -> None:
    """By their keys; the numbers mean the same."""
    found = read_times(written(tmp_path / "t.json", rows))
    assert words in found.environment["format"]
    assert ([2_000_000], "on") == (found.samples_ns.tolist(), found.environment["transfers"])


@pytest.mark.parametrize(("metric", "ns"), [("latency", 2_000_000), ("compute", 1_800_000), ("enqueue", 100_000)])
def test_the_metric_chooses_the_part(tmp_path: Path, metric: Any, ns: int) -> None:
    """Copy, compute and copy; compute alone; the CPU's part alone."""
    found = read_times(written(tmp_path / "t.json", [row(300, 2)]), metric=metric)
    assert found.samples_ns.tolist() == pytest.approx([ns], abs=1)
    assert f"trtexec, {metric}," in found.environment["protocol"]


def test_a_run_shorter_than_the_warm_up_keeps_its_samples(tmp_path: Path) -> None:
    """Nothing would be left."""
    found = read_times(written(tmp_path / "t.json", [row(1, 2), row(4, 2)]))
    assert (2, 0) == (len(found.samples_ns), found.environment["warmup_dropped"])


def test_a_log_says_what_the_files_do_not() -> None:
    """Version, precision, shape, device, warm-up and switches."""
    log = read_log(LOG_8)
    assert ((8, 5, 2), "Xavier", 50.0) == (log.version, log.gpu, log.warmup_ms)
    found = read_times(TIMES, log=log).environment
    expected = {"device": "Xavier", "runtime_version": "8.5.2", "precision": "FP32+FP16", "shape": "1x3x64x64"}
    assert {**expected, "cuda_graph": "on", "spin_wait": "off"}.items() <= found.items()


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ((), {"cuda_graph": "unknown", "spin_wait": "unknown"}),
        ((10, 3, 0), {"cuda_graph": "off", "spin_wait": "off", "transfers": "on"}),
        ((11, 0, 0), {"cuda_graph": "on", "spin_wait": "on", "transfers": "off"}),
    ],
)
def test_defaults_are_the_version_s(version: tuple[int, ...], expected: dict[str, str]) -> None:
    """They changed with 11; of an unknown version nothing is claimed."""
    assert expected == {name: ToolLog().setting(name, version) for name in expected}


def test_the_command_line_overrules_the_defaults() -> None:
    """11 switches them off, what is before 11 switches them on."""
    newer = ToolLog(command=("trtexec", "--noCudaGraph", "--includeDataTransfers", "--warmUp=0"))
    assert ("off", "on", "on") == tuple(newer.setting(n, (11, 1)) for n in ("cuda_graph", "transfers", "spin_wait"))
    assert newer.warmup_ms == 0.0


@pytest.mark.parametrize(
    ("text", "version"),
    [("8502", (8, 5, 2)), ("100300", (10, 3, 0)), ("110300", (11, 3, 0)), ("11.1.0.106", (11, 1, 0, 106)), ("x", ())],
)
def test_versions_are_read_packed_and_dotted(text: str, version: tuple[int, ...]) -> None:
    """As the banner of each version has them."""
    assert version == version_of(text)


def test_a_recorded_profile_becomes_layer_times() -> None:
    """Medians, by the layer's name."""
    found = read_profile(EXPORTS / "a100.profile.json")
    assert (1, 7) == (found.runs, len(found.ms))
    assert 0.111616 == found.ms["Conv_0 + Relu_1"]


def test_a_profile_without_medians_gives_means(tmp_path: Path) -> None:
    """As before 8.4; layers of one name are added up."""
    rows = [{"count": 10}, *({"name": "a", "timeMs": 20, "averageMs": 2, "percentage": 50} for _ in range(2))]
    found = read_profile(written(tmp_path / "p.json", rows))
    assert ({"a": 4.0}, {}) == (found.ms, found.median_ms)


@pytest.mark.parametrize("text", ["[]", "{}", '[{"name": "x"}]', '[{"startEnqMs": 1}]', '[{"startEnqMs": "a"}]'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    """With the option that writes the right one."""
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"x\.json"):
        read_times(path)
    with pytest.raises(DataError, match="exportProfile"):
        read_profile(path)
