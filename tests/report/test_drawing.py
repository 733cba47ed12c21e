"""The drawing as a file: what is in the picture is on the paper, once, in its place, whatever its name."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cpd_edge.layout import Layout, Leaf, Prod, Sum
from cpd_edge.report.drawing import Branch, Picture, Row, draw
from cpd_edge.report.drawing.outline import outline
from cpd_edge.report.drawing.rails import ports, rails
from cpd_edge.report.drawing.sheet import Sheet
from cpd_edge.types import Frozen, Group, Groups, Slot

HOSTILE = "a<b>&\"c'\x00]]>.d"
STREAM, INNER, HEADS, WIDTH = Leaf("stem", 24), Leaf("layer1.0.a", 10), Leaf("layer1.1.q", 3), Leaf("layer1.1.q:2", 8)
IMAGE, CLASSES, GONE = Leaf("stem:2", 3), Leaf("head", 5), Leaf("kernel", 9)


def row(name: str, reads: Layout | None, makes: Layout | None, carries: Layout | None = None, params: int = 100) -> Row:
    """A layer of one weight."""
    sides = [() if layout is None else (layout,) for layout in (reads, makes, carries)]
    shape = tuple(layout.extent for layout in (makes, reads, carries) if layout is not None)
    return Row(name, "linear", shape, params, (f"{name}.weight",), *sides)


def group(leaf: Leaf, *slots: tuple[str, bool], exact: bool = True) -> Group:
    """A group with one slot in each of some rows."""
    found = tuple(Slot(f"{name}.weight", 0 if not reads else 1, leaf, reads) for name, reads in slots)
    return Group(leaf.axis, leaf.extent, found, exact)


def picture() -> Picture:
    """A stem, a residual layer, an attention that concatenates, a norm, a head; the image and the classes frozen."""
    packed = Sum((Prod((HEADS, WIDTH)), Prod((HEADS, WIDTH))))
    rows = (
        row("stem", IMAGE, STREAM),
        row("layer1.0.a", STREAM, INNER, params=400),
        row("layer1.0.b", INNER, STREAM),
        row("layer1.1.q", STREAM, packed),
        row("layer1.1.norm", None, None, STREAM),
        row("layer1.1.proj", Prod((HEADS, WIDTH)), STREAM),
        row("head", STREAM, CLASSES),
    )
    groups = (
        group(STREAM, ("stem", False), ("layer1.0.a", True), ("layer1.0.b", False), ("layer1.1.q", True),
              ("layer1.1.norm", False), ("layer1.1.proj", False), ("head", True), exact=False),
        group(INNER, ("layer1.0.a", False), ("layer1.0.b", True)),
        group(HEADS, ("layer1.1.q", False), ("layer1.1.proj", True)),
        group(WIDTH, ("layer1.1.q", False), ("layer1.1.proj", True)),
    )  # fmt: skip
    frozen = (Frozen("stem:2", 3, "network input"), Frozen("head", 5, "network output", "net.py:7", 120))
    return Picture("small", (3, 8, 8), 1100, 0.9, rows, Groups(groups, frozen), (Branch("layer1.0:depth", (1, 2)),))


def parsed(drawn: str) -> ElementTree.Element:
    """The root, without name space."""
    return ElementTree.fromstring(drawn.replace(' xmlns="http://www.w3.org/2000/svg"', ""))


def center(shape: ElementTree.Element) -> tuple[float, float]:
    """The middle of a box, a disc or a line."""
    found = {key: float(value) for key, value in shape.items() if re.fullmatch(r"-?[\d.]+", value)}
    if shape.tag == "circle":
        return found["cx"], found["cy"]
    if shape.tag == "line":
        return (found["x1"] + found["x2"]) / 2, (found["y1"] + found["y2"]) / 2
    return found["x"] + found["width"] / 2, found["y"] + found["height"] / 2


def classes(element: ElementTree.Element) -> set[str]:
    """The classes of an element."""
    return set(element.get("class", "").split())


def group_rail(root: ElementTree.Element, name: str) -> ElementTree.Element:
    """The one rail of a group."""
    (found,) = [g for g in root.iter("g") if g.get("data-group") == name]
    return found


def of_row(root: ElementTree.Element, index: int) -> ElementTree.Element:
    """The one element of a row."""
    (found,) = [g for g in root.iter("g") if g.get("class") == "row" and g.get("data-row") == str(index)]
    return found


def dense_block(layers: int) -> Picture:
    """Each layer reads what all the ones before it made: as many long rails as layers."""
    grown = [Leaf(f"block.{i}", 32) for i in range(layers)]
    rows = [row("block.0", IMAGE, grown[0])]
    rows += [row(f"block.{i}", Sum(tuple(grown[:i])), grown[i]) for i in range(1, layers)]
    rows.append(row("head", Sum(tuple(grown)), CLASSES))
    return Picture("dense", (3, 8, 8), 1, 1.0, tuple(rows), Groups(tuple(group(g, (g.axis, False)) for g in grown), ()))


def residual(blocks: int) -> Picture:
    """One stream, and two private widths a block that come and go beside it."""
    rows, groups = [row("stem", IMAGE, STREAM)], [group(STREAM, ("stem", False))]
    for i in range(blocks):
        a, b = Leaf(f"{i}.a", 10 + i), Leaf(f"{i}.b", 10 + i)
        rows += [row(f"{i}.a", STREAM, a), row(f"{i}.b", a, b), row(f"{i}.c", b, STREAM)]
        groups += [group(a, (f"{i}.a", False)), group(b, (f"{i}.b", False))]
    return Picture("deep", (3, 8, 8), 1, 1.0, tuple(rows), Groups(tuple(groups), ()))


def test_every_group_has_one_rail_that_bears_its_units() -> None:
    root = parsed(draw(picture()))
    borne = {
        g.name: "".join(t.text or "" for t in group_rail(root, g.name).iter("text")) for g in picture().groups.groups
    }

    assert {"stem": "≈24", "layer1.0.a": "10", "layer1.1.q": "3", "layer1.1.q:2": "8"} == borne


def test_every_slot_has_a_port_in_its_layers_row() -> None:
    """The mark stands at the height of the layer's row, on the group's lane, and says what the slot does."""
    drawn, sheet = parsed(draw(picture())), Sheet(picture())
    at = {tensor: i for i, r in enumerate(picture().rows) for tensor in r.tensors}
    for g in picture().groups.groups:
        (lane,) = [sheet.lanes[rail.lane] for rail in sheet.rails if rail.name == g.name]
        marks = {m.get("data-row"): m for m in group_rail(drawn, g.name) if m.tag == "g"}
        for slot in g.slots:
            mark = marks[str(at[slot.tensor])]
            here = (lane, sheet.middle[at[slot.tensor]])
            assert here == pytest.approx(center(next(iter(mark))), abs=0.2)
            assert slot.reads == (mark.get("data-role") == "reads")


def test_a_norm_only_carries() -> None:
    assert dict(ports(picture().rows)["stem"])[4] == "carries"


def test_rails_of_several_makers_are_wide_and_the_others_are_not() -> None:
    root = parsed(draw(picture()))
    wide = {
        g.name
        for g in picture().groups.groups
        if any("wide" in classes(p) for p in group_rail(root, g.name).iter("path"))
    }

    assert {"stem"} == wide


def test_frozen_axes_are_grey_and_say_why() -> None:
    root = parsed(draw(picture()))
    for index, said in (
        (0, "stem:2: 3 units, frozen: network input"),
        (6, "head: 5 units, frozen: network output at net.py:7"),
    ):
        (cell,) = [r for r in of_row(root, index).iter("rect") if "z" in classes(r)]

        assert said == cell.findtext("title")
        assert {"c", "z"} == classes(cell)


def test_a_frozen_stream_is_a_grey_rail() -> None:
    """What keeps a whole stream from being cut shows as much as what can be cut."""
    kept = picture().groups
    stuck = Groups(kept.groups[1:], (*kept.frozen, Frozen("stem", 24, "index: it has no rule", "net.py:9")))
    rail = group_rail(parsed(draw(replace(picture(), groups=stuck))), "stem")

    assert "stem: 24 units, frozen: index: it has no rule at net.py:9" == rail.findtext("title")
    assert not [e for e in rail.iter() if any(re.fullmatch(r"p\d", c) for c in classes(e))]


def test_a_product_is_stacked_and_a_concat_stands_side_by_side() -> None:
    """The packed projection makes two parts, each of heads above width; heads lie above width in what is read."""
    made = [
        r for r in of_row(parsed(draw(picture())), 3).iter("rect") if r.findtext("title", "").startswith("layer1.1.q")
    ]
    places = {
        (r.findtext("title", "").split(": ")[0], float(r.get("x", "nan")), float(r.get("y", "nan"))) for r in made
    }
    left, right = sorted({x for _, x, _ in places})
    high, low = sorted({y for _, _, y in places})

    assert {(HEADS.axis, x, high) for x in (left, right)} | {(WIDTH.axis, x, low) for x in (left, right)} == places


def test_a_branch_is_a_bracket_over_its_rows() -> None:
    root, sheet = parsed(draw(picture())), Sheet(picture())
    (bracket,) = [g for g in root.iter("g") if g.get("class") == "branch"]
    heights = [float(line.get("y1", "nan")) for line in bracket.iter("line")]

    assert [sheet.middle[1], sheet.middle[2]] == pytest.approx(heights, abs=0.1)
    assert "can go whole: 2 layers, 500 parameters\nlayer1.0:depth" == bracket.findtext("title")
    assert not [g for g in parsed(draw(replace(picture(), branches=()))).iter("g") if g.get("class") == "branch"]


def test_brackets_that_overlap_stand_beside_each_other() -> None:
    nested = (Branch("inner", (2,)), Branch("outer", (1, 2, 3)), Branch("same", (1, 2, 3)), Branch("below", (4,)))
    found = Sheet(replace(picture(), branches=nested)).brackets

    assert {("outer", "same"): 0, ("inner",): 1, ("below",): 0} == {b.names: b.level for b in found}


def test_hostile_names_stay_text() -> None:
    """A name may hold markup, quotes or a character that XML forbids: the file is still well-formed and says it."""
    first, kept = picture().rows[1], picture().groups
    bad = replace(first, name=HOSTILE, kind=HOSTILE, tensors=(HOSTILE,), makes=(Leaf(HOSTILE, 10),), after=(HOSTILE,))
    groups = Groups((*kept.groups, Group(HOSTILE, 10, (Slot(HOSTILE, 0, Leaf(HOSTILE, 10), False),))),
                    (Frozen("stem:2", 3, HOSTILE, HOSTILE),))  # fmt: skip
    rows = (picture().rows[0], bad, *picture().rows[2:])
    root = parsed(draw(replace(picture(), title=HOSTILE, rows=rows, groups=groups, branches=(Branch(HOSTILE, (1,)),))))

    assert HOSTILE.replace("\x00", "\ufffd") == next(t.text for t in root.iter("text") if classes(t) == {"title"})
    assert not {"b", "script"} & {e.tag for e in root.iter()}


def test_the_file_stands_alone() -> None:
    """No script, and nothing is fetched: the only address is the name space."""
    drawn = draw(picture())

    assert ["http://www.w3.org/2000/svg"] == re.findall(r"https?://[^\"]*", drawn)
    assert not {"script", "image", "use", "foreignObject"} & {e.tag for e in parsed(drawn).iter()}
    assert not re.findall(r"@import|url\((?!#)| on[a-z]+=", drawn)


def test_it_is_drawn_for_dark_pages_too() -> None:
    """Each colour of the palette has a value for either mode."""
    style = parsed(draw(picture())).findtext("style", "")
    light, dark = style.split("@media (prefers-color-scheme: dark)", 1)

    for i in range(6):
        assert re.search(rf"\.p{i} {{ fill: #", light)
        assert re.search(rf"\.p{i} {{ fill: #", dark)


def test_the_same_picture_is_drawn_the_same_in_another_process() -> None:
    """Not even the seed of Python's hashes changes a byte."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_drawing as it; "
        "sys.stdout.buffer.write(it.draw(it.picture()).encode())"
    )
    drawn = {
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, env={"PYTHONHASHSEED": seed, "PATH": ""}
        ).stdout
        for seed in ("1", "2")
    }

    assert {draw(picture()).encode()} == drawn


