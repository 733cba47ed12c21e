"""Operators that a runtime cannot take, reported all at once, with the ONNX node and the line of the user's model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import onnx

from cpd_edge.errors import ModelError

_TRACE = "pkg.torch.onnx.stack_trace"
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<where>\S+)(?:\n\s*(?P<code>[^\n]+))?')
_SHOWN = 8


@dataclass(frozen=True)
class Unsupported:
    """One node that the runtime refuses.

    Attributes:
        node: its name in the ONNX file.
        op: its operator, with the domain where it is not the standard one.
        reason: the runtime's own words.
        source: `file:line: code` of the model, or '' where the file does not say.
    """

    node: str
    op: str
    reason: str
    source: str

    def __str__(self) -> str:
        """In one line."""
        at = f" at {self.source}" if self.source else ""
        return f"{self.node} ({self.op}){at}: {self.reason}"


def source_line(node: onnx.NodeProto) -> str:
    """Where in the user's code a node comes from: the innermost frame that is not torch's own, or ''."""
    for entry in node.metadata_props:
        if entry.key == _TRACE:
            frames = [m for m in _FRAME.finditer(entry.value) if "/torch/" not in m["file"].replace("\\", "/")]
            if frames and "/" in frames[-1]["file"].replace("\\", "/"):
                file, line, code = frames[-1]["file"], frames[-1]["line"], frames[-1]["code"]
                return f"{file}:{line}" + (f": {code.strip()}" if code else "")
    return ""


def unsupported(parser: Any, model: onnx.ModelProto) -> tuple[Unsupported, ...]:
    """What a TensorRT parser refused in `model`, in the order of the nodes.

    Args:
        parser: after its `parse` failed. It stops at different points in different versions, so every operator is
            asked for as well.
        model: what was parsed.
    """
    nodes = list(model.graph.node)
    named = {n.name: i for i, n in enumerate(nodes) if n.name}
    found: dict[int, str] = {}
    loose: list[Unsupported] = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        at = named.get(error.node_name(), -1) if hasattr(error, "node_name") else -1
        at = at if at >= 0 else int(error.node())
        reason = _words(str(error.desc()))
        if 0 <= at < len(nodes):
            found.setdefault(at, reason)
        else:
            loose.append(Unsupported("the model", "", reason, ""))
    known = {op: bool(parser.supports_operator(op)) for op in {n.op_type for n in nodes}}
    for i, node in enumerate(nodes):
        if not known[node.op_type]:
            found.setdefault(i, "no such operator in this runtime")
    return (*(_of(nodes[i], found[i]) for i in sorted(found)), *loose)


def refusal(what: str, found: Iterable[Unsupported], runtime: str) -> ModelError:
    """The error that names them."""
    listed = list(found)
    lines = [f"\n    {item}" for item in listed[:_SHOWN]]
    more = f"\n    and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ModelError(
        f"{runtime} does not take {len(listed)} node{'s' if len(listed) != 1 else ''} of {what}:{''.join(lines)}{more}",
        hint="replace these operations in the model, or run it on another runtime",
    )


def _of(node: onnx.NodeProto, reason: str) -> Unsupported:
    op = f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
    return Unsupported(node.name or node.output[0], op, reason, source_line(node))


def _words(reason: str) -> str:
    """The runtime's reason; a missing plugin, which is how it says that it does not know an operator, in words."""
    if "Plugin not found" in reason:
        return "no such operator in this runtime, and no plugin for it"
    return reason if reason not in ("", "false") else "this form of it is not supported"


__all__ = ["Unsupported", "refusal", "source_line", "unsupported"]
