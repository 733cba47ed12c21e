"""Laws of the loop, on a device that is arithmetic: it lands inside the budget and near it, or it says why not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cpd_edge.errors import CpdError, InfeasibleError, UndecidedError
from cpd_edge.layout import Leaf
from cpd_edge.pipeline import planner as planners
from cpd_edge.pipeline.aim import Window, delta_before, limit_of
from cpd_edge.pipeline.job import Job
from cpd_edge.pipeline.outcome import _reason
from cpd_edge.pipeline.planner import Planner
from cpd_edge.pipeline.request import Request
from cpd_edge.solve.ways import Ways
from cpd_edge.store import Run
from cpd_edge.types import Budget, Importance, Interval, Plan, Region

UNITS = 400
FLOOR_MS = 2.0
STEP_MS = 0.02
"""The table: `FLOOR_MS + STEP_MS * units kept`, 10 ms when all are."""


class Table:
    """A latency table of one group, without noise."""

    def predict(self, widths: Mapping[str, int]) -> float:
        return FLOOR_MS + STEP_MS * widths["body"]


class Device:
    """A machine at another pace than the table's, on which pruned engines take `bias` more than predicted."""

    def __init__(self, pace: float, bias: float, noise: float = 0.0, later: float | None = None) -> None:
        self.pace, self.bias, self.noise, self.later = pace, bias, noise, later
        self.random = np.random.default_rng(0)
        self.built: list[int] = []

    def interval(self, ms: float) -> Interval:
        at = ms * (1 + self.noise * self.random.standard_normal())
        return Interval(at, 0.995 * at, 1.005 * at, 400)

    def window(self, units: int, budget: Budget) -> Window:
        self.built.append(units)
        self.pace = self.later or self.pace
        dense = self.interval(10.0 * self.pace)
        latency = self.interval((FLOOR_MS + STEP_MS * units) * self.pace * (1 + self.bias))
        limit_ms = limit_of(budget, dense)
        verdict = "PASS" if latency.high <= limit_ms else "FAIL" if latency.low > limit_ms else "INCONCLUSIVE"
        return Window(dense, latency, Interval(1.0, 1.0, 1.0, 40), limit_ms, verdict)  # type: ignore[arg-type]


def plan_for(
    subject: Any,
    table: Table,
    importance: Importance,
    limit_ms: float,
    student: object,
    constraints: object,
    ways: Ways,
) -> Plan:
    """The largest width inside the limit: what the solver would find."""
    units = min(int((limit_ms - FLOOR_MS) / STEP_MS), UNITS)
    if units < 1:
        least = FLOOR_MS + STEP_MS
        raise InfeasibleError("in the table", floor_ms=least, binding=("region",), hint="")
    return Plan({"body": tuple(range(units))}, limit_ms, FLOOR_MS + STEP_MS * units, 0.0, 0.0, 0.0, 0.0)


@pytest.fixture
def loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`loop(device, budget, rounds)` closes the loop on a device; a second call in the same test resumes."""
    layout = Leaf("body", UNITS)
    region = Region("region", "Conv", ("region",), Leaf("in", 3), layout, (layout,), 10, "body.weight")
    subject = SimpleNamespace(
        widths={"body": UNITS}, regions=(region,), build_plan=lambda keep, variants: str(len(keep["body"])).encode()
    )
    monkeypatch.setattr(planners, "plan_for", plan_for)

    def close(device: Device, budget: Budget, rounds: int = 4) -> tuple[Plan, list[dict[str, Any]]]:
        request = Request("net", "data", budget, rounds=rounds)
        if not (tmp_path / "run.json").exists():
            Run.create(tmp_path, request.to_json()).update(dense_latency_ms=device.interval(10.0 * device.pace))
        job = Job(request, Run(tmp_path), SimpleNamespace(), lambda *_: None)  # type: ignore[arg-type]
        job.rig._measured_here = True
        monkeypatch.setattr(job.rig, "window", lambda data, *_, **__: device.window(int(data), budget))
        planner = Planner(job.rig, job.tables, subject, Table())  # type: ignore[arg-type]
        plan = planner.close_loop(Importance({}), None, tmp_path / "step-0-trials.json")
        return plan, Run(tmp_path).record["round_log"]

    return close


@pytest.mark.parametrize("noise", [0.0, 0.003])
@pytest.mark.parametrize("pace", [0.6, 1.0, 2.5])
@pytest.mark.parametrize("bias", [-0.15, -0.05, 0.0, 0.05, 0.15])
def test_it_lands_inside_the_budget_and_near_it(loop: Any, bias: float, pace: float, noise: float) -> None:
    """Whatever the pace, and up to 15 % off the table, four rounds end with the upper bound just in budget."""
    limit_ms = 5.0 * pace
    plan, log = loop(Device(pace, bias, noise), Budget(limit_ms=limit_ms))
    true_ms = plan.predicted_ms * pace * (1 + bias)
    assert len(log) <= 4
    assert -0.05 <= log[-1]["measured"]["high"] / limit_ms - 1 <= 0.0
    assert -0.05 - 4 * noise <= 1.005 * true_ms / limit_ms - 1 <= 4 * noise


@pytest.mark.parametrize("bias", [-0.15, 0.15])
def test_a_speedup_is_reached_too(loop: Any, bias: float) -> None:
    """A budget as a speed-up ends within 5 % of the dense engine's latency in the same window."""
    plan, log = loop(Device(0.8, bias), Budget(speedup=2.0))
    assert len(log) <= 4
    assert 2.0 <= 10.0 / (plan.predicted_ms * (1 + bias)) <= 2.0 / 0.95