def test_it_needs_no_torch() -> None:
    code = "import sys, cpd_edge.report.drawing; sys.exit('torch' in sys.modules)"

    assert 0 == subprocess.run([sys.executable, "-c", code], check=False).returncode


@pytest.mark.parametrize("drawn", [picture(), residual(6), dense_block(20)], ids=["small", "residual", "dense"])
def test_rails_that_meet_in_a_row_have_lanes_of_their_own(drawn: Picture) -> None:
    found = rails(drawn.rows, drawn.groups)
    for a, b in combinations(found, 2):
        assert a.lane != b.lane or a.last < b.first or b.last < a.first


def test_private_widths_lie_left_of_the_stream() -> None:
    """They come and go in the same few lanes, however deep the network is."""
    lanes = {rail.name: rail.lane for rail in rails(residual(12).rows, residual(12).groups)}

    assert 2 == lanes.pop("stem")
    assert {0, 1} == set(lanes.values())


def test_concatenated_rails_stand_in_the_order_in_which_they_begin() -> None:
    """A dense block is a staircase, down to its last and shortest rail."""
    found = rails(dense_block(20).rows, dense_block(20).groups)

    assert list(range(20)) == [rail.lane for rail in found]


@pytest.mark.parametrize("drawn", [residual(12), dense_block(20)], ids=["residual", "dense"])
def test_neighbours_differ_in_colour(drawn: Picture) -> None:
    """Side by side or behind each other in a lane, and where they meet in a row of a residual network."""
    found = rails(drawn.rows, drawn.groups)
    for a, b in combinations(found, 2):
        apart = max(a.first - b.last, b.first - a.last)
        if (abs(a.lane - b.lane) <= 1 and apart <= 2) or (drawn.title == "deep" and apart <= 0):
            assert a.colour != b.colour


