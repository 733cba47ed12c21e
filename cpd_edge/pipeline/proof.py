"""Cuts held against masks: each group over its own part of the network, then whole networks by their outputs."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from cpd_edge.cut import cut
from cpd_edge.layout import Keep, axes
from cpd_edge.network import Combed
from cpd_edge.pipeline.lockstep import Entangled, Lockstep, Meeting, difference
from cpd_edge.types import Group

TOLERANCE = 1e-9
"""Largest difference of cut and mask in float64, relative to the largest element, that is rounding."""

FELT = 1e-7
"""Least relative change that a removal has to make for equality to mean something."""

ALONE = 0.7
"""Share of the time that groups take one by one, as far as progress is told."""

LEFT_OUT = 0.3
"""Share of the branches that a random plan leaves out."""

Outcome: TypeAlias = Literal["equal", "runs", "differs", "fails", "unseen"]
"""`equal` to the mask; `runs`, where equality is not asked for; `differs`; `fails` to cut or to run; `unseen`, where
the network computes the same without it, so that nothing is proven."""

GOOD = ("equal", "runs")


@dataclass(frozen=True)
class Row:
    """What became of one group, cut alone.

    Attributes:
        group: its name.
        units, kept: how many there are, and how many stayed.
        exact, depth: as in `Group`.
        outcome: see `Outcome`.
        error: largest difference to the mask, relative to the largest element where they are compared.
        effect: how much the removal changes what reads it, likewise.
        cause: where it differs, or what was raised.
    """

    group: str
    units: int
    kept: int
    exact: bool
    depth: bool
    outcome: Outcome
    error: float
    effect: float
    cause: str = ""


@dataclass(frozen=True)
class PlanRow:
    """What became of a whole network, cut in many groups at once.

    Attributes:
        plan: what was cut.
        groups: how many groups lost units.
        judged: whether it has to equal the mask; else it has to run, finite and not zero.
        outcome, error, effect, cause: as in `Row`, at the outputs.
        suspects: the groups that a failure comes down to.
    """

    plan: str
    groups: int
    judged: bool
    outcome: Outcome
    error: float
    effect: float
    cause: str = ""
    suspects: tuple[str, ...] = ()


class Proof:
    """A combed network under test.

    Args:
        combed: in float64, with lively parameters (`enliven`).
        seed: of inputs, kept units and widths.
        tell: gets the fraction that is done, and what is being tried.

    Attributes:
        halves: about half of every group's units, drawn; a branch stays.
    """

    def __init__(self, combed: Combed, seed: int, tell: Callable[[float, str], None]) -> None:
        self._combed, self._tell = combed, tell
        self._groups = combed.groups.groups
        self._rng = np.random.default_rng(seed)
        self._inputs = combed.network.example(1, seed)
        self._steps = Lockstep(combed, self._inputs, TOLERANCE)
        self._tried = {g.name: self._drawn(g, g.units // 2) for g in self._groups}
        self.halves: Keep = {g.name: self._tried[g.name] for g in self._groups if not g.depth}

    def each_group(self) -> list[Row]:
        """Each group alone. Those that lie apart share a pass; who is not well in it has one of his own."""
        found: dict[str, Row] = {}
        batches = apart(self._groups, regions(self._combed))
        while batches:
            batch = batches.pop()
            others = f" and {len(batch) - 1} more" if len(batch) > 1 else ""
            self._tell(ALONE * len(found) / len(self._groups), f"{batch[0].name}{others}, each alone")
            keep = {g.name: self._tried[g.name] for g in batch}
            meetings = self._stepwise(keep) if len(batch) > 1 else self._alone(keep)
            gc.collect()  # graphs hold each other in circles, and a cut network's parameters with them
            for group in batch:
                row = self._row(group, [m for m in meetings if group.name in m.suspects])
                if len(batch) > 1 and row.outcome not in GOOD:
                    batches.append([group])
                else:
                    found[group.name] = row
        return [found[g.name] for g in self._groups]

    def whole_networks(self, plans: int, guilty: Collection[str]) -> list[PlanRow]:
        """Half of everything and random widths: over the exact groups judged, over all groups run.

        Args:
            plans: random ones over the exact groups.
            guilty: groups that failed alone; a plan that fails and holds one is down to it.
        """
        exact = [g for g in self._groups if g.exact]
        some = len(exact) < len(self._groups)
        halves = {g.name: self.halves[g.name] for g in exact if not g.depth}
        todo: list[tuple[str, Keep, bool]] = [("half of every exact group", halves, True)]
        todo += [(f"random widths {i + 1}", self._random(exact), True) for i in range(plans)]
        if some:
            todo.append(("half of every group", self.halves, False))
            todo.append(("random widths over every group", self._random(self._groups), False))
        found = []
        for at, (name, keep, judged) in enumerate(todo):
            self._tell(ALONE + (1 - ALONE) * at / len(todo), f"whole network, {name}")
            if keep:
                found.append(self._plan(name, keep, judged, guilty))
                gc.collect()
        return found

    def _drawn(self, group: Group, count: int) -> npt.NDArray[np.int64]:
        """So many of a group's units, but at least one; of a branch it may be none."""
        least = 0 if group.depth else 1
        return np.sort(self._rng.permutation(group.units)[: max(least, count)])

    def _random(self, groups: Sequence[Group]) -> Keep:
        """Widths between one unit and all; some branches left out."""
        counts = {g.name: int(self._rng.integers(1, g.units + 1)) for g in groups}
        stays = {g.name: int(self._rng.random() >= LEFT_OUT) for g in groups if g.depth}
        return {g.name: self._drawn(g, stays.get(g.name, counts[g.name])) for g in groups}

    def _stepwise(self, keep: Keep) -> list[Meeting]:
        """Several groups in one pass; a cut that cannot be made, or not be run call by call, is everybody's failure."""
        try:
            return self._steps.compare(cut(self._combed, keep, shapes=False), keep)
        except Entangled as why:
            return [Meeting(str(why), frozenset(keep), math.inf, 0.0, "entangled")]
        except Exception as error:  # whatever tracing raises over shapes that do not fit
            return [_failed(keep, error)]

    def _alone(self, keep: Keep) -> list[Meeting]:
        """One group; by the outputs, where its calls cannot be run one by one."""
        try:
            small = cut(self._combed, keep, shapes=False)
            return self._steps.compare(small, keep)
        except Entangled:
            return [self._by_outputs(keep)]
        except Exception as error:  # as above
            return [_failed(keep, error)]

    def _by_outputs(self, keep: Keep) -> Meeting:
        """One whole network against its mask."""
        try:
            with torch.no_grad():
                got = _tensors(cut(self._combed, keep, shapes=False)(self._inputs))
        except Exception as error:  # as above
            return _failed(keep, error)
        want, dense = self._steps.outputs(keep), self._steps.outputs({})
        gap = max(map(difference, got, want)) if len(got) == len(want) else math.inf
        effect = max(map(difference, want, dense))
        odd = not all(t.isfinite().all() and t.any() for t in got if t.is_floating_point())
        return Meeting("output", frozenset(keep), gap, effect, "outputs are zero or not finite" if odd else "")

    def _row(self, group: Group, meetings: Sequence[Meeting]) -> Row:
        outcome, error, effect, cause = _judged(meetings, group.exact)
        kept = len(self._tried[group.name])
        return Row(group.name, group.units, kept, group.exact, group.depth, outcome, error, effect, cause)

    def _plan(self, name: str, keep: Keep, judged: bool, guilty: Collection[str]) -> PlanRow:
        outcome, error, effect, cause = _judged([self._by_outputs(keep)], judged)
        lost = [g.name for g in self._groups if g.name in keep and len(keep[g.name]) < g.units]
        suspects: Sequence[str] = ()
        if outcome in ("differs", "fails"):
            suspects = [n for n in lost if n in guilty] or self._guilty({n: keep[n] for n in lost}, judged)
        return PlanRow(name, len(lost), judged, outcome, error, effect, cause, tuple(suspects))

    def _guilty(self, keep: Keep, judged: bool) -> Sequence[str]:
        """Bisects a plan that fails: a half that fails still is searched on; what no half shows stays together."""
        names = list(keep)
        while len(names) > 1:
            middle = len(names) // 2
            for part in (names[:middle], names[middle:]):
                self._tell(ALONE, f"looking for the one to blame among {len(names)}")
                if _judged([self._by_outputs({n: keep[n] for n in part})], judged)[0] in ("differs", "fails"):
                    names = part
                    break
            else:
                break
        return names


