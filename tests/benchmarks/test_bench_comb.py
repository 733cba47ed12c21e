"""Seconds that combing, cutting a graph, cutting a file and starting up take, on ResNet-50 and a bare interpreter."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from cpd_edge.comb import comb
from cpd_edge.comb.groups import settle
from cpd_edge.comb.relate import relate
from cpd_edge.cut import cut
from cpd_edge.deploy.onnx import OnnxCutter, export_onnx
from cpd_edge.layout import Keep
from cpd_edge.network import Combed, Network, trace
from cpd_edge.pipeline.verify import verify

torchvision = pytest.importorskip("torchvision")

SHAPE = (3, 64, 64)


@pytest.fixture(scope="module")
def resnet50() -> Combed:
    return comb(torchvision.models.resnet50(weights=None), SHAPE)


@pytest.fixture(scope="module")
def halves(resnet50: Combed) -> Keep:
    return {g.name: np.arange(0, g.units, 2) for g in resnet50.groups.groups}


def test_combing_a_traced_resnet50(benchmark: BenchmarkFixture, resnet50: Combed) -> None:
    """Relating every call of the graph and reading off the groups."""
    found = benchmark(lambda: settle(relate(resnet50.network)))
    assert sum(not g.depth for g in found.groups.groups) == 37 and len(found.branches) == 12


class Residuals(nn.Module):
    """Residual branches one behind the other, all adding to one stream."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1)) for _ in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in self.branches:
            x = x + branch(x)
        return x.mean((2, 3))


def seconds_to_comb(network: Network) -> float:
    """CPU time, the least of three."""

    def once() -> float:
        started = time.process_time()
        settle(relate(network))
        return time.process_time() - started

    return min(once() for _ in range(3))


def test_combing_takes_time_in_proportion_to_the_graph(benchmark: BenchmarkFixture) -> None:
    """Five times the calls take well below the twenty-five times of a quadratic walk."""
    few, many = (40, 200) if benchmark.enabled else (2, 10)
    small, large = (trace(Residuals(n), (3, 8, 8)) for n in (few, many))
    found = benchmark.pedantic(lambda: settle(relate(large)), rounds=3)
    assert len(found.branches) == many
    if benchmark.enabled:
        assert seconds_to_comb(large) < 10 * seconds_to_comb(small)


def test_verifying_resnet50(benchmark: BenchmarkFixture) -> None:
    """Every group cut and held against its mask, alone and together, and the ONNX file of half of everything."""
    real = torchvision.models.resnet50(weights=None), (3, 224, 224)
    found = benchmark.pedantic(verify, real if benchmark.enabled else (Residuals(2), (3, 8, 8)), rounds=1)
    assert found.verified
    if benchmark.enabled:
        assert sum(found.seconds.values()) < 60


def test_cutting_the_graph_of_resnet50(benchmark: BenchmarkFixture, resnet50: Combed, halves: Keep) -> None:
    """Parameters sliced, shape constants rewritten."""
    small = benchmark.pedantic(cut, (resnet50, halves), rounds=3)
    assert small.get_parameter("layer1.0.conv2.weight").shape[:2] == (32, 32)


def test_cutting_the_file_of_resnet50(benchmark: BenchmarkFixture, resnet50: Combed, halves: Keep) -> None:
    """The cut that every sampled network of a latency table needs."""
    exported = export_onnx(resnet50.network)
    cutter = OnnxCutter(exported.model, comb(exported.lowered, SHAPE))
    cutter.cut({})
    model = benchmark(cutter.cut, halves)
    shapes = {i.name: list(i.dims) for i in model.graph.initializer}
    assert shapes["layer1.0.conv2.weight"][:2] == [32, 32]


def test_help_starts_quickly(benchmark: BenchmarkFixture) -> None:
    """`cpd-edge --help` loads no torch."""
    command = [sys.executable, "-m", "cpd_edge", "--help"]
    done = benchmark.pedantic(subprocess.run, (command,), {"capture_output": True, "text": True}, rounds=3)
    assert "Usage" in done.stdout
