"""Laws of a visit: which inferences count, here and on a device."""

from __future__ import annotations

import pytest

from cpd_edge.measure import agent
from cpd_edge.measure.site import LEAD_NS, Here, Pace

LEAST_NS, MOST_NS = LEAD_NS


class Cache:
    """A clock, and engines whose first inference after another's takes three times as long, the second twice."""

    def __init__(self) -> None:
        self.now_ns, self.last, self.warm = 0, "", 0

    def clock(self) -> int:
        return self.now_ns

    def ran(self, name: str, ns: int) -> None:
        self.warm = self.warm + 1 if name == self.last else 0
        self.last = name
        self.now_ns += ns * max(3 - self.warm, 1)


class Engine:
    def __init__(self, cache: Cache, name: str, ns: int) -> None:
        self.cache, self.name, self.ns, self.runs = cache, name, ns, 0

    def run(self) -> None:
        self.runs += 1
        self.cache.ran(self.name, self.ns)


def visited(pace: Pace, names: str, ns: int = 1_000_000, most: int = 3) -> tuple[list[list[int]], dict[str, Engine]]:
    cache = Cache()
    engines = {name: Engine(cache, name, ns) for name in "ab"}
    site = Here(cache.clock, lambda seconds: None)
    done = site.visit([engines[name] for name in names], pace, most, 10**12)
    return [list(block.samples_ns) for block in done.blocks], engines


def test_an_engine_is_timed_with_the_caches_to_itself() -> None:
    """Behind a lead-in no sample shows what the other engine took; without one most blocks do."""
    led, _ = visited(Pace(5_000_000, lead=2), "abba")
    cold, _ = visited(Pace(5_000_000), "abba")
    assert {ns for block in led[1:] for ns in block} == {1_000_000}  # the first visit begins with a cold machine
    assert max(ns for block in cold[1:] for ns in block) == 3_000_000


def test_no_lead_in_where_no_other_engine_ran() -> None:
    """Between two blocks of one engine, nor when it is alone: nothing is run that does not count."""
    assert Pace(1, lead=3).leads(["a", "b", "b", "a"]) == [0, 3, 0, 3]
    assert Pace(1, lead=3).leads(["a"]) == [0]
    blocks, engines = visited(Pace(5_000_000, lead=3), "a")
    assert engines["a"].runs == sum(map(len, blocks))


@pytest.mark.parametrize(("ns", "runs"), [(1_000_000, 5), (10_000_000, 3), (20_000_000, 2), (60_000_000, 1)])
def test_a_lead_in_is_as_long_as_it_must_be(ns: int, runs: int) -> None:
    """Three inferences and 8 ms at least, but none is begun after 0.1 s."""
    _, engines = visited(Pace(1, lead=3), "ab", ns, most=1)
    assert engines["a"].runs == engines["b"].runs == runs + 1


def test_a_device_leads_in_as_this_process_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent's block runs as often, and its samples are the same."""
    cache = Cache()
    engine = Engine(cache, "a", 1_000_000)
    monkeypatch.setattr(agent.time, "perf_counter_ns", cache.clock)
    samples, _ = agent.block(engine.run, 5_000_000, None, 3, list(LEAD_NS))
    assert samples == [1_000_000] * 5
    assert engine.runs == 5 + 5
    assert agent.block(engine.run, 1, None, 0, list(LEAD_NS))[0] == [1_000_000]
    assert engine.runs == 5 + 5 + 1