@pytest.mark.parametrize("later", [0.7, 1.5])
def test_a_machine_that_changes_its_pace_changes_the_limit(loop: Any, later: float) -> None:
    """A speed-up is taken from the dense engine in the candidate's own window, not from an earlier one."""
    plan, log = loop(Device(1.0, 0.05, later=later), Budget(speedup=2.0))
    assert len(log) <= 4
    assert 2.0 <= 10.0 / (plan.predicted_ms * 1.05) <= 2.0 / 0.95


def test_a_table_that_is_right_needs_one_round(loop: Any) -> None:
    """Without bias the first build is near enough."""
    assert len(loop(Device(1.0, 0.0), Budget(limit_ms=5.0))[1]) == 1


def test_a_budget_below_the_floor_says_why(loop: Any) -> None:
    """Where no plan is fast enough the error names the floor in the device's ms and the groups that hold it up."""
    with pytest.raises(InfeasibleError) as caught:
        loop(Device(2.0, 0.0), Budget(limit_ms=3.0))
    assert caught.value.floor_ms == pytest.approx(2.0 * (FLOOR_MS + STEP_MS))
    assert caught.value.binding == ("body",)
    assert "4.04 ms" in str(caught.value) and "body" in str(caught.value) and "--budget-ms" in caught.value.hint


def test_a_floor_that_only_builds_show_is_told_with_what_they_took(loop: Any) -> None:
    """A budget that the table allows and the device does not ends in the floor as the device has it."""
    with pytest.raises(InfeasibleError) as caught:
        loop(Device(1.0, 0.5), Budget(limit_ms=2.3))
    assert caught.value.floor_ms > 2.3


def test_the_nearest_plan_that_passed_is_taken(loop: Any) -> None:
    """When rounds run out, the last plan that passed counts, not the last one tried."""
    plan, log = loop(Device(1.0, -0.15), Budget(limit_ms=5.0), 1)
    assert [row["verdict"] for row in log] == ["PASS"]
    assert plan.predicted_ms <= 5.0


@pytest.mark.parametrize(("bias", "passed"), [(-0.15, True), (0.15, False)])
def test_a_search_that_ends_undecided_costs_no_plan_that_passed(
    loop: Any, monkeypatch: pytest.MonkeyPatch, bias: float, passed: bool
) -> None:
    """A nearer one is not looked for any longer; where none passed there is nothing to keep."""
    device = Device(1.0, bias)

    def undecided(*asked: Any) -> Plan:
        if device.built:
            raise UndecidedError(20.0)
        return plan_for(*asked)

    monkeypatch.setattr(planners, "plan_for", undecided)
    if passed:
        assert device.built == [len(loop(device, Budget(limit_ms=5.0))[0].keep["body"])]
    else:
        with pytest.raises(UndecidedError):
            loop(device, Budget(limit_ms=5.0))


def test_a_prediction_holds_nothing_of_its_own_measurement(loop: Any, tmp_path: Path) -> None:
    """Where the first build is the one that is kept, what the later ones were off by is not in its prediction."""

    class Odd(Device):
        def window(self, units: int, budget: Budget) -> Window:
            self.bias = -0.15 if not self.built else 0.3
            return super().window(units, budget)

    plan, log = loop(Odd(1.0, 0.0), Budget(limit_ms=5.0), 2)
    chosen = Run(tmp_path).record["chosen_round"]
    assert (chosen, [row["verdict"] for row in log][:2]) == (1, ["PASS", "FAIL"])
    assert delta_before(log, chosen) == 0.0 and delta_before(log, 2) == log[0]["delta_ms"] < 0
    assert plan.predicted_ms == log[0]["predicted_ms"]


def test_an_interrupted_loop_goes_on_with_the_next_round(loop: Any) -> None:
    """Rounds that are done are not built again, and the result is that of a loop without interruption."""

    class Dying(Device):
        def window(self, units: int, budget: Budget) -> Window:
            if len(self.built) == 1:
                raise KeyboardInterrupt
            return super().window(units, budget)

    device = Dying(1.0, 0.15)
    with pytest.raises(KeyboardInterrupt):
        loop(device, Budget(limit_ms=5.0))
    later = Device(1.0, 0.15)
    plan, log = loop(later, Budget(limit_ms=5.0))
    assert [row["round"] for row in log] == list(range(1, len(log) + 1))
    assert not set(device.built) & set(later.built)
    assert 0.95 <= plan.predicted_ms * 1.15 / 5.0 <= 1.0
    again, _ = loop(Device(1.0, 99.0), Budget(limit_ms=5.0))
    assert again.widths == plan.widths


