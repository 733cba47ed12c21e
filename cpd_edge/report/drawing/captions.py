"""The words of a drawing: names that fit, tooltips, the headline's facts, what is frozen and why."""

from __future__ import annotations

from collections.abc import Sequence

from cpd_edge.layout import axes
from cpd_edge.report import format as write
from cpd_edge.report.drawing.picture import Picture, Row
from cpd_edge.report.drawing.rails import Rail
from cpd_edge.types import Frozen

LONGEST = 48
"""Longest name that is shown in full [characters]."""


def several(n: int, one: str, many: str) -> str:
    """`1 axis`, `2 axes`."""
    return f"{n} {one if n == 1 else many}"


def some(names: Sequence[str], most: int) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def label(row: Row, name: str) -> tuple[str, str, str]:
    """A row's label in three pieces: what comes before, the layer itself, what comes after."""
    before = "".join(f"{guest} ▸ " for guest in row.before)
    after = "".join(f" + {guest}" for guest in row.after)
    room = max(12, LONGEST - len(name))
    return write.shorten(before, room), write.shorten(name, LONGEST), write.shorten(after, room)


def weight(row: Row) -> str:
    """`conv2d 64×3×7×7`."""
    return f"{row.kind} {'×'.join(map(str, row.shape))}"


def of_row(row: Row) -> str:
    """Tooltip of a layer."""
    names = " + ".join((*row.before, row.name, *row.after))
    shape = " × ".join(map(str, row.shape))
    return f"{names}\n{row.kind}, weight {shape}, {row.params:,} parameters\n{some(row.tensors, 8)}"


def of_frozen(frozen: Frozen) -> str:
    """Tooltip of a frozen axis."""
    where = f" at {frozen.source}" if frozen.source else ""
    return f"{frozen.axis}: {several(frozen.units, 'unit', 'units')}, frozen: {frozen.reason}{where}"


def of_rail(picture: Picture, rail: Rail) -> str:
    """Tooltip of a rail: who makes, reads and carries its units."""
    if rail.frozen is not None:
        return of_frozen(rail.frozen)
    rows = picture.rows
    lines = [f"{rail.name}: {several(rail.units, 'unit', 'units')}"]
    if not rail.exact:
        lines.append("inexact: a statistic runs over the units, so only distillation recovers a cut")
    for words, roles in (("made by", ("makes", "both")), ("read by", ("reads", "both")), ("carried by", ("carries",))):
        names = [rows[row].name for row, role in rail.ports if role in roles]
        if names:
            lines.append(f"{words} {some(names, 6)}")
    params = sum(rows[row].params for row, _ in rail.ports)
    slots = several(len(picture.groups[rail.name].slots), "slot", "slots")
    lines.append(f"{slots} in layers of {params:,} parameters")
    return "\n".join(lines)


def of_branches(picture: Picture, names: Sequence[str], rows: Sequence[int]) -> str:
    """Tooltip of a bracket."""
    params = sum(picture.rows[row].params for row in rows)
    return "\n".join((f"can go whole: {several(len(rows), 'layer', 'layers')}, {params:,} parameters", *names))


def facts(picture: Picture) -> str:
    """The headline's numbers."""
    idle = picture.params - sum(row.params for row in picture.rows)
    tensors = {tensor for row in picture.rows for tensor in row.tensors}
    widths = [group for group in picture.groups.groups if group.slots]
    stray = sum(all(slot.tensor not in tensors for slot in group.slots) for group in widths)
    found = [
        f"{write.count(picture.params)} parameters" + (f" ({write.count(idle)} in no traced layer)" if idle else ""),
        several(len(widths), "group", "groups") + (f" ({stray} in no traced layer)" if stray else ""),
    ]
    if picture.branches:
        found.append(several(len(picture.branches), "branch that can go whole", "branches that can go whole"))
    if picture.groups.frozen:
        found.append(several(len(picture.groups.frozen), "frozen axis", "frozen axes"))
    return " · ".join((*found, f"{write.portion(picture.prunable)} of the parameters can be cut"))


def reading(picture: Picture, rails: Sequence[Rail]) -> str:
    """What a screen reader says."""
    coupled = sum(rail.coupled and rail.frozen is None for rail in rails)
    return (
        f"{facts(picture)}. {several(coupled, 'group is', 'groups are')} made by more than one layer. Rows are layers "
        "from the input down; each vertical line is a group, with a mark in every row that makes, reads or carries it."
    )


def reasons(picture: Picture) -> tuple[tuple[str, str], ...]:
    """What is frozen, a line for each reason, most parameters first: how much, and why, what and where."""
    by_reason: dict[str, list[Frozen]] = {}
    for frozen in picture.groups.frozen:
        by_reason.setdefault(frozen.reason, []).append(frozen)
    found = []
    for reason, stuck in by_reason.items():
        named = {frozen.axis for frozen in stuck}
        held = sum(r.params for r in picture.rows if named & set(axes(*r.reads, *r.makes, *r.carries)))
        sources = list(dict.fromkeys(frozen.source for frozen in stuck if frozen.source))
        where = f", at {some([write.shorten(source, LONGEST) for source in sources], 1)}" if sources else ""
        much = f"{several(len(stuck), 'axis', 'axes')} in {write.count(held)} parameters"
        names = some([write.shorten(frozen.axis, LONGEST // 2) for frozen in stuck], 2)
        found.append((held, much, f"{reason}: {names}{where}"))
    return tuple((much, why) for _, much, why in sorted(found, key=lambda f: (-f[0], f[2])))
