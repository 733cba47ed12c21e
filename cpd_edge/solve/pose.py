"""A problem posed: what a table, importances, other devices and counted quantities say of candidate widths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpd_edge.errors import BudgetError, TableError
from cpd_edge.layout import Widths
from cpd_edge.solve.counted import loads_of
from cpd_edge.solve.problem import LATENCY, Floats, Ints, Problem, Resource, Solution
from cpd_edge.solve.ways import MEASURE, PLAIN, VARIED, Table, Ways, measured, varied
from cpd_edge.types import Importance, Plan, Quantity


@dataclass(frozen=True)
class Elsewhere:
    """Another device that the same network must be fast enough on.

    Attributes:
        name: of the device, as errors and records call it.
        table: measured there.
        limit_ms: most latency there [ms].
    """

    name: str
    table: Table
    limit_ms: float


def candidate_widths(low: int, high: int, most: int, multiple_of: int = 1) -> Ints:
    """Ascending widths between `low` and `high`, at most `most`: all, or both ends and multiples of powers of two.

    The coarsest multiples that fit come first, then every other one of the next finer step. With `multiple_of` all
    but `high` are multiples of it.
    """
    if multiple_of > 1:
        first, last = -(-low // multiple_of), (high - 1) // multiple_of
        inner = candidate_widths(first, last, most - 1) * multiple_of if first <= last else np.zeros(0, np.int64)
        return np.append(inner, high)
    if high - low < most:
        return np.arange(low, high + 1)
    step = 1
    while high // step > most - 2:
        step *= 2
    chosen = {low, high, *range(step, high, step)} - set(range(low))
    if step > 1:
        finer = [w for w in range(step // 2, high, step) if w > low]
        room = max(most - len(chosen), 0)
        chosen |= {finer[int(i)] for i in np.linspace(0, len(finer) - 1, min(room, len(finer))).round()}
    return np.asarray(sorted(chosen), np.int64)


def losses(importance: npt.NDArray[np.float64], widths: Ints) -> Floats:
    """Loss expected when the `w` most important units stay, for each `w`: `-T log(kept / T)` of the group's total T.

    To first order that is the sum of what is removed. Beyond it the loss grows faster than the sum, and without
    bound for the last unit: what remains must carry what has gone, which scores taken one unit at a time do not see.
    """
    gone = np.concatenate([[0.0], np.cumsum(np.sort(importance))])[len(importance) - widths]
    total = float(importance.sum())
    if total <= 0:
        return np.zeros(len(widths))
    return np.asarray(-total * np.log(np.maximum(1 - gone / total, 1e-12)), np.float64)


def problem_from(
    table: Table,
    importance: Importance,
    limit_ms: float,
    *,
    max_candidates: int = 16,
    at_most: Widths | None = None,
    at_least: Widths | None = None,
    multiple_of: int = 1,
    counted: Sequence[tuple[Quantity, float]] = (),
    elsewhere: Sequence[Elsewhere] = (),
    ways: Ways = PLAIN,
) -> Problem:
    """The problem that a table and importances pose for limits.

    Args:
        table: measured latencies; groups it knows but `importance` does not stay dense.
        importance: expected loss of each unit, by group, and of regions that run in other ways.
        limit_ms: latency limit [ms]; infinite where only other limits hold.
        max_candidates: most widths to choose from, per group; those at which regions elsewhere run otherwise are not.
        at_most: widest width allowed by group, such as what a previous round kept.
        at_least: narrowest width allowed by group, where scores are not to be trusted further.
        multiple_of: what widths below the widest are multiples of.
        counted: quantities and the most that each may be.
        elsewhere: other devices, each with its limit.
        ways: other ways to run regions than the one that `table` was measured in.

    Raises:
        BudgetError: a limit is not above 0.
        TableError: a group was never sampled, or `importance` has another number of units than a table.
    """
    for limit in (limit_ms, *(most for _, most in counted), *(e.limit_ms for e in elsewhere)):
        if not limit > 0:
            raise BudgetError(f"limit of {limit}: it must be above 0", hint="for example --budget-ms 12")
    tables = [table, *(e.table for e in elsewhere), *(v.table for v in ways.variants)]
    candidates, loss = {}, {}
    for group, values in importance.by_group.items():
        low, high = _range(group, len(values), tables)
        high = min(high, (at_most or {}).get(group, high))
        low = max(low, (at_least or {}).get(group, low))
        multiple = multiple_of if len(values) > 1 else 1
        widths = candidate_widths(min(low, high), high, max_candidates, multiple)
        alone = np.logical_and.reduce([t.contained(group, widths) for t in tables])
        candidates[group] = widths[alone] if alone.any() else widths
        whole = np.asarray(values, np.float64)
        loss[group] = losses(whole, candidates[group]) if len(values) > 1 else whole * (1 - candidates[group])
    load, sums = measured(table, candidates)
    options = ways.options(importance.otherwise)
    if options:
        load, used = varied(load, candidates, ways, options)
        sums |= used
    resources = [Resource(LATENCY, "ms", limit_ms, (load,))]
    for other in elsewhere:
        load, used = measured(other.table, candidates)
        resources.append(Resource(other.name, "ms", other.limit_ms, (load,)))
        sums |= used
    for quantity, most in counted:
        loads, used = loads_of(quantity, candidates)
        resources.append(Resource(quantity.name, quantity.unit, most, loads))
        sums |= used
    for region, names in options.items():
        candidates[region + VARIED] = np.arange(len(names))
        loss[region + VARIED] = np.asarray([*(importance.otherwise[name][region] for name in names[:-1]), 0.0])
    variants = {region + VARIED: names for region, names in options.items()}
    return Problem(candidates, loss, tuple(resources), sums, variants)


def _range(group: str, units: int, tables: Sequence[Table]) -> tuple[int, int]:
    """Smallest width that all tables were sampled down to, and the dense width."""
    for table in tables:
        if group not in table.ranges or table.ranges[group][1] != units:
            known = table.ranges.get(group, "no such group")
            raise TableError(f"group {group} of {units} units: the table knows {known}", hint=MEASURE)
    return max(table.ranges[group][0] for table in tables), units


def plan_from(found: Solution, importance: Importance, limit_ms: float) -> Plan:
    """The plan that keeps the most important units of each group; equal importances keep the lower index."""
    keep = {}
    for group, width in found.widths.items():
        best = np.argsort(-np.asarray(importance.by_group[group]), kind="stable")[:width]
        keep[group] = tuple(int(u) for u in np.sort(best))
    return Plan(
        keep=keep, limit_ms=limit_ms, predicted_ms=found.latency_ms, objective=found.objective, bound=found.bound,
        gap=found.gap, seconds=found.seconds, strategy=found.strategy,
        variants={name.removesuffix(VARIED): way for name, way in found.variants.items()},
    )  # fmt: skip
