"""Drawings put known numbers at the right pixels; numbers are written with the digits they deserve."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from cpd_edge.report import curves, figures, svg
from cpd_edge.report import format as write
from cpd_edge.report.latency import waterfall_steps
from cpd_edge.report.svg import Scale
from cpd_edge.types import Interval

PRUNED = Interval(12.0, 11.0, 13.0, 500)


def drawn(text: str) -> ElementTree.Element:
    """The drawing as XML; fails where it is not well-formed."""
    return ElementTree.fromstring(text)


def of(root: ElementTree.Element, class_: str) -> list[ElementTree.Element]:
    return [e for e in root.iter() if e.get("class") == class_]


def at(element: ElementTree.Element, name: str) -> float:
    return float(element.get(name, "nan"))


def tick_scale(root: ElementTree.Element, axis: str) -> Scale:
    """The scale of an axis as read off its grid lines and tick labels, like a person would."""
    lines = [e for e in of(root, "grid") if (e.get("x1") == e.get("x2")) == (axis == "x")]
    pixels = [at(e, f"{axis}1") for e in lines]
    anchor = "middle" if axis == "x" else "end"
    texts = [e for e in of(root, "t") if e.get("text-anchor") == anchor and re.fullmatch(r"[\d.,−]+", e.text or "")]
    values = [float((t.text or "").replace(",", "").replace("−", "-")) for t in texts][: len(pixels)]
    return Scale(values[0], values[-1], pixels[0], pixels[-1])


def test_budget_line_and_band_stand_at_their_latencies() -> None:
    """In the distribution the budget line is at the budget, the band spans the interval."""
    samples = {"dense": np.linspace(19.0, 21.0, 200), "pruned": np.linspace(11.0, 13.0, 200)}
    root = drawn(figures.distribution("f", "t", "r", samples, {"pruned": PRUNED}, 15.0))
    scale = tick_scale(root, "x")
    budget, band = of(root, "budget")[0], of(root, "band s-pruned")[0]
    assert at(budget, "x1") == at(budget, "x2") == pytest.approx(scale(15.0), abs=0.2)
    assert at(band, "x") == pytest.approx(scale(11.0), abs=0.2)
    assert at(band, "x") + at(band, "width") == pytest.approx(scale(13.0), abs=0.3)


def test_bullet_puts_interval_beside_budget() -> None:
    """The whisker ends left of the budget line exactly when the upper bound is inside the budget."""
    for limit, inside in ((13.5, True), (12.5, False)):
        root = drawn(figures.bullet("f", "t", "r", PRUNED, limit))
        right = max(at(e, "x2") for e in of(root, "whisker s-pruned"))
        assert (right < at(of(root, "budget")[0], "x1")) == inside


def test_ecdf_crosses_half_at_the_median() -> None:
    """The curve passes through (median, 50 %), and the whisker of p50 lies at that height."""
    samples = np.linspace(10.0, 14.0, 401)
    root = drawn(figures.ecdf("f", "t", "r", "pruned", samples, [("p50", PRUNED)], 13.0))
    x, y = tick_scale(root, "x"), tick_scale(root, "y")
    curve = of(root, "curve s-pruned")[0].get("d", "")
    points = [tuple(map(float, p.split())) for p in curve[1:].split("L")]
    nearest = min(points, key=lambda p: abs(p[1] - y(50)))
    assert nearest[0] == pytest.approx(x(12.0), abs=2.0)
    assert at(of(root, "point s-pruned")[0], "cy") == pytest.approx(y(50), abs=0.2)
    assert at(of(root, "budget")[0], "x1") == pytest.approx(x(13.0), abs=0.2)


def test_time_strip_keeps_outliers_on_its_edge() -> None:
    """Every sample is drawn: as a speck inside the range, as a triangle above it."""
    latency = np.full(100, 12.0) + np.linspace(0, 0.2, 100)
    latency[40] = 60.0
    root = drawn(figures.time_strip("f", "t", "r", {"pruned": (np.arange(100.0), latency)}, 12.5))
    assert of(root, "specks s-pruned")[0].get("d", "").count("M") == 99
    assert len([e for e in of(root, "fill s-pruned") if e.tag.endswith("path")]) == 1


def test_time_strip_thins_long_runs_but_keeps_extremes() -> None:
    """Of very many samples the strip draws at most 1,500, the slowest among them."""
    latency = np.full(50_000, 12.0)
    latency[::7] = 12.2
    latency[31_234] = 80.0
    text = figures.time_strip("f", "t", "r", {"pruned": (np.arange(50_000.0), latency)}, None)
    assert text.count("h0") <= 1500
    assert len([e for e in of(drawn(text), "fill s-pruned") if e.tag.endswith("path")]) == 1


def test_waterfall_closes() -> None:
    """Named changes, all others and the rest sum to the whole change; the last bar is the pruned total."""
    changes = [(f"r{i}", -0.1 * (i + 1)) for i in range(20)]
    steps = waterfall_steps(changes, -22.0)
    assert sum(c for _, c in steps) == pytest.approx(-22.0)
    assert [n for n, _ in steps[-2:]] == ["8 other regions", "unattributed rest"]
    root = drawn(figures.waterfall("f", "t", "r", 40.0, steps))
    dense, pruned = of(root, "fill s-dense")[0], of(root, "fill s-pruned")[0]
    assert at(pruned, "width") / at(dense, "width") == pytest.approx(18 / 40, abs=0.002)
    assert len(of(root, "fill gain")) == len(steps)


def test_scatter_is_on_the_diagonal_when_right() -> None:
    """A plan predicted without error lies on the line of no error."""
    root = drawn(curves.scatter("f", "t", "r", [(8.0, 8.0, None), (20.0, 20.0, 25.0)]))
    line = of(root, "identity")[0]
    slope = (at(line, "y2") - at(line, "y1")) / (at(line, "x2") - at(line, "x1"))
    for point in of(root, "point s-pruned"):
        assert at(point, "cy") == pytest.approx(at(line, "y1") + slope * (at(point, "cx") - at(line, "x1")), abs=0.2)


def test_skyline_heights_are_widths() -> None:
    """Bars are as high as the layer is wide, dense and pruned on one scale."""
    root = drawn(curves.skyline("f", "t", "r", [(100, 25), (200, 200)]))
    dense = [at(e, "height") for e in of(root, "ghost")][:2]
    pruned = [at(e, "height") for e in of(root, "fill s-pruned")][:2]
    assert dense[1] / dense[0] == pytest.approx(2, abs=0.01)
    assert pruned == [pytest.approx(dense[0] / 4, abs=0.1), pytest.approx(dense[1], abs=0.1)]


def test_rounds_and_curves_place_the_budget() -> None:
    """The budget line is level with the budget's tick."""
    log = [("1", 12.0, 11.9, PRUNED), ("2", None, None, None)]
    for root in (
        drawn(curves.rounds("f", "t", "r", log, 12.0)),
        drawn(curves.curve("f", "t", "r", [(0.0, 11.0), (10.0, 13.0)], line_ms=12.0)),
    ):
        line = next(e for e in of(root, "budget") if at(e, "x2") > 300)
        assert at(line, "y1") == pytest.approx(tick_scale(root, "y")(12.0), abs=0.2)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (11.93, 12.71), (0.0, 2048.0), (1e-5, 3e-5), (5.0, 5.0)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    """Ticks lie inside the range, evenly apart, few, and at least one."""
    ticks = Scale(low, high, 0, 100).ticks(5)
    assert 1 <= len(ticks) <= 11
    assert all(low - 1e-9 <= t <= high + 1e-9 for t in ticks)
    assert len({round(b - a, 9) for a, b in pairwise(ticks)}) <= 1


