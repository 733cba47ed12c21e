"""What a user forbids or demands of a plan, as changes to the problem, so that every strategy obeys alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from string import ascii_letters

import numpy as np

from cpd_edge.errors import UsageError
from cpd_edge.layout import Widths
from cpd_edge.solve.problem import Floats, Ints, Problem, RegionCost
from cpd_edge.types import Constraints, Group, Groups, Importance


def protected(groups: Groups, constraints: Constraints) -> frozenset[str]:
    """Names of the groups that stay whole: named by a pattern, alone or through a tensor they occupy, or branches.

    What must be as wide as one of them stays whole too.

    Raises:
        UsageError: a pattern names nothing.
    """
    out = {g.name for g in groups.groups if g.depth and not constraints.depth}
    for pattern in constraints.protect:
        found = {g.name for g in groups.groups if _named(g, pattern)}
        if not found:
            some = ", ".join(g.name for g in groups.groups[:5])
            raise UsageError(f"--protect {pattern!r} names no group and no tensor", hint=f"there are {some} ...")
        out |= found
    for names in ties(groups, constraints):
        if not out.isdisjoint(names):
            out |= set(names)
    return frozenset(out)


def _named(group: Group, pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in (group.name, *(slot.tensor for slot in group.slots)))


def allowed(importance: Importance, groups: Groups, constraints: Constraints) -> Importance:
    """The importances of groups that may be cut; a group without one stays dense."""
    whole = protected(groups, constraints)
    return replace(importance, by_group={g: v for g, v in importance.by_group.items() if g not in whole})


def ties(groups: Groups, constraints: Constraints) -> tuple[tuple[str, ...], ...]:
    """Groups that must keep equal widths: with `heads="equal"`, the heads of all layers that have as many."""
    if constraints.heads == "free":
        return ()
    alike: dict[int, list[str]] = {}
    for group in groups.groups:
        if group.role == "heads":
            alike.setdefault(group.units, []).append(group.name)
    return tuple(tuple(names) for names in alike.values() if len(names) > 1)


def tied(problem: Problem, classes: Sequence[Sequence[str]]) -> Problem:
    """The problem in which the first group of each class stands for all of them: one choice, their losses together.

    Only widths that all groups of a class may take are left.
    """
    head = {name: names[0] for names in classes for name in names if name in problem.candidates}
    common = {
        names[0]: set.intersection(*(set(problem.candidates[n].tolist()) for n in names if n in head))
        for names in classes
        if names[0] in head
    }
    stays = {
        g: np.flatnonzero(np.isin(c, sorted(common[head[g]]))) if g in head else np.arange(len(c))
        for g, c in problem.candidates.items()
    }
    loss: dict[str, Floats] = {}
    for group, values in problem.loss.items():
        at = head.get(group, group)
        here = values[stays[group]]
        loss[at] = loss[at] + here if at in loss else here
    return replace(
        problem,
        candidates={g: c[stays[g]] for g, c in problem.candidates.items() if head.get(g, g) == g},
        loss=loss,
        resources=tuple(
            replace(r, loads=tuple(replace(x, costs=tuple(_joined(c, head, stays) for c in x.costs)) for x in r.loads))
            for r in problem.resources
        ),
        sums={name: replace(s, parts=_summed(s.parts, head)) for name, s in problem.sums.items()},
    )


def untied(widths: Widths, classes: Sequence[Sequence[str]]) -> dict[str, int]:
    """Widths of all groups again, each like the one that stood for it."""
    out = dict(widths)
    for names in classes:
        if names[0] in widths:
            out |= dict.fromkeys(names, widths[names[0]])
    return out


def _joined(cost: RegionCost, head: Mapping[str, str], stays: Mapping[str, Ints]) -> RegionCost:
    """A grid over the groups that stand for its own: the diagonal where two of them are one."""
    grid = cost.grid
    for dim, name in enumerate(cost.groups):
        if name in stays:
            grid = np.take(grid, stays[name], axis=dim)
    names = [head.get(g, g) for g in cost.groups]
    letters = dict(zip(dict.fromkeys(names), ascii_letters, strict=False))
    grid = np.einsum(f"{''.join(letters[n] for n in names)}->{''.join(letters.values())}", grid)
    return replace(cost, groups=tuple(letters), grid=np.array(grid))


def _summed(parts: Sequence[tuple[str, int]], head: Mapping[str, str]) -> tuple[tuple[str, int], ...]:
    times: dict[str, int] = {}
    for name, count in parts:
        at = head.get(name, name)
        times[at] = times.get(at, 0) + count
    return tuple(times.items())
