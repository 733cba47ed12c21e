"""Laws of `doctor --gpu`: without a GPU every check says why it is not possible; with an emulated one it tells right
from wrong. What the checks say of a real GPU nobody has seen yet.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from cli.shell import Shell
from measure.emulated_gpu import ORIN
from pipeline.emulated_tensorrt import ComputingCuda, emulated_tensorrt

from cpd_edge.measure import engine_runner
from cpd_edge.measure.driver import find_gpu
from cpd_edge.pipeline import engines, gpu_check
from cpd_edge.pipeline.gpu_check import CHECKS, PROVES

CHECKLIST = Path(__file__).parents[2] / "docs/gpu-checklist.md"


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An emulated Orin, and those checks that an emulation can answer."""
    device = ComputingCuda()
    monkeypatch.setitem(sys.modules, "tensorrt", emulated_tensorrt(device))
    monkeypatch.setattr(engine_runner, "cuda_runtime", lambda: device)
    monkeypatch.setattr(gpu_check, "cuda_runtime", lambda: device)
    for module in (engine_runner, engines, gpu_check):
        monkeypatch.setattr(module, "require_gpu", lambda purpose: ORIN)
    monkeypatch.setenv("CPD_EDGE_CACHE", str(tmp_path / "cache"))
    beyond = ("noise floor", "kernels", "telemetry", "ONNX Runtime on CUDA", "trtexec")
    monkeypatch.setattr(gpu_check, "CHECKS", {n: c for n, c in CHECKS.items() if n not in beyond})


@pytest.mark.skipif(find_gpu()[0] is not None, reason="this machine has a GPU")
def test_without_a_driver_every_check_says_so(shell: Shell) -> None:
    """Nothing crashes, nothing is called passed, and the exit code is that of an environment that does not do."""
    done = shell("doctor", "--gpu", "--out", "found.json", "--json")
    assert done.code == 4
    assert [row["name"] for row in done.json["checks"]] == list(CHECKS)
    assert all(row["reason"] for row in done.json["checks"] if row["state"] != "passed")
    assert {"passed", "not possible"} >= {row["state"] for row in done.json["checks"]}
    assert "no NVIDIA driver" in done.json["checks"][0]["reason"]
    assert json.loads((shell.folder / "found.json").read_text())["checks"] == done.json["checks"]


def test_on_a_device_that_works_everything_passes(emulated: None, tmp_path: Path) -> None:
    """Engines in three precisions, their outputs, times, a graph, and refusals; all in one file."""
    seen: list[str] = []
    found = gpu_check.gpu_check(tmp_path / "out.json", lambda fraction, name: seen.append(name))
    assert {row["name"]: row["reason"] for row in found["checks"] if row["state"] != "passed"} == {}
    assert (found["possible"], found["failed"], seen[:2]) == (True, [], ["driver", "packages"])
    by_name = {row["name"]: row["figures"] for row in found["checks"]}
    assert by_name["driver"]["arch"] == "sm_87"
    assert by_name["outputs fp32"]["error"] < 1e-4
    assert by_name["layer times"]["sum_ms"] == pytest.approx(by_name["layer times"]["inference_ms"] - 0.02)
    assert "its version is 10.3.0, not 0.0.0" in by_name["foreign and stale engines"]["said"][0]


def test_what_does_not_hold_is_failed_and_named(
    emulated: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs that are off by more than allowed, with how much; the other checks go on."""
    monkeypatch.setattr(gpu_check, "TOLERANCES", {"fp32": -1.0, "fp16": 1.0, "int8": 1.0})
    found = gpu_check.gpu_check(tmp_path / "out.json")
    assert found["failed"] == ["outputs fp32"]
    (row,) = [row for row in found["checks"] if row["state"] == "failed"]
    assert "of the largest, -1 is allowed" in row["reason"]


def test_what_nobody_foresaw_fails_one_check_and_no_other(
    emulated: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A binding that has another name on a device is a result."""

    def surprised(bench: gpu_check.Bench) -> dict[str, object]:
        raise AttributeError("no attribute 'set_input_shape'")

    monkeypatch.setattr(gpu_check, "CHECKS", {"driver": surprised, "packages": gpu_check.packages})
    states = [(row["state"], row["reason"]) for row in gpu_check.gpu_check(tmp_path / "out.json")["checks"]]
    assert states == [("failed", "AttributeError: no attribute 'set_input_shape'"), ("passed", "")]


def test_a_check_that_ends_the_process_is_named_in_the_file(
    emulated: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written before it begins."""

    def crashes(bench: gpu_check.Bench) -> dict[str, object]:
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu_check, "CHECKS", {"driver": gpu_check.driver, "packages": crashes})
    with pytest.raises(KeyboardInterrupt):
        gpu_check.gpu_check(tmp_path / "out.json")
    states = [(row["name"], row["state"]) for row in json.loads((tmp_path / "out.json").read_text())["checks"]]
    assert states == [("driver", "passed"), ("packages", "begun")]


def test_the_checklist_lists_every_check() -> None:
    """In order, with what it proves."""
    rows = dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|$", CHECKLIST.read_text(), re.M)[1:])
    rows.pop("---", None)
    assert rows == dict(PROVES)
