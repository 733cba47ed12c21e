"""Laws of a sweep's pages: they say where and how it was measured, what speaks against it, and lead to every run."""

from __future__ import annotations

from typing import Any

from cpd_edge.report.build import html, markdown
from cpd_edge.report.front import view

ENVIRONMENT = {"device": "AMD EPYC 9", "runtime": "onnxruntime", "runtime_version": "1.27.0", "threads": 2}


def point(name: str, ms: float, *failing: str, front: bool = True) -> dict[str, Any]:
    """A finished point, some of whose checks failed."""
    checks = [{"name": "optimal plan", "passed": True, "detail": "gap 0"}]
    checks += [{"name": what, "passed": False, "detail": "9 %"} for what in failing]
    return {
        "point": name, "verdict": "PASS", "reason": "", "front": front, "checks": checks, "environment": ENVIRONMENT,
        "latency_ms": {"estimate": ms, "low": ms, "high": ms, "n": 9}, "metric": "accuracy", "metric_pruned": 0.875,
        "dense_latency_ms": {"estimate": 7.5, "low": 7.25, "high": 7.75, "n": 9}, "metric_dense": 0.9375,
        "created": "2026-01-02T03:04:05+00:00", "version": "0.1.0", "command": "cpd-edge sweep net --speedups 2",
    }  # fmt: skip


def swept(*points: dict[str, Any], missing: tuple[str, ...] = ()) -> tuple[str, str]:
    """Both twins of a sweep's report, HTML first."""
    request = {"model": "net", "device": "local", "runtime": "onnxruntime"}
    report = view({"points": points, "missing": missing, "verdict": "PASS", "request": request, "sweep": "sw"})
    return html(report), markdown(report)


def test_a_sweep_says_where_when_and_how_it_was_measured() -> None:
    """The device's own name, the runtime's version, threads, date and command; none of the name it was asked by."""
    for page in swept(point("2x", 3.0)):
        assert all(text in page for text in ("AMD EPYC 9", "onnxruntime 1.27.0", "Threads", "2026-01-02 03:04:05"))
        assert "cpd-edge sweep net --speedups 2" in page and "local" not in page


def test_a_sweep_says_what_the_dense_network_takes_and_leads_to_every_run() -> None:
    """In the text and in the table; the links are relative, so that the folder may be moved."""
    page, text = swept(point("2x", 3.0), point("4x", 2.0))
    assert 2 == text.count("7.50 ms [7.25, 7.75]") == page.count('<td class="n">7.50 ms') + 1
    assert 2 == text.count("93.75 %")
    assert '<a href="4x/report.html">' in page and "[2x/report.html](2x/report.html)" in text
    assert "| | value | |" not in text


def test_a_point_with_failed_checks_says_so() -> None:
    """Beside its verdict, in the headline and check by check; others say nothing."""
    page, text = swept(point("2x", 3.0, "table predicts", "no trend"), point("4x", 2.0))
    assert "| PASS, 2 checks failed |" in text and "| PASS |" in text and "<td>PASS, 2 checks failed</td>" in page
    assert "checks failed at 2x" in text and "- 2x: table predicts (9 %)" in text


def test_the_line_is_spoken_of_where_there_is_one() -> None:
    """A front of one point has no line."""
    assert "the line joins" not in swept(point("2x", 3.0), point("4x", 3.5, front=False))[1]
    assert "the line joins" in swept(point("2x", 3.0), point("4x", 2.0))[1]


def test_an_unfinished_sweep_says_what_goes_on() -> None:
    """The command with its folder and --resume."""
    assert "cpd-edge sweep net --speedups 2 --out sw --resume" in swept(point("2x", 3.0), missing=("4x",))[1]
