"""What running some regions in INT8 and others in fp32 costs: two tables, at one pace, and what is converted between.

Each table was measured on a network that is all of one precision. What a change from one to the other takes, and how
the machine's pace in one table compares with that in the other, is learned from a few networks of both, timed in turns
with the dense one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import nnls

from cpd_edge.deploy.quantize import integer_nodes
from cpd_edge.layout import Widths
from cpd_edge.measure.protocol import Protocol, compare
from cpd_edge.measure.runtimes import MIXED, ON_CPU
from cpd_edge.measure.shapes import float_shapes
from cpd_edge.pipeline.quantities import tensor
from cpd_edge.pipeline.subject import Subject
from cpd_edge.profile.regions import node_name
from cpd_edge.profile.table import LatencyTable
from cpd_edge.solve.ways import Variant, Ways
from cpd_edge.types import Passage

INT8 = "int8"
"""Name of the other way to run a region, and of its precision."""
ACROSS = ("precision", "providers")
"""What may differ between the environments of the dense engine and a mixed one: it is what is asked for."""
DRAWN = 8
"""Networks of both precisions that are timed."""
BRIEF = Protocol(limit_s=2.0, target=0.01)
"""How each is timed."""
BOUNDS = frozenset(["Clip", "Relu"])
"""Operators that become part of the conversion to integers behind them."""
AROUND = 6
"""Regions at most between which one cannot stay in floats."""
LEADERS = 4
"""Regions at most whose precision decides that of one that only passes values on: the nearest ones."""


@dataclass(frozen=True)
class Mixing:
    """What was measured beside the tables.

    Attributes:
        pace: milliseconds of the fp32 table over those of the int8 table.
        each_ms, element_ms: to convert a value between the two, and each number in it [ms].
        measured: a row for each network: values converted, milliseconds of the tables alone, and measured.
        between: keys of the two tables.
    """

    pace: float
    each_ms: float
    element_ms: float
    measured: tuple[Mapping[str, float], ...] = ()
    between: tuple[Mapping[str, Any], ...] = ()

    def ways(self, subject: Subject, table: LatencyTable) -> Ways:
        """How the network's regions may run, given the int8 table."""
        variants = (Variant(INT8, table, self.pace),)
        passing = passages(subject)
        follows, pressed = followers(subject, passing), under_pressure(subject, passing)
        return Ways("fp32", variants, follows, pressed, passing, self.each_ms, self.element_ms)


def passages(subject: Subject) -> tuple[Passage, ...]:
    """The values that go from region to region, each once for every region that reads it."""
    model, shapes = subject.dense_onnx, float_shapes(subject.dense_onnx)
    regions = {node: region for region in subject.regions for node in region.nodes}
    made = {out: regions[node_name(node)] for node in model.graph.node for out in node.output if out}
    found: dict[tuple[str, str, str], Passage] = {}
    for node in model.graph.node:
        after = regions[node_name(node)]
        for value in node.input:
            before = made.get(value)
            if before is not None and before is not after and value in shapes:
                within = tuple(dict.fromkeys((*before.within, *after.within)))
                held = tensor(value, shapes[value], 1, subject.layouts.get(value, ()), within)
                found[value, before.name, after.name] = Passage(before.name, after.name, held)
    return tuple(found.values())


def followers(subject: Subject, passing: tuple[Passage, ...]) -> dict[str, tuple[str, ...]]:
    """Regions that only pass values on, and the nearest ones with a choice around them, which decide how they run."""
    assert subject.quantiser is not None
    own = {region.name for region in subject.weighted}
    through = integer_nodes(subject.dense_onnx, subject.quantiser.scheme)[1]
    near: dict[str, list[str]] = {}
    for p in passing:
        near.setdefault(p.before, []).append(p.after)
        near.setdefault(p.after, []).append(p.before)
    found = {}
    for region in subject.regions:
        if region.name in through:
            seen, leaders = [region.name], list[str]()
            for name in seen:  # grows while it is read
                fresh = [other for other in near.get(name, ()) if other not in seen and other not in leaders]
                leaders += [other for other in fresh if other in own]
                seen += [other for other in fresh if other in through]
            if leaders:
                found[region.name] = tuple(leaders[:LEADERS])
    return found


