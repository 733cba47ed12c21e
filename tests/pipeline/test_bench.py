"""Laws of `bench` as a command: its modes, what it says of them, and its exit codes."""

from __future__ import annotations

import pytest
from cli.shell import Shell

from cpd_edge.cli.text import bench_text
from cpd_edge.measure.doctor import tiny_model

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
    words = ("bench", engine, "--against", "wide.onnx", *SHORT, "--end-to-end", "--frame", "32,32")
    found = shell(*words, "--json").json
    assert "faster" == found["outcome"]
    assert found["stages"]["engine"]["mean_ms"] < found["mean_ms"]
