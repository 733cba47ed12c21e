"""Laws of the request: what it was asked for stays, and what it says of itself is true where it runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from cpd_edge.errors import StoreError
from cpd_edge.measure.devices import Device, add
from cpd_edge.pipeline.job import Job
from cpd_edge.pipeline.outcome import limits_of
from cpd_edge.pipeline.request import Request
from cpd_edge.pipeline.rig import FULL
from cpd_edge.types import Budget

HALF = Budget(speedup=2)


def test_a_run_of_an_older_version_was_asked_for_the_usual_settings() -> None:
    """A setting that its record lacks was what it is by default, so no other one is taken on the way."""
    older = {k: v for k, v in Request("m.py:net", "digits", HALF).to_json().items() if k not in ("precision", "refine")}
    Request("m.py:net", "digits", HALF).require_same(older)
    with pytest.raises(StoreError, match="precision was 'fp32', now 'int8'"):
        Request("m.py:net", "digits", HALF, precision="int8").require_same(older)


@pytest.mark.parametrize(
    ("device", "runtime", "where", "no_gpu"),
    [
        ("local", "openvino", "measured on this machine's CPU with OpenVINO", True),
        ("local", "tensorrt", "measured on this machine's GPU with TensorRT", False),
        ("orin", "onnxruntime-cuda", "measured on device orin with ONNX Runtime with CUDA", False),
        ("orin", "onnxruntime", "measured on device orin with ONNX Runtime", False),
        ("simulated", "onnxruntime", "the device is simulated", True),
    ],
)
def test_a_report_says_where_it_was_measured(
    device: str, runtime: str, where: str, no_gpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And that no GPU took part only where that is known."""
    monkeypatch.setenv("CPD_EDGE_CONFIG", str(tmp_path))
    add(Device("orin", "ssh://orin"))
    said = limits_of(Request("m.py:net", "digits", HALF, device=device, runtime=runtime))
    assert where in said[0] and no_gpu == any("on a GPU or a Jetson" in line for line in said)
    assert (runtime == "onnxruntime-cuda") == any("those of launching them" in line for line in said)


@pytest.mark.parametrize(
    ("asked", "limit_s", "target"),
    [({}, 45.0, 0.01), ({"limit_s": 5.0}, 5.0, 0.01), ({"target": 0.03}, 45.0, 0.03)],
)
def test_the_final_bench_is_as_long_as_asked_for(asked: dict[str, float], limit_s: float, target: float) -> None:
    """What is not said is as ever, and the rest of the protocol always is; the record holds what was said."""
    request = Request("m.py:net", "digits", HALF, **asked)  # type: ignore[arg-type]
    job = Job(request, Path("run"), SimpleNamespace(), lambda *_: None)  # type: ignore[arg-type]
    assert job.rig.protocol == replace(FULL, limit_s=limit_s, target=target)
    assert request.to_json().items() >= asked.items() and Request.from_json(request.to_json()) == request
