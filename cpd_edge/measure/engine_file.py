"""Engine files: a built engine beside a JSON file that says what it was built from, by what and for what.

    model.plan         the engine, as the runtime wrote it
    model.plan.json    this module's record, format 1

An engine runs only with the runtime version and on the kind of GPU it was built for, and it does not know which ONNX
file it came from. The record knows, so a foreign or stale engine is refused by name before the runtime sees it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpd_edge.errors import EnvironmentMismatch, StoreError
from cpd_edge.measure.driver import Gpu
from cpd_edge.measure.layers import EngineLayer
from cpd_edge.store import read_json, write_bytes, write_json

FORMAT = 1
PORTABLE = "any"
"""Target of an engine that was built for no GPU in particular."""


@dataclass(frozen=True)
class EngineRecord:
    """What is known of one built engine.

    Attributes:
        onnx: name of the ONNX file it was built from.
        onnx_sha256: hash of that file.
        runtime: `tensorrt` or `tensorrt-rtx`.
        runtime_version: its full version, which the engine is bound to.
        arch: compute capability it was built for (`sm_87`), or `any`.
        gpu: name of the GPU it was built on; '' where it was built without one.
        power_mode: of the device while it was built (it decides which kernels win); '' where unknown.
        precision: as it was asked for; the layers say what became of it.
        settings: every choice that changes the engine: batch profile, workspace, level, DLA core, timing cache.
        seconds: time the build took.
        size_bytes: of the engine.
        engine_sha256: its hash.
        layers: what the runtime fused, in execution order; empty where it did not say.
        nodes: by ONNX name, what the node is called in every export of the same model (`layer1.0.conv1/Conv`).
        notes: what a reader should know, in words.
    """

    onnx: str
    onnx_sha256: str
    runtime: str
    runtime_version: str
    arch: str
    gpu: str
    power_mode: str
    precision: str
    settings: Mapping[str, Any]
    seconds: float
    size_bytes: int = 0
    engine_sha256: str = ""
    layers: tuple[EngineLayer, ...] = ()
    nodes: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def built_for(self) -> str:
        """Runtime, version and GPU, in words."""
        where = "no GPU in particular" if self.arch == PORTABLE else self.arch
        return f"{self.runtime} {self.runtime_version} on {where}{f' ({self.gpu})' if self.gpu else ''}"

    def to_json(self) -> dict[str, Any]:
        """As the file beside the engine holds it; layers stand under `regions`."""
        plain = {k: getattr(self, k) for k in self.__dataclass_fields__ if k != "layers"}
        return {"format": FORMAT, **plain, "regions": [layer.to_json() for layer in self.layers]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EngineRecord:
        """Inverse of `to_json`."""
        plain = {k: data[k] for k in cls.__dataclass_fields__ if k not in ("layers", "notes")}
        layers = tuple(EngineLayer.from_json(region) for region in data["regions"])
        return cls(**plain, layers=layers, notes=tuple(data["notes"]))


def record_path(engine: Path) -> Path:
    """Where the record of an engine lies."""
    return engine.with_name(engine.name + ".json")


def save_engine(path: Path, plan: bytes, record: EngineRecord) -> EngineRecord:
    """Writes an engine and its record, each atomically, and gives the record with hash and size filled in."""
    facts = {k: getattr(record, k) for k in record.__dataclass_fields__}
    done = EngineRecord(**{**facts, "size_bytes": len(plan), "engine_sha256": sha256(plan)})
    write_bytes(path, plan)
    write_json(record_path(path), done.to_json())
    return done


def read_record(engine: Path) -> EngineRecord:
    """The record of an engine, without looking at the engine.

    Raises:
        StoreError: there is none, or one of another format.
    """
    path = record_path(engine)
    if not path.is_file():
        raise StoreError(
            f"engine {engine} has no record: {path.name} is missing, so what it was built for is unknown",
            hint="build it with `cpd-edge build MODEL.onnx`, which writes both",
        )
    data = read_json(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else None
        raise StoreError(f"{path}: engine record format {found}, this version reads {FORMAT}", hint="build it again")
    return EngineRecord.from_json(data)


def load_engine(path: Path, onnx: Path | None = None) -> tuple[bytes, EngineRecord]:
    """An engine and its record, whole and not stale.

    Args:
        path: of the engine.
        onnx: the ONNX file that the engine must come from, if that is to be held.

    Raises:
        StoreError: the engine is missing or damaged, has no record, or comes from another ONNX file.
    """
    record = read_record(path)
    if not path.is_file():
        raise StoreError(f"engine {path} does not exist, only its record", hint=_rebuild(record))
    plan = path.read_bytes()
    if sha256(plan) != record.engine_sha256:
        raise StoreError(f"engine {path} is damaged: its content is not what its record says", hint=_rebuild(record))
    if onnx is not None and sha256(onnx.read_bytes()) != record.onnx_sha256:
        raise StoreError(
            f"engine {path} is stale: it was built from another {record.onnx} than {onnx} is now", hint=_rebuild(record)
        )
    return plan, record


def require_native(path: Path, record: EngineRecord, runtime: str, version: str, gpu: Gpu) -> None:
    """Refuses an engine that was built for another runtime, version or kind of GPU.

    Raises:
        EnvironmentMismatch: names the engine, what it was built for and what is here.
    """
    differs = [
        f"{what} is {here}, not {wanted}"
        for what, wanted, here in (
            ("the runtime", record.runtime, runtime),
            ("its version", record.runtime_version, version),
            ("the GPU", record.arch, record.arch if record.arch == PORTABLE else gpu.arch),
            ("the GPU's name", record.gpu, gpu.name if record.gpu else ""),
        )
        if wanted != here
    ]
    if differs:
        raise EnvironmentMismatch(
            f"engine {path} was built for {record.built_for}: here {'; '.join(differs)}", hint=_rebuild(record)
        )


def sha256(data: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(data).hexdigest()


def _rebuild(record: EngineRecord) -> str:
    return f"build it here: cpd-edge build {record.onnx} --runtime {record.runtime} --precision {record.precision}"


__all__ = [
    "PORTABLE", "EngineRecord", "load_engine", "read_record", "record_path", "require_native", "save_engine", "sha256",
]  # fmt: skip
