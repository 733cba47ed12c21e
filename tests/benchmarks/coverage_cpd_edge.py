"""What cpd_edge does with a network: comb, every group cut and held against its mask, half of everything to ONNX."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from typing import Any

import torch
from coverage_models import build
from coverage_numbers import PARITY, first_line, macs, parameters

from cpd_edge.pipeline.proof import GOOD
from cpd_edge.pipeline.verify import Verification, verify
from cpd_edge.types import Groups

EXPECTED = ("network output", "network input", "spatial extent", "batch")
"""Reasons to be frozen that are no gap: nobody removes classes, colours or pixels."""


def attempt(name: str, seed: int = 0) -> dict[str, Any]:
    """Every stage that was reached, what it gave, and the first line of what stopped it."""
    warnings.simplefilter("ignore")
    subject = build(name, seed)
    x = torch.randn(1, *subject.input_shape)
    row: dict[str, Any] = {
        "stages": [], "params_before": parameters(subject.model), "macs_before": macs(subject.model, x),
    }  # fmt: skip
    started = time.process_time()
    try:
        found = verify(subject.model, subject.input_shape, seed=seed)
    except Exception as error:  # whatever stops it is the result
        return row | {"cause": first_line(error), "seconds": time.process_time() - started}
    row |= {"seconds": time.process_time() - started, **_summary(found), **_stages(found)}
    if found.half is not None:
        row |= {"params_after": found.params_half, "macs_after": macs(found.half, x)}
    return row


def _stages(found: Verification) -> dict[str, Any]:
    tried = [*found.rows, *found.plans]
    outcomes = {t.outcome for t in tried}
    stages = ["trace", *(["comb"] if found.rows else [])]
    stages += ["cut"] if outcomes and "fails" not in outcomes else []
    stages += ["equal"] if outcomes and outcomes <= set(GOOD) else []
    stages += ["onnx"] if found.onnx_max_error is not None and found.onnx_max_error < PARITY else []
    bad = [
        f"{getattr(t, 'group', '') or getattr(t, 'plan', '')}: {t.outcome} {t.cause}"
        for t in tried
        if t.outcome not in GOOD
    ]
    causes = [*bad, *([found.onnx_cause] if found.onnx_cause else [])]
    if not found.verified and not causes:
        causes = [f"ONNX Runtime differs by {found.onnx_max_error:.1e}"]
    return {
        "stages": stages,
        "verified": found.verified and bool(found.rows),
        **({"cause": causes[0][:240]} if causes else {}),
    }


def _summary(found: Verification) -> dict[str, Any]:
    left_out = {"model", "rows", "plans", "frozen"}
    whole = {k: v for k, v in found.to_json().items() if k not in left_out}
    inexact = [row.error for row in found.rows if not row.exact]
    return whole | {
        "stage_seconds": whole.pop("seconds"),
        "outcomes": Counter(row.outcome for row in found.rows),
        "least_effect": min((row.effect for row in found.rows), default=None),
        "inexact_error": max(inexact, default=None),
        "same_error": found.max_error,
        "onnx_error": found.onnx_max_error,
        "keeps": keeps(found.groups),
    }


def keeps(groups: Groups) -> str:
    """The call that keeps most parameters from being cut, and where it stands in the user's code."""
    held = [f for f in groups.frozen if f.reason not in EXPECTED]
    if not held:
        return ""
    most = max(held, key=lambda f: f.params)
    return f"{most.reason}{f' at {most.source}' if most.source else ''}"