def test_a_stage_is_done_when_it_has_ended(tmp_path: Path) -> None:
    """However far its work says it is: what follows that work is told as part of it, not passed over in silence."""
    told: list[float] = []
    request, run = Request("net", "data", Budget(speedup=2)), Run.create(tmp_path, {"seconds": {}})
    job = Job(request, run, SimpleNamespace(), lambda stage, fraction, text: told.append(fraction))  # type: ignore[arg-type]
    with job.stage("bench") as tell:
        tell(0.5, "half of it")
        tell(1.0, "all samples are there")
        assert max(told) < 1
    assert (told[:2], told[-1]) == ([0.0, 0.5], 1.0)


def test_a_choice_that_is_made_again_is_recorded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was stopped between a choice and its file chooses again; other choices stay beside it."""
    tried = [{"limit_ms": 5.0, "taken": 0, "plans": [{"objective": x, "loss": x}]} for x in (0.1, 0.1, 0.2)]
    tried[1]["plans"][0]["loss"] = 0.11  # type: ignore[index]
    given = iter(tried)
    monkeypatch.setattr(planners, "plans_for", lambda *_: ())
    monkeypatch.setattr(planners, "refined", lambda *_: ("plan", next(given)))
    run = Run.create(tmp_path, {})
    job = Job(Request("net", "data", Budget(speedup=2), refine=3), run, SimpleNamespace(), lambda *_: None)  # type: ignore[arg-type]
    for _ in tried:
        Planner(job.rig, job.tables, None, None).chosen(None, 1.0, None, None)  # type: ignore[arg-type]
    assert Run(tmp_path).record["refined"] == tried[1:]


class Finishing(Job):
    """A job at its end: students are numbers, the verdict and the next step are given."""

    def __init__(self, run: Run, verdicts: list[str], no_step: CpdError | None = None) -> None:
        budget = Budget(limit_ms=5.0)
        super().__init__(Request("net", "data", budget, steps=1, rounds=3), run, SimpleNamespace(), lambda *_: None)  # type: ignore[arg-type]
        self.verdicts, self.no_step, self.judgements = verdicts, no_step, 0

    def judged(self, subject: Any, student: Any, step: int) -> Any:
        self.judgements += 1
        latency = Interval(5.1, 5.0, 5.2, 400)
        return Window(latency, latency, latency, 5.0, self.verdicts.pop(0)), "parity"  # type: ignore[arg-type]

    def step(self, index: int, total: int, subject: Any, table: Any, student: Any) -> Any:
        if self.no_step is not None:
            raise self.no_step
        return SimpleNamespace(plan=student.plan, index=index)


@pytest.fixture
def ending(tmp_path: Path) -> tuple[Run, Any]:
    """A run without rounds so far, and what `finish` is given."""
    run = Run.create(tmp_path, {})
    student = SimpleNamespace(plan=Plan({"body": (0,)}, 5.0, 5.0, 0.0, 0.0, 0.0, 0.0), index=0)
    return run, (SimpleNamespace(widths={"body": UNITS}), Table(), student)


def test_a_verdict_that_is_no_pass_asks_for_one_more_step(ending: tuple[Run, Any]) -> None:
    """While a round is left the network is pruned further, and the row says after which step it was judged."""
    run, given = ending
    job = Finishing(run, ["FAIL", "PASS"])
    window, _, student = job.finish(*given)
    assert (window.verdict, student.index, job.judgements) == ("PASS", 1, 2)
    assert [row["step"] for row in run.record["round_log"]] == [0]


def test_a_verdict_that_was_taken_is_not_taken_again(ending: tuple[Run, Any]) -> None:
    """Interrupted in the step after it, the run goes on with that step."""
    run, given = ending
    run.update(round_log=[{"round": 1, "step": 0, "delta_ms": 0.1}])
    job = Finishing(run, ["PASS"])
    _, _, student = job.finish(*given)
    assert (student.index, job.judgements) == (1, 1)


def test_a_network_that_no_further_step_can_help_keeps_its_verdict(ending: tuple[Run, Any]) -> None:
    """Where the next step has no plan, the engine that was measured stands, with the floor as the reason."""
    run, given = ending
    no_plan = InfeasibleError("no plan reaches 5 ms", floor_ms=5.05, binding=("body",))
    window, _, student = Finishing(run, ["FAIL"], no_plan).finish(*given)
    assert (window.verdict, student.index) == ("FAIL", 0)
    assert (run.record["floor_ms"], run.record["reason"]) == (5.05, "no plan reaches 5 ms")


def test_a_network_whose_next_step_is_not_decided_keeps_its_verdict(ending: tuple[Run, Any]) -> None:
    """The engine that was trained and measured stands, and why it was not pruned further is the reason."""
    run, given = ending
    window, _, student = Finishing(run, ["FAIL"], UndecidedError(20.0)).finish(*given)
    assert (window.verdict, student.index) == ("FAIL", 0)
    assert "was not decided in 20 s" in run.record["reason"]
    assert "was not decided in 20 s" in _reason(run.record, window, Budget(limit_ms=5.0))