def test_text_in_drawings_is_escaped() -> None:
    """Names in a drawing cannot leave their text."""
    text = figures.waterfall("f", "<b>", "&", 2.0, [('"><script>', -1.0)])
    assert "<script" not in text and drawn(text) is not None
    assert svg.element("g", data_x='"&') == '<g data-x="&quot;&amp;"/>'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (write.interval_ms(Interval(12.3, 12.1, 12.5, 9)), "12.3 ms [12.1, 12.5]"),
        (write.interval_ms(Interval(12.3, 12.28, 12.32, 9)), "12.30 ms [12.28, 12.32]"),
        (write.interval_ms(Interval(12.3, 12.1, math.inf, 9)), "12.3 ms [12.1, not supported by n]"),
        (write.interval_ms(None), "not measured"),
        (write.ms(0.01234), "0.0123 ms"),
        (write.exact(12.8), "12.8"),
        (write.exact(100.0), "100"),
        (write.percent(0.021), "2.1 %"),
        (write.percent(-0.5), "−50 %"),
        (write.count(4_089_284_608), "4.09 G"),
        (write.count(9408), "9,408"),
        (write.size(102_146_911), "102 MB"),
        (write.size(999), "999 B"),
        (write.duration(192), "3 min 12 s"),
        (write.duration(3840), "1 h 4 min"),
        (write.quantile(0.999), "p99.9"),
        (write.quantile(0.5), "p50"),
        (write.score(0.9312, True), "93.12 %"),
        (write.score_change(-0.0071, True), "−0.71 pp"),
        (write.score_change(0.002, True), "+0.20 pp"),
        (write.number(3.1e-5, 2), "3.1e−5"),
        (write.number(0.0), "0"),
        (write.fixed(-0.0001, 2), "0.00"),
        (write.shorten("layer1.block.conv.weight", 11), "layer…eight"),
    ],
)
def test_numbers_are_written(text: str, expected: str) -> None:
    """Significant digits follow the interval, units are always there, minus is a minus."""
    assert text == expected


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99, 0.999])
def test_level_inverts_quantile(share: float) -> None:
    """level(quantile(q)) == q; other names have no level."""
    assert write.level(write.quantile(share)) == pytest.approx(share)
    assert write.level("mean") is None
