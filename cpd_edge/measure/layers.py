"""Layers of a built engine: what the runtime fused, read from its inspector, from a build log, or from old exports.

Four dialects are told apart by what they hold, not by a version number:

- inspector JSON with one object a layer (`--exportLayerInfo`, detailed profiling verbosity), whose tensors carry
  `Format/Datatype` until TensorRT 10 and `Datatype` from 11;
- inspector JSON with one name a layer (any other verbosity);
- the build log's table from TensorRT 11 and TensorRT-RTX on (`Layers:`, then `Name: ..., LayerType: ...`);
- the build log's table before that (`Engine Layer Information:`, then `Layer(Type): name, Tactic: ...`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cpd_edge.errors import DataError

TABLES = ("Layers:", "Engine Layer Information:")
"""How the message begins with which a builder prints the layers of a finished engine."""

_TYPES: Mapping[str, str] = {
    "float": "fp32", "fp32": "fp32", "half": "fp16", "fp16": "fp16", "bfloat16": "bf16", "bf16": "bf16", "fp8": "fp8",
    "fp4": "fp4", "int8": "int8", "int4": "int4", "uint8": "uint8", "int32": "int32", "int64": "int64", "bool": "bool",
}  # fmt: skip
_ARITHMETIC = ("fp4", "int4", "fp8", "int8", "fp16", "bf16", "fp32")
"""Types that a network computes in; the others count, index and mask."""

_ONNX = re.compile(r"\[ONNX Layer: (.+?)\](?=$|[\x1e\x1f\s\[])")
_FIELD = re.compile(
    r"(?:^|, )(Name|LayerType|Inputs|Constants|Outputs|TacticName|TacticValue|StreamId|EventId|Metadata): "
)
_OLD = re.compile(r"Layer\((?P<type>[^)]*)\): (?P<rest>.*)$")
_OLD_TENSOR = re.compile(r" ?[\[(](?P<type>[A-Z]\w+)[\[(](?P<dims>[-\d,]*)[\])]")


@dataclass(frozen=True)
class EngineLayer:
    """One kernel, or group of kernels, that the runtime times as one.

    Attributes:
        name: as the runtime's profiler calls it.
        type: as the runtime names it (`CaskConvolution`, `gemm`, `Reformat`); '' where only names are known.
        onnx: names of the ONNX nodes in it, as far as the runtime says; empty for reformats and synchronisation.
        precision: arithmetic types of what it reads, then `→` and those of what it writes where they differ.
        outputs: shapes of what it writes (`1x64x32x32`).
        tactic: name of the kernel chosen, where known.
        ms: its time, where measured.
    """

    name: str
    type: str = ""
    onnx: tuple[str, ...] = ()
    precision: str = ""
    outputs: tuple[str, ...] = ()
    tactic: str = ""
    ms: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As it stands under `regions` in files and in `--json`."""
        return {
            "name": self.name, "type": self.type, "onnx_layers": list(self.onnx), "precision": self.precision,
            "outputs": list(self.outputs), "tactic": self.tactic, "ms": self.ms,
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EngineLayer:
        """Inverse of `to_json`."""
        onnx, outputs = tuple(data["onnx_layers"]), tuple(data["outputs"])
        return cls(data["name"], data["type"], onnx, data["precision"], outputs, data["tactic"], data["ms"])


def layers_from_inspector(text: str) -> tuple[EngineLayer, ...]:
    """Layers from the engine inspector's JSON, which is also what `trtexec --exportLayerInfo` writes.

    Raises:
        DataError: it is not that.
    """
    try:
        found = json.loads(text, strict=False)  # between the names of what it fused, TensorRT 8 writes a separator raw
    except ValueError as error:
        raise DataError(f"the layer information is not JSON: {error}") from None
    entries = found.get("Layers") if isinstance(found, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(
            "the layer information holds no list of layers under 'Layers'",
            hint="give the file that trtexec --exportLayerInfo wrote",
        )
    return tuple(EngineLayer(e, onnx=_fused_names(e)) if isinstance(e, str) else _from_object(e) for e in entries)


def layers_from_log(messages: Iterable[str]) -> tuple[EngineLayer, ...]:
    """Layers from the messages of a verbose build, or none where the builder printed no table.

    Args:
        messages: of the builder's logger, or the lines of a log file.
    """
    lines = [line for message in messages for line in message.splitlines()]
    found: list[EngineLayer] = []
    for line in lines:
        old = _OLD.search(line)
        if line.startswith("Name: ") and ", LayerType: " in line:
            found.append(_from_fields(line))
        elif old is not None:
            found.append(_from_old(old["type"], old["rest"]))
    return tuple(found)


def timed(layers: Sequence[EngineLayer], ms: Mapping[str, float]) -> tuple[EngineLayer, ...]:
    """The layers with their times by name; what was timed and is no layer is appended."""
    known = {layer.name for layer in layers}
    extra = [EngineLayer(name, onnx=_fused_names(name), ms=value) for name, value in ms.items() if name not in known]
    return (*(replace(layer, ms=ms.get(layer.name, layer.ms)) for layer in layers), *extra)


def _from_object(entry: Mapping[str, Any]) -> EngineLayer:
    """A layer from one object of the inspector's JSON."""
    name = str(entry.get("Name", ""))
    tensors = {side: [t for t in entry.get(side, []) if isinstance(t, dict)] for side in ("Inputs", "Outputs")}
    types = {side: [_type(t) for t in found] for side, found in tensors.items()}
    weights = entry.get("Weights")
    if isinstance(weights, dict):
        types["Inputs"].append(_word(str(weights.get("Type", ""))))
    shapes = tuple("x".join(str(d) for d in t.get("Dimensions", [])) for t in tensors["Outputs"])
    onnx = tuple(dict.fromkeys(_ONNX.findall(str(entry.get("Metadata", "")))))
    return EngineLayer(
        name,
        str(entry.get("LayerType", "")),
        onnx or _fused_names(name),
        _precision(types["Inputs"], types["Outputs"]),
        shapes,
        str(entry.get("TacticName", "")),
    )


def _type(tensor: Mapping[str, Any]) -> str:
    """Type of a tensor: `Datatype` from TensorRT 11, before that the words of `Format/Datatype`."""
    return _word(str(tensor.get("Datatype") or tensor.get("DataType") or tensor.get("Format/Datatype") or ""))


def _word(text: str) -> str:
    """The type that a description names, or ''."""
    return next((_TYPES[w] for w in re.findall(r"\w+", text.lower()) if w in _TYPES), "")


def _from_fields(line: str) -> EngineLayer:
    """A layer from one line of the newer log: `Name: ..., LayerType: ..., Inputs: [ { ... }], ...`."""
    pieces = _FIELD.split(_outer(line))
    plain = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    inside = {side: _section(line, side) for side in ("Inputs", "Outputs")}
    types = {side: [_word(t) for t in re.findall(r"Datatype: (\w+)", text)] for side, text in inside.items()}
    shapes = tuple(d.replace(",", "x") for d in re.findall(r"Dimensions: \[([-\d,]*)\]", inside["Outputs"]))
    onnx = tuple(dict.fromkeys(_ONNX.findall(line.rpartition(", Metadata: ")[2])))
    precision = _precision(types["Inputs"], types["Outputs"])
    return EngineLayer(plain["Name"], plain["LayerType"], onnx, precision, shapes, plain.get("TacticName", ""))


def _outer(line: str) -> str:
    """A line without what its braces hold."""
    return re.sub(r"\{ Name: .*? \}", "", line)


def _section(line: str, side: str) -> str:
    """The text of one list of tensors in a line of the newer log."""
    after = line.partition(f", {side}: [")[2]
    return re.split(r"\](?=, (?:Inputs|Constants|Outputs|TacticName|StreamId|Metadata): )", after, maxsplit=1)[0]


def _from_old(kind: str, rest: str) -> EngineLayer:
    """A layer from one line of the older log: `Layer(Type): name, Tactic: 0x0, in[Float(1,3)] -> out[Half(1,3)]`."""
    name, mark, tensors = rest.partition(", Tactic: ")
    if not mark:
        start = re.search(r", [^,]* \([A-Z]\w+\[", rest)
        name, tensors = (rest[: start.start()], rest[start.start() :]) if start else (rest, "")
    reads, _, writes = tensors.partition(" -> ")
    types = [[_word(t["type"]) for t in _OLD_TENSOR.finditer(side)] for side in (reads, writes)]
    shapes = tuple(t["dims"].replace(",", "x") for t in _OLD_TENSOR.finditer(writes))
    return EngineLayer(name, kind, _fused_names(name), _precision(*types), shapes)


def _precision(reads: Sequence[str], writes: Sequence[str]) -> str:
    """Arithmetic types of one side, then of the other where they differ: `int8→fp32`."""
    sides = ["+".join(t for t in _ARITHMETIC if t in side) for side in (reads, writes)]
    return sides[0] if not sides[1] or sides[0] == sides[1] else "→".join(s for s in sides if s)


def _fused_names(name: str) -> tuple[str, ...]:
    """ONNX names that a layer's own name is made of, where the runtime gives no metadata.

    Weights (`x.weight`), reformats and the runtime's own layers are none. Of a region that cannot be split
    (`{ForeignNode[a...b]}`) the ends are known.
    """
    if name.startswith("Reformatting CopyNode") or "Reformatted" in name:
        return ()
    listed = _ONNX.findall(name)
    if listed:
        return tuple(dict.fromkeys(listed))
    foreign = re.fullmatch(r"\{ForeignNode\[(.*)\]\}", name)
    parts = re.split(r"\.\.\.| \+ ", foreign[1]) if foreign else name.split(" + ")
    cleaned = [re.sub(r"^(?:PWN\()+|\)+$", "", part.strip()) if "PWN(" in part else part.strip() for part in parts]
    split = [word for part in cleaned for word in re.split(r"\)?, PWN\(", part)]
    return tuple(w for w in split if w and not w.startswith(("(Unnamed Layer", "__my", "onnx::")) and "weight" not in w)


__all__ = ["TABLES", "EngineLayer", "layers_from_inspector", "layers_from_log", "timed"]