def regions(combed: Combed) -> dict[str, frozenset[str]]:
    """Calls that a group's removal is expected to touch: whose values hold its units, and who takes such values."""
    held: dict[str, set[str]] = {g.name: set() for g in combed.groups.groups}
    at: dict[str, set[str]] = {name: set(axes(*layouts)) for name, layouts in combed.values.items()}
    for argument in combed.shape_arguments:
        at.setdefault(argument.node, set()).update(axes(argument.layout))
    for branch in combed.branches:
        for name in (branch.first, *branch.inside):
            at.setdefault(name, set()).add(branch.name)
    for node in combed.network.graph.nodes:
        for axis in at.get(node.name, ()):
            if axis in held:
                held[axis].update([node.name, *(user.name for user in node.users)])
    return {name: frozenset(nodes) for name, nodes in held.items()}


def apart(groups: Sequence[Group], where: Mapping[str, frozenset[str]]) -> list[list[Group]]:
    """The groups in batches, by first fit, so that no two of one batch touch the same call."""
    batches: list[tuple[list[Group], set[str]]] = []
    for group in sorted(groups, key=lambda g: -len(where[g.name])):
        for members, taken in batches:
            if taken.isdisjoint(where[group.name]):
                members.append(group)
                taken |= where[group.name]
                break
        else:
            batches.append(([group], set(where[group.name])))
    return [members for members, _ in batches]


def _judged(meetings: Sequence[Meeting], exact: bool) -> tuple[Outcome, float, float, str]:
    """Outcome, error, effect and cause of what was compared."""
    if not meetings:
        return "unseen", 0.0, 0.0, "nothing it touches was computed"
    worst = max(meetings, key=lambda m: (bool(m.cause), m.error))
    effect = max(m.effect for m in meetings)
    if worst.cause:
        return "fails", worst.error, effect, f"{worst.node}: {worst.cause}"
    if worst.error == math.inf or (exact and worst.error > TOLERANCE):
        return "differs", worst.error, effect, f"at {worst.node}"
    if effect < FELT:
        return "unseen", worst.error, effect, f"the network computes the same without it, at {worst.node}"
    return "equal" if exact else "runs", worst.error, effect, ""


def _failed(keep: Keep, error: Exception) -> Meeting:
    said = str(error).strip().partition("\n")[0]
    return Meeting("cut", frozenset(keep), math.inf, 0.0, f"{type(error).__name__}: {said}")


def _tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