def test_rails_of_one_colour_that_run_together_differ_in_pattern() -> None:
    """Colour is not all that tells them apart: 18 rails can run together before two look alike."""
    found = rails(dense_block(18).rows, dense_block(18).groups)

    assert 18 == len({(rail.colour, rail.pattern) for rail in found})


def test_no_pill_covers_another_ones_mark() -> None:
    """Lanes are as far apart as the numbers in them are wide."""
    root, block = parsed(draw(dense_block(60))), dense_block(60)
    marks = [mark for g in block.groups.groups for mark in group_rail(root, g.name) if mark.tag == "g"]
    spans = {}
    for mark in marks:
        (x, _), shape = center(next(iter(mark))), next(iter(mark))
        half = float(shape.get("width", "nan")) / 2 if shape.tag == "rect" else 5.0
        spans.setdefault(mark.get("data-row"), []).append((x - half, x + half))

    assert 61 == len(spans)
    for found in spans.values():
        assert all(left[1] < right[0] for left, right in pairwise(sorted(found)))


@pytest.mark.parametrize("shown", [picture(), dense_block(30)], ids=["residual", "dense"])
def test_everything_lies_on_the_paper(shown: Picture) -> None:
    root = parsed(draw(shown))
    width, height = (float(root.get(side, "nan")) for side in ("width", "height"))
    for shape in [s for g in root.findall("g") for s in g.iter() if s.tag in ("rect", "circle", "line")]:
        x, y = center(shape)
        assert -20 < x < width
        assert -20 < y < height


