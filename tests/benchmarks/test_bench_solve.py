"""Seconds that choosing and looking up take; the sizes are those of ResNet-50 and of a small table."""

from __future__ import annotations

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from solve.families import resnet50_sized

from cpd_edge.layout import Leaf
from cpd_edge.profile.table import LatencyTable, Sample
from cpd_edge.solve.milp import solve
from cpd_edge.solve.problem import Problem
from cpd_edge.types import Region


@pytest.fixture(scope="module")
def resnet50() -> Problem:
    """At half its latency."""
    return resnet50_sized(3, 0.5)


def test_a_resnet50_sized_problem_is_solved_in_seconds(benchmark: BenchmarkFixture, resnet50: Problem) -> None:
    """37 groups of 16 widths and 54 regions, to a gap of at most 0.1 %; `make bench` shows the seconds."""
    found = benchmark.pedantic(solve, (resnet50,), {"gap": 1e-3}, rounds=1)
    assert (len(resnet50.candidates), len(resnet50.resources[0].loads[0].costs)) == (37, 54)
    assert found.latency_ms <= resnet50.limit_ms
    assert found.gap <= 1e-3


@pytest.fixture(scope="module")
def chain_table() -> LatencyTable:
    """20 convolutions in a row, 24 samples."""
    rng = np.random.default_rng(0)
    leaf = [Leaf(f"g{i}", 64) for i in range(21)]
    regions = [
        Region(f"r{i}", "Conv", (f"r{i}",), leaf[i], leaf[i + 1], (leaf[i + 1], leaf[i]), 10**6) for i in range(20)
    ]
    samples = []
    for i in range(24):
        widths = {x.axis: 64 if i == 0 else int(rng.integers(1, 65)) for x in leaf}
        ms = {r.name: 0.01 + widths[r.reads.axis] * widths[r.writes.axis] / 1e5 for r in regions}  # type: ignore[union-attr]
        samples.append(Sample(widths, ms, dict.fromkeys(ms, 1), 0.0, 0.05 + sum(ms.values()), 1.0, False))
    return LatencyTable.fitted({}, {x.axis: 64 for x in leaf}, regions, samples)


def test_a_lookup_takes_milliseconds(benchmark: BenchmarkFixture, chain_table: LatencyTable) -> None:
    """Predicting a network of 20 regions is quick enough for a progress line in training."""
    assert benchmark(chain_table.predict, {f"g{i}": 40 for i in range(21)}) > 0


def test_a_grid_takes_milliseconds(benchmark: BenchmarkFixture, chain_table: LatencyTable) -> None:
    """A region over 16 x 16 widths is one vectorised lookup."""
    axis = np.arange(4, 65, 4)
    assert benchmark(chain_table.cost, "r3", {"g3": axis, "g4": axis}).shape == (16, 16)
