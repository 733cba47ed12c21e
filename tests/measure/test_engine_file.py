"""Laws of engine files: what was written is read again, and a foreign, stale or damaged engine is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cpd_edge.errors import EnvironmentMismatch, StoreError
from cpd_edge.measure.driver import Gpu
from cpd_edge.measure.engine_file import (
    PORTABLE,
    EngineRecord,
    load_engine,
    read_record,
    record_path,
    require_native,
    save_engine,
    sha256,
)
from cpd_edge.measure.layers import EngineLayer

ORIN = Gpu("Orin", "sm_87", "12.6", 8 << 30)
RECORD = EngineRecord(
    "net.onnx", sha256(b"onnx"), "tensorrt", "10.3.0", "sm_87", "Orin", "MAXN", "fp16", {"shapes": [[1, 3, 8, 8]]}, 1.5,
    layers=(EngineLayer("conv", "CaskConvolution", ("a",), "fp16", ("1x8",)),), nodes={"a": "layer1/Conv"},
    notes=("one note",),
)  # fmt: skip


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "net.plan"
    save_engine(path, b"plan", RECORD)
    return path


def test_an_engine_and_its_record_survive_a_round_trip(engine: Path) -> None:
    """load(save(x)) == x, with hash and size filled in."""
    plan, record = load_engine(engine)
    assert (b"plan", replace(RECORD, size_bytes=4, engine_sha256=sha256(b"plan"))) == (plan, record)


def test_an_engine_without_a_record_is_refused(tmp_path: Path) -> None:
    """What it was built for would be a guess."""
    path = tmp_path / "found.plan"
    path.write_bytes(b"plan")
    with pytest.raises(StoreError, match=r"found\.plan has no record"):
        load_engine(path)


def test_a_damaged_engine_is_refused(engine: Path) -> None:
    """One byte is enough."""
    engine.write_bytes(b"plam")
    with pytest.raises(StoreError, match=r"net\.plan is damaged"):
        load_engine(engine)


def test_a_stale_engine_is_refused(engine: Path, tmp_path: Path) -> None:
    """The ONNX file has changed since."""
    onnx = tmp_path / "net.onnx"
    onnx.write_bytes(b"onnx")
    assert load_engine(engine, onnx)[0] == b"plan"
    onnx.write_bytes(b"another")
    with pytest.raises(StoreError, match=r"net\.plan is stale"):
        load_engine(engine, onnx)


def test_a_record_of_another_format_is_refused(engine: Path) -> None:
    """With both numbers."""
    record_path(engine).write_text(json.dumps({"format": 2}))
    with pytest.raises(StoreError, match="format 2, this version reads 1"):
        read_record(engine)


@pytest.mark.parametrize(
    ("runtime", "version", "gpu", "words"),
    [
        ("tensorrt", "10.7.0", ORIN, "its version is 10.7.0, not 10.3.0"),
        ("tensorrt-rtx", "10.3.0", ORIN, "the runtime is tensorrt-rtx, not tensorrt"),
        ("tensorrt", "10.3.0", replace(ORIN, arch="sm_72", name="Xavier"), "the GPU is sm_72, not sm_87"),
        ("tensorrt", "10.3.0", replace(ORIN, name="Orin Nano"), "the GPU's name is Orin Nano, not Orin"),
    ],
)
def test_a_foreign_engine_is_refused_by_name(engine: Path, runtime: str, version: str, gpu: Gpu, words: str) -> None:
    """The engine, what it was built for, and what is here."""
    with pytest.raises(EnvironmentMismatch, match=rf"net\.plan was built for tensorrt 10\.3\.0 on sm_87 .*{words}"):
        require_native(engine, RECORD, runtime, version, gpu)


def test_a_native_engine_and_a_portable_one_are_taken(engine: Path) -> None:
    """A portable engine runs on any GPU of its runtime."""
    require_native(engine, RECORD, "tensorrt", "10.3.0", ORIN)
    portable = replace(RECORD, arch=PORTABLE, gpu="")
    require_native(engine, portable, "tensorrt", "10.3.0", replace(ORIN, arch="sm_120", name="RTX"))
