"""Laws of trtexec's command lines: lists of words that mean the same in every version, and no shell."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from cpd_edge.errors import CpdError, RuntimeMissing, UsageError
from cpd_edge.measure import tool_command
from cpd_edge.measure.tool_command import Exports, bench_command, build_command, find_tool, run_tool

TOOL, ONNX, ENGINE = Path("trtexec"), Path("net.onnx"), Path("net.plan")
EXPORTS = Exports.into(Path("out"), "net")
SHAPES = [("x", (1, 3, 8, 8)), ("x", (4, 3, 8, 8)), ("x", (8, 3, 8, 8))]


def test_a_build_says_everything() -> None:
    """Profile, workspace, level, DLA, timing cache."""
    words = build_command(
        TOOL, (10, 3), ONNX, ENGINE, precision="int8+fp16", shapes=SHAPES, workspace_mib=256, level=5, dla_core=0,
        timing_cache=Path("t.cache"),
    )  # fmt: skip
    expected = [
        "trtexec", "--onnx=net.onnx", "--saveEngine=net.plan", "--profilingVerbosity=detailed", "--skipInference",
        "--int8", "--fp16", "--minShapes=x:1x3x8x8", "--optShapes=x:4x3x8x8", "--maxShapes=x:8x3x8x8",
        "--memPoolSize=workspace:256", "--builderOptimizationLevel=5", "--useDLACore=0", "--allowGPUFallback",
        "--timingCacheFile=t.cache",
    ]  # fmt: skip
    assert expected == words


@pytest.mark.parametrize(
    ("version", "flags", "skip"),
    [
        ((8, 5), {"--fp16"}, "--buildOnly"),
        ((8, 6, 1), {"--fp16"}, "--skipInference"),
        ((11, 0), set(), "--skipInference"),
    ],
)
def test_precision_is_a_flag_before_11_and_the_file_s_from_then_on(
    version: tuple[int, ...], flags: set[str], skip: str
) -> None:
    """And building alone is called otherwise before 8.6."""
    words = set(build_command(TOOL, version, ONNX, ENGINE, precision="fp16"))
    assert flags == words & {"--fp16", "--int8", "--noTF32"}
    assert skip in words


@pytest.mark.parametrize(
    ("version", "expected"),
    [((8, 6), {"--useSpinWait", "--noDataTransfers", "--separateProfileRun"}), ((11, 4), {"--noCudaGraph"})],
)
def test_one_protocol_whatever_the_defaults(version: tuple[int, ...], expected: set[str]) -> None:
    """No graph, spinning, no transfers: said before 11, and unsaid from 11 on, where it differs from the default."""
    words = bench_command(TOOL, version, ENGINE, EXPORTS, shape=("x", (1, 3, 8, 8)))
    switches = {w for w in words if w.startswith(("--use", "--no", "--include", "--separate"))}
    assert expected == switches
    assert {"--exportTimes=out/net.times.json", "--exportLayerInfo=out/net.layers.json"} <= set(words)


def test_the_other_protocol_is_said_as_well() -> None:
    """Graph and transfers, sleeping."""
    options = {"cuda_graph": True, "spin_wait": False, "transfers": True}
    before, after = (set(bench_command(TOOL, v, ENGINE, EXPORTS, **options)) for v in ((10, 3), (11, 0)))
    assert {"--useCudaGraph"} == {w for w in before if w.startswith(("--useC", "--useS", "--no", "--include"))}
    assert {"--noSpinWait", "--includeDataTransfers"} == {w for w in after if w.startswith(("--use", "--no", "--inc"))}


@pytest.mark.parametrize("version", [(), (8, 2)])
def test_versions_too_old_or_unknown_are_refused(version: tuple[int, ...]) -> None:
    """Their options are not these."""
    with pytest.raises(UsageError, match=r"need TensorRT 8\.4"):
        build_command(TOOL, version, ONNX, ENGINE)


def test_a_hostile_name_stays_one_word() -> None:
    """There is no shell to read it."""
    words = build_command(TOOL, (10, 3), Path("a; rm -rf $HOME #.onnx"), ENGINE)
    assert "--onnx=a; rm -rf $HOME #.onnx" in words


def script(path: Path, text: str) -> Path:
    """A stand-in for trtexec: a shell script that prints what the real one would."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_what_the_tool_says_is_kept(tmp_path: Path) -> None:
    """In the log, and given back."""
    tool = script(tmp_path / "tool", 'echo "said $1"')
    assert run_tool([str(tool), "--x=1 2"], tmp_path / "log") == (tmp_path / "log").read_text() == "said --x=1 2\n"


def test_a_failure_carries_the_tool_s_last_errors(tmp_path: Path) -> None:
    """And says where the rest is."""
    tool = script(tmp_path / "tool", 'echo "[01/01/2026] [E] Engine set up failed"; exit 1')
    with pytest.raises(CpdError, match=r"status 1: Engine set up failed\n.*log"):
        run_tool([str(tool)], tmp_path / "log")


def test_a_missing_tool_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is looked for on the path and where JetPack puts it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tool_command, "JETPACK", tmp_path / "jetpack")
    with pytest.raises(RuntimeMissing, match="neither on the path nor at"):
        find_tool()
    script(tmp_path / "jetpack", "true")
    assert find_tool() == tmp_path / "jetpack"
