"""The drawing as SVG text: the headline, the rows with their cells, the rails over them, what is frozen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any

from cpd_edge.layout import Layout, Leaf, Sum, axes
from cpd_edge.report import format as write
from cpd_edge.report import svg
from cpd_edge.report.drawing import captions, marks
from cpd_edge.report.drawing.outline import Line
from cpd_edge.report.drawing.picture import Picture, Row
from cpd_edge.report.drawing.rails import COLOURS, Rail
from cpd_edge.report.drawing.sheet import BAR, BRACKET, CELL, EDGE, HEADING, LEGEND, ROW, Bracket, Sheet

LIGHT = ("#5986f8", "#c27c0e", "#8b059c", "#629866", "#9e1715", "#a16390")
DARK = ("#5986f8", "#fec31f", "#67dbfc", "#d7eaa8", "#fa4d3d", "#c4738d")
"""Any two lie 20 or more apart in CIELAB, also as protanopes, deuteranopes and tritanopes see them."""

_WHITE_FIGURES = (2, 4, 5)
"""The light colours dark enough for white figures; the others, and all in the dark, bear black ones."""


def draw(picture: Picture) -> str:
    """The drawing as the text of an SVG file: light and dark, without scripts, the same for the same picture."""
    sheet = Sheet(picture)
    parts = [
        svg.element("title", svg.escape(f"{picture.title}: groups that can be removed together")),
        svg.element("desc", svg.escape(captions.reading(picture, sheet.rails))),
        svg.element("style", _style(len(sheet.rails))),
        svg.element("defs", marks.patterns()),
        svg.box(0, 0, sheet.width, sheet.height, "page"),
        *_headline(sheet),
        *_bands(sheet),
        *_guides(sheet),
        *(_row(sheet, line, line.row) for line in sheet.lines if line.row is not None),
        *(_bracket(sheet, bracket) for bracket in sheet.brackets),
        *(_rail(sheet, k, rail) for k, rail in enumerate(sheet.rails)),
        *_notes(sheet),
    ]
    width, height = round(sheet.width), round(sheet.height)
    box = f"0 0 {width} {height}"
    root = svg.element(
        "svg", "\n".join(parts), xmlns="http://www.w3.org/2000/svg", width=width, height=height, viewBox=box
    )
    return f"{root}\n"


def _style(rails: int) -> str:
    """The stylesheet, with the palette of both modes and the rules that single out what is pointed at."""
    sheet = files("cpd_edge.report").joinpath("templates/drawing.css").read_text(encoding="utf-8")
    black, white = "#10141a", "#ffffff"
    figures = [white if i in _WHITE_FIGURES else black for i in range(COLOURS)]
    light = _palette(LIGHT, figures)
    dark = _palette(DARK, [black] * COLOURS)
    single = "".join(f"svg:has(.k{k}:hover) .k:not(.k{k}) {{ opacity: .15; }}\n" for k in range(rails))
    return sheet.replace("/* light palette */", light).replace("/* dark palette */", dark) + single


def _palette(colours: Sequence[str], figures: Sequence[str]) -> str:
    rules = (
        f".p{i} {{ fill: {c}; stroke: {c}; }} .n{i} {{ fill: {f}; }}"
        for i, (c, f) in enumerate(zip(colours, figures, strict=True))
    )
    return "\n".join(rules)


def _headline(sheet: Sheet) -> Iterator[str]:
    """Title, facts, legend, and the heads of the columns."""
    shape = " × ".join(map(str, sheet.picture.input_shape))
    yield svg.label(EDGE, 42, sheet.picture.title, class_="title")
    yield svg.label(EDGE, 64, f"{captions.facts(sheet.picture)} · input {shape}", class_="soft")
    yield svg.element("g", sheet.legend[0], transform=f"translate(0 {svg.coordinate(LEGEND)})")
    y = sheet.top - 12
    yield svg.label(sheet.names, y, "layer", class_="soft small")
    yield svg.label(sheet.weights, y, "weight", class_="soft small")
    yield svg.label(sheet.numbers, y, "parameters", "end", "soft small")
    yield svg.label(sheet.reads + CELL / 2, y, "reads", "middle", "soft small")
    yield svg.label(sheet.makes + CELL / 2, y, "makes", "middle", "soft small")
    if sheet.rails:
        yield svg.label(min(sheet.lanes) - 12, y, "groups", class_="soft small")
    yield svg.line(EDGE, y + 7, sheet.width - EDGE, y + 7, "rule")


def _bands(sheet: Sheet) -> Iterator[str]:
    """A light band behind the lines of each module, with its name and its parameters at the top."""
    for i, line in enumerate(sheet.lines):
        if line.row is None:
            below = (j for j in range(i + 1, len(sheet.lines)) if sheet.lines[j].depth <= line.depth)
            end = next(below, len(sheet.lines))
            inside = [inner.row for inner in sheet.lines[i:end] if inner.row is not None]
            x, y = sheet.name_at(line), sheet.at[i]
            shape: dict[str, Any] = {
                "x": x - 6,
                "y": y + 2,
                "width": sheet.width - EDGE - x + 6,
                "height": sheet.at[end] - y - 4,
            }
            yield svg.element("rect", class_="band", rx=4, **shape)
            above = svg.element("tspan", svg.escape(line.above), class_="soft") if line.above else ""
            name = above + svg.element("tspan", svg.escape(line.text), class_="head")
            yield svg.element("text", name, x=x, y=y + HEADING / 2 + 5)
            params = sum(sheet.picture.rows[row].params for row in inside)
            yield svg.label(sheet.numbers, y + HEADING / 2 + 5, write.count(params), "end", "small head")


def _guides(sheet: Sheet) -> Iterator[str]:
    """A faint line from each row's cells to the last rail that it touches."""
    for row, x in sorted(sheet.reach.items()):
        yield svg.line(sheet.makes + CELL + 3, sheet.middle[row], x, sheet.middle[row], "guide")


