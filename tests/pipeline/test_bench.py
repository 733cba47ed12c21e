"""Laws of `bench` as a command: its modes, what it says of them, and its exit codes."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from cli.shell import Shell
from measure.boards import fake_board
from typer.testing import CliRunner

from cpd_edge.cli.commands import app
from cpd_edge.cli.text import bench_text
from cpd_edge.measure import sensing, telemetry
from cpd_edge.measure.doctor import tiny_model
from cpd_edge.pipeline import bench

SHORT = ("--limit-s", "0.4", "--target", "0.5")


@pytest.fixture
def engine(shell: Shell) -> str:
    (shell.folder / "tiny.onnx").write_bytes(tiny_model())
    return "tiny.onnx"


def test_end_to_end_reports_stages_and_a_verdict_on_the_whole(shell: Shell, engine: str) -> None:
    """Each stage has an interval of as many samples as the whole; the budget limits the whole."""
    words = ("bench", engine, *SHORT, "--end-to-end", "--frame", "96,128", "--budget-ms", "1000")
    found = shell(*words, "--json").json
    assert ["preprocess", "engine", "postprocess"] == list(found["stages"])
    counts = {stage["latency_ms"]["n"] for stage in found["stages"].values()}
    assert {found["latency_ms"]["n"]} == counts
    means_ms = sum(stage["mean_ms"] for stage in found["stages"].values())
    assert found["mean_ms"] == pytest.approx(means_ms + found["unattributed_ms"])
    assert ("PASS", "96x128x3") == (found["verdict"], found["frame"])
    text = bench_text(found)
    assert "postprocess" in text and "of the mean" in text and "Pillow" in text


def test_end_to_end_compares_two_engines(shell: Shell, engine: str) -> None:
    """Both with their stages, in one window."""
    (shell.folder / "wide.onnx").write_bytes(tiny_model((3, 64, 64, 64)))
    patient = ("--limit-s", "60", "--target", "0.5")  # ten blocks are over in 2 s; one block alone proves no ratio
    words = ("bench", engine, "--against", "wide.onnx", *patient, "--end-to-end", "--frame", "32,32")
    found = shell(*words, "--json").json
    assert "faster" == found["outcome"]
    assert found["stages"]["engine"]["mean_ms"] < found["mean_ms"]


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sensors of a board that are read often, and windows that are short: here nothing is a measurement."""
    if sys.platform != "linux":
        pytest.skip("sensors are read on Linux")
    fake_board(tmp_path / "board")
    often = functools.partial(sensing.sensing, every_s=0.05, root=str(tmp_path / "board"))
    for where, name, value in (
        (bench, "sensing", often), (bench, "LEAST_S", -0.5), (bench, "IDLE_S", 0.2), (telemetry, "LEAST_S", 0.3),
    ):  # fmt: skip
        monkeypatch.setattr(where, name, value)
    monkeypatch.setattr(sensing, "IDLE_S", 0.2)
    (tmp_path / "tiny.onnx").write_bytes(tiny_model())
    return tmp_path


def benched(folder: Path, *words: str) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(app, ["bench", str(folder / "tiny.onnx"), *SHORT, *words, "--json"])
    return done.exit_code, json.loads(done.stdout)


def test_energy_is_sampled_for_with_the_idle_power_first(board: Path) -> None:
    """`--energy` samples for as long as an energy needs, whatever the interval, and gives it net of idle too."""
    code, found = benched(board, "--energy", "--limit-s", "1.5")
    assert (0, "", "module (VDD_IN)") == (code, found["energy"]["reason"], found["energy"]["scope"])
    assert found["energy"]["seconds"] >= 0.3 and found["energy"]["gross_mj"] > 0
    assert abs(found["energy"]["net_mj"]) < 1e-3 * found["energy"]["gross_mj"]
    assert "mJ net of idle; 9.25 W of the module (VDD_IN)" in bench_text(found)


def test_a_device_that_slowed_itself_down_gives_no_verdict_to_rely_on(board: Path) -> None:
    """Exit code 4 and the evidence, also where the samples are inside the budget."""
    (board / "board/sys/class/thermal/cooling_device0/cur_state").write_text("2\n")
    code, found = benched(board, "--budget-ms", "1000")
    assert (4, ["cpu-throttle-alert was active (state 2)"]) == (code, found["void"])
    assert "VOID: the device slowed itself down" in bench_text(found)


def test_without_sensors_the_reason_stands_in_place_of_a_number(board: Path) -> None:
    """No rail, no counter: no energy, and the measurement stands."""
    shutil.rmtree(board / "board/sys")
    code, found = benched(board)
    assert (0, None, []) == (code, found["energy"]["gross_mj"], found["void"])
    assert "energy not measured: no power rail" in bench_text(found)
