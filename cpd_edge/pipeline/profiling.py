"""The latency table of a subject: measured all over the ranges, and where a solver's plans for it lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cpd_edge.errors import InfeasibleError
from cpd_edge.layout import Widths
from cpd_edge.measure.runtimes import TENSORRT
from cpd_edge.pipeline.plans import posed
from cpd_edge.pipeline.subject import Subject
from cpd_edge.profile.draws import Looks
from cpd_edge.profile.sample import profile
from cpd_edge.profile.table import LatencyTable
from cpd_edge.score.importance import magnitude
from cpd_edge.solve.milp import solve
from cpd_edge.types import Constraints

ISOLATED_S = 5.0
"""Time spent on the isolated baseline of a table, where an engine for one operation is made in no time."""
SHARES, LOOK_S, ROUGHLY = (0.7, 0.5, 0.3), 2.0, 0.02
"""Budgets of the plans that are looked at, as shares of the dense latency; longest search of each [s], and its gap."""


def measured_table(
    subject: Subject,
    key: Mapping[str, Any],
    folder: Path,
    *,
    samples: int,
    seed: int,
    fresh: bool = False,
    progress: Callable[[float, str], None],
) -> LatencyTable:
    """The latency table, measured now or reused from `folder`, with the isolated baseline beside it."""
    return profile(
        subject.build,
        subject.regions,
        subject.widths,
        subject.runner,
        key,
        model=subject.dense_onnx,
        samples=samples,
        seed=seed,
        folder=folder,
        isolated_seconds=0.0 if subject.runtime == TENSORRT or subject.quantiser is not None else ISOLATED_S,
        fresh=fresh,
        looks=looks_of(subject),
        progress=progress,
    )


def looks_of(subject: Subject) -> Looks:
    """Plans for some budgets on a table, by the magnitude of weights: it needs no data, and lies as plans lie."""
    importance = magnitude(subject.network.state_dict(), subject.combed.groups)

    def looks(table: LatencyTable) -> Sequence[Widths]:
        where = posed(table, importance, 1.0, subject.combed.groups, Constraints()).problem
        dense_ms, found = table.predict(subject.widths), list[Widths]()
        for share in SHARES:
            try:
                plan = solve(where.limited(share * dense_ms), gap=ROUGHLY, time_limit_s=LOOK_S)
            except InfeasibleError:
                break
            found.append({**subject.widths, **plan.widths})
        return found

    return looks


__all__ = ["looks_of", "measured_table"]