def _row(sheet: Sheet, line: Line, index: int) -> str:
    """A layer: name, weight, parameters, and the cells of what it reads and makes."""
    row, x, y = sheet.picture.rows[index], sheet.name_at(line), sheet.middle[index]
    most = max(other.params for other in sheet.picture.rows) or 1
    before, name, after = (svg.escape(piece) for piece in captions.label(row, line.text))
    text = svg.element("tspan", before, class_="soft") if before else ""
    text += name + (svg.element("tspan", after, class_="soft") if after else "")
    parts = [
        svg.element("title", svg.escape(captions.of_row(row))),
        svg.box(x - 6, y - ROW / 2, sheet.makes + CELL + 12 - x, ROW, "under"),
        svg.element("text", text, x=x, y=y + 4),
        svg.label(sheet.weights, y + 4, captions.weight(row), class_="soft small"),
        svg.label(sheet.numbers, y + 4, write.count(row.params), "end", "small"),
        svg.box(sheet.numbers + 10, y - 4, max(row.params / most * BAR, 0.5), 8, "bar"),
        *_cells(sheet, row, y),
    ]
    return svg.element("g", "".join(parts), class_="row", data_row=index)


def _cells(sheet: Sheet, row: Row, y: float) -> Iterator[str]:
    """What a layer reads and what it makes; one flat cell across both for what it only carries."""
    if row.reads or row.makes:
        yield from _cell(sheet, row.reads, sheet.reads, y - 5.5, CELL, 11)
        yield from _cell(sheet, row.makes, sheet.makes, y - 5.5, CELL, 11)
        x = sheet.makes - 9
        yield svg.path([(x, y - 3), (x + 4, y), (x, y + 3)], "arrow")
    else:
        yield from _cell(sheet, row.carries, sheet.reads, y - 2.5, sheet.makes + CELL - sheet.reads, 5)


def _cell(sheet: Sheet, dims: Sequence[Layout], x: float, y: float, width: float, height: float) -> Iterator[str]:
    """A box for each dim, filled with the axes that it is made of."""
    each = (width + 2) / max(len(dims), 1) - 2
    for i, dim in enumerate(dims):
        yield svg.box(x + i * (each + 2), y, each, height, "cell")
        yield from _fill(sheet, dim, x + i * (each + 2), y, each, height)


def _fill(sheet: Sheet, layout: Layout, x: float, y: float, width: float, height: float) -> Iterator[str]:
    """Parts of a sum side by side by their extents, factors of a product one above the other."""
    if isinstance(layout, Leaf):
        if layout.axis in sheet.looks:
            class_, text, texture = sheet.looks[layout.axis]
            shape: dict[str, Any] = {"x": x, "y": y, "width": max(width, 0.5), "height": height}
            yield svg.element("rect", svg.element("title", svg.escape(text)), class_=class_, **shape)
            if texture:
                yield svg.element("rect", class_=f"t{texture}", **shape)
    elif isinstance(layout, Sum):
        for part in layout.parts:
            wide = width * part.extent / layout.extent
            yield from _fill(sheet, part, x, y, wide, height)
            x += wide
    else:
        shown = [part for part in layout.parts if any(axis in sheet.looks for axis in axes(part))]
        for i, part in enumerate(shown):
            yield from _fill(sheet, part, x, y + i * height / len(shown), width, height / len(shown))


def _rail(sheet: Sheet, k: int, rail: Rail) -> str:
    """A group's line with a mark in each of its rows."""
    x, middle = sheet.lanes[rail.lane], sheet.middle
    parts = [svg.element("title", svg.escape(captions.of_rail(sheet.picture, rail)))]
    if rail.first != rail.last:
        ends = [(x, middle[rail.first]), (x, middle[rail.last])]
        parts += [svg.path(ends, "hit"), svg.path(ends, marks.stroke(rail))]
    parts += [marks.mark(x, middle[row], row, role, rail) for row, role in rail.ports]
    return svg.element("g", "".join(parts), class_=f"k k{k}", data_group=rail.name)


def _bracket(sheet: Sheet, bracket: Bracket) -> str:
    """The bracket of what can go whole."""
    text = captions.of_branches(sheet.picture, bracket.names, bracket.rows)
    ticks = [sheet.middle[row] for row in bracket.rows]
    body = marks.bracket(EDGE + bracket.level * BRACKET, ticks[0] - 6, ticks[-1] + 6, ticks)
    title = svg.element("title", svg.escape(text))
    return svg.element("g", title + body, class_="branch", data_rows=" ".join(map(str, bracket.rows)))


def _notes(sheet: Sheet) -> Iterator[str]:
    """What is frozen and why, in words."""
    y = sheet.at[-1] + 30
    if sheet.notes:
        yield svg.label(EDGE, y, "Frozen", class_="head")
    room = int((sheet.width - 2 * EDGE - 200) / marks.WORD)
    for i, (much, why) in enumerate(sheet.notes, 1):
        yield svg.label(EDGE, y + i * ROW, much, class_="small")
        yield svg.label(EDGE + 200, y + i * ROW, write.shorten(why, room), class_="soft small")
