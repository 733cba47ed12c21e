"""A verification as text: what was proven, group by group only where something is not well."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cpd_edge.cli.text import portion

GOOD = ("equal", "runs")
SHOWN = 40
"""Groups that are not well and are named; `--json` has them all."""


def verify_text(r: dict[str, Any]) -> str:
    """What `cpd-edge comb MODEL --verify` prints."""
    lines = [("", f"{r['model']}: {'verified' if r['verified'] else 'NOT VERIFIED'}")]
    lines += [("groups", _groups(r)), *_alone(r["rows"]), *_whole(r["plans"]), ("ONNX", _onnx(r))]
    lines.append(("time", ", ".join(f"{stage} {s:.1f} s" for stage, s in r["seconds"].items())))
    bad = [row for row in r["rows"] if row["outcome"] not in GOOD]
    lines += [("not well" if not i else "", _row(row)) for i, row in enumerate(bad[:SHOWN])]
    if len(bad) > SHOWN:
        lines.append(("", f"... and {len(bad) - SHOWN} more"))
    return "\n".join(f"{name:<10}{text}" if name or i else text for i, (name, text) in enumerate(lines))


def _groups(r: dict[str, Any]) -> str:
    widths = r["groups"] - r["depth_groups"]
    return (
        f"{widths} of units, {r['depth_groups']} branches; {r['units']:,} units; {r['frozen_axes']} frozen axes; "
        f"{portion(r['prunable_params_fraction'])} of {r['params']:,} parameters can be cut"
    )


def _alone(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    exact, others = [r for r in rows if r["exact"]], [r for r in rows if not r["exact"]]
    equal = sum(r["outcome"] == "equal" for r in exact)
    yield "alone", f"{equal} of {len(exact)} groups, cut in half, equal the mask; largest difference {_worst(exact)}"
    if others:
        runs = sum(r["outcome"] == "runs" for r in others)
        yield "", f"{runs} of {len(others)} that a statistic runs over run; {_worst(others)} from the mask, not judged"


def _whole(plans: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    for i, p in enumerate(plans):
        text = f"{p['plan']:<32} {p['groups']:4d} groups  {p['outcome']:<8} {_error(p['error'])}"
        text += "" if p["judged"] else ", not judged"
        text += f"  {p['cause']}" if p["cause"] else ""
        named = ", ".join(p["suspects"][:6])
        yield "whole" if not i else "", text + (f"; down to {named}" if named else "")


def _onnx(r: dict[str, Any]) -> str:
    if r["onnx_cause"]:
        return str(r["onnx_cause"])
    if r["onnx_max_error"] is None:
        return "not asked for"
    limit = f"at most {r['onnx_tolerance']:.0e}"
    return f"half of every group: ONNX Runtime differs from torch by {_error(r['onnx_max_error'])} ({limit})"


def _row(row: dict[str, Any]) -> str:
    kept = f"{row['units']} -> {row['kept']}"
    return f"{row['group']:<40} {kept:>12}  {row['outcome']:<8} {_error(row['error'])}  {row['cause']}"


def _worst(rows: Sequence[dict[str, Any]]) -> str:
    errors = [r["error"] for r in rows]
    return _error(None if None in errors else max(errors, default=0.0))


def _error(error: float | None) -> str:
    return "shapes or values that cannot be compared" if error is None else f"{error:.1e}"