def under_pressure(subject: Subject, passing: tuple[Passage, ...]) -> dict[str, tuple[str, ...]]:
    """Regions that ONNX Runtime makes integers of where all of these are INT8: what they read, and what reads them.

    A convolution in floats whose input comes from integers and whose output, bounded or not, goes to integers alone is
    given integer weights when the file is loaded (its transformer `WeightBiasQuantization`), so such a choice is none.
    One that very many regions read is left out: its value does not go to integers alone.
    """
    if subject.runtime != ON_CPU[0]:
        return {}
    assert subject.quantiser is not None
    own = {region.name for region in subject.weighted}
    through = integer_nodes(subject.dense_onnx, subject.quantiser.scheme)[1]
    ops = {node_name(node): node.op_type for node in subject.dense_onnx.graph.node}
    sides = ("before", "after")
    near = {side: dict[str, list[str]]() for side in sides}
    for p in passing:
        near["before"].setdefault(p.after, []).append(p.before)
        near["after"].setdefault(p.before, []).append(p.after)
    found = {}
    for region in subject.weighted:
        tail = {ops[name] for name in region.nodes[1:]}
        ends = [_beyond(region.name, near[side], through) for side in sides]
        around = tuple(dict.fromkeys(ends[0] + ends[1]))
        single = region.op != "MatMul" and tail <= BOUNDS and all(ends)
        if single and set(around) <= own and len(around) <= AROUND:
            found[region.name] = around
    return found


def _beyond(region: str, near: Mapping[str, list[str]], through: Collection[str]) -> list[str]:
    """The regions next to one on one side, behind those that only pass values on."""
    todo, found = [*near.get(region, ())], list[str]()
    for name in todo:  # grows while it is read
        if name in through:
            todo += near.get(name, ())
        elif name not in found:
            found.append(name)
    return found


def mixing(
    subject: Subject, floats: LatencyTable, integers: LatencyTable, seed: int, tell: Callable[[float, str], None]
) -> Mixing:
    """Times networks of both precisions in turns with the dense one, and fits what their regions do not account for.

    Args:
        subject: in mixed precision.
        floats, integers: its tables.
        seed: of the networks, in each of which a random half of the regions runs in INT8.
        tell: gets fraction and message.
    """
    assert subject.precision == MIXED
    dense, half = subject.widths, {name: max(1, n // 2) for name, n in subject.widths.items()}
    rows = list[dict[str, float]]()
    with contextlib.closing(subject.runner(subject.build(dense))) as reference:

        def timed(widths: Widths, variants: Mapping[str, str]) -> float:
            data = subject.build_plan({name: np.arange(n) for name, n in widths.items()}, variants)
            with contextlib.closing(subject.runner(data)) as runner:
                found = compare(reference, runner, ("dense", MIXED), BRIEF, across=ACROSS)
            return floats.predict(dense) / found.speedup.estimate

        every = {region.name: INT8 for region in subject.weighted}
        pace = timed(dense, every) / integers.predict(dense)
        ways = Mixing(pace, 0.0, 0.0).ways(subject, integers)
        for i, variants in enumerate(drawn := list(_drawn(subject, ways, seed))):
            widths = dense if i % 2 == 0 else half
            converted = ways.converted(variants)
            rows.append(
                {
                    "values": len(converted),
                    "elements": sum(p.elements.at(widths) for p in converted),
                    "tables_ms": ways.predict(floats, widths, variants),
                    "measured_ms": timed(widths, variants),
                }
            )
            tell((i + 1) / len(drawn), f"network {i + 1} of {len(drawn)}")
    each_ms, element_ms = conversion(rows)
    return Mixing(pace, each_ms, element_ms, tuple(rows), (floats.key, integers.key))


def conversion(rows: list[dict[str, float]]) -> tuple[float, float]:
    """Milliseconds for each value and each number in it: least squares of the relative error, none below 0."""
    known = np.asarray([[row["values"], row["elements"]] for row in rows], np.float64)
    whole = np.asarray([row["tables_ms"] for row in rows], np.float64)
    beyond = np.asarray([row["measured_ms"] for row in rows], np.float64) - whole
    scale = np.maximum(known.max(axis=0), 1.0)
    each, element = nnls(known / scale / whole[:, None], beyond / whole)[0] / scale
    return float(each), float(element)


def _drawn(subject: Subject, ways: Ways, seed: int) -> Iterator[dict[str, str]]:
    """Networks in which a random half of the regions that may runs in INT8, and what cannot stay plain between them."""
    rng = np.random.default_rng(seed)
    names = [region.name for region in subject.weighted]
    for _ in range(DRAWN):
        taken = rng.permutation(len(names))[: max(1, len(names) // 2)]
        choice = {name: INT8 if i in taken else "fp32" for i, name in enumerate(names)}
        while odd := [name for name in names if ways.impossible(name, choice)]:
            choice |= dict.fromkeys(odd, INT8)
        yield choice


__all__ = ["ACROSS", "INT8", "Mixing", "conversion", "followers", "mixing", "passages", "under_pressure"]