def test_headings_stand_over_modules_of_several_layers() -> None:
    """Few layers are named in full; a chain of modules with nothing beside it is one heading."""
    names = ["stem", "a.b.0.x", "a.b.0.y", "a.b.0.z", "a.b.1.x", "c.x", "c.y", "a.b.2"]
    found = [(line.depth, line.above, line.text, line.row) for line in outline(names)]

    assert [
        (0, "", "stem", 0),
        (0, "", "a.b", None),
        (1, "a.b.", "0", None),
        (2, "a.b.0.", "x", 1),
        (2, "a.b.0.", "y", 2),
        (2, "a.b.0.", "z", 3),
        (1, "a.b.", "1.x", 4),
        (0, "", "c.x", 5),
        (0, "", "c.y", 6),
        (0, "", "a.b.2", 7),
    ] == found


def test_a_network_without_groups_or_layers_is_drawn() -> None:
    empty = Picture("empty", (3, 8, 8), 0, 0.0, (), Groups((), ()))

    assert "0 parameters · 0 groups · 0 % of the parameters can be cut" in draw(empty)


def test_parameters_of_no_layer_are_told() -> None:
    """A head that is only used in training is in the total, and in no row."""
    assert "(1,000 in no traced layer)" in draw(replace(picture(), params=2000))
