"""Laws of the comparison: every strategy on one table, the solver never worse, each plan timed once against dense."""

from __future__ import annotations

import pytest
from cli.shell import Shell

from cpd_edge.cli.text import strategies_text
from cpd_edge.pipeline.strategies import STRATEGIES

CALL = ("compare-strategies", "mine.py:make_net", "--input", "1,48,48", "--samples", "8", "--profiles", "strategies")


def test_no_strategy_beats_the_solver_on_the_table(shell: Shell) -> None:
    """Without data and without measuring: a row for each budget and strategy, all inside their limits."""
    words = (*CALL, "--speedup", "1.2,1.5", "--max-macs", "1e6", "--no-measure")
    found = shell(*words, "--json").json
    assert [row["strategy"] for row in found["rows"]] == [*STRATEGIES] * 2
    for budget in (found["rows"][:6], found["rows"][6:]):
        exact = budget[0]
        assert exact["gap"] <= 1e-3
        for row in budget:
            assert row["predicted_ms"] <= row["limit_ms"] and row["used"]["MACs"] <= 1e6
            assert row["objective"] >= exact["bound"] - 1e-9
            assert "measured_ms" not in row
    assert found["rows"][6]["limit_ms"] == pytest.approx(found["dense_ms"] / 1.5)
    text = strategies_text(found)
    assert "importance by magnitude" in text and "netadapt" in text and "not measured" in text


def test_plans_are_measured_and_scored_on_data(shell: Shell) -> None:
    """With data the importance is the loss's; equal plans are measured once."""
    words = (*CALL, "--data", "mine.py:make_data", "--budget-ms", "1000", "--limit-s", "0.2")
    found = shell(*words, "--json").json
    assert found["score"] == "fisher" and len(found["rows"]) == 6
    assert {row["objective"] for row in found["rows"]} == {0.0}  # dense fits, for everybody
    assert len({str(row["measured_ms"]) for row in found["rows"]}) == 1
    assert found["rows"][0]["measured_speedup"]["estimate"] > 0
    assert "speed-up" in strategies_text(found) and "x fewer MACs" in strategies_text(found)


def test_what_no_strategy_reaches_is_said_in_its_row(shell: Shell) -> None:
    """A budget below the floor is an answer of the comparison, not its end."""
    found = shell(*CALL, "--speedup", "1000", "--no-measure", "--json").json
    assert all("the fastest is predicted at" in row["infeasible"] for row in found["rows"])
    assert "the fastest is predicted at" in strategies_text(found)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--speedup 1.5,2,3"),
        (("--speedup", "2,fast"), "--speedup 1.5,2,3"),
        (("--speedup", "0"), "--speedup 2"),
        (("--speedup", "2", "--score", "fisher"), "--score magnitude"),
        (("--speedup", "2", "--limit-s", "0"), "--no-measure"),
        (("--speedup", "2", "--max-params", "-1"), "--max-params 5e6"),
        (("--speedup", "2", "--precision", "fp16"), "--precision fp32 or int8"),
    ],
)
def test_what_cannot_be_compared_is_refused(shell: Shell, words: tuple[str, ...], said: str) -> None:
    """Bad input exits 2 before any work, and says what to type."""
    done = shell(*CALL, *words)
    assert done.code == 2 and said in done.err and done.out == ""
