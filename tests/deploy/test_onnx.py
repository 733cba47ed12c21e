"""The ONNX file: it computes what torch computes, and cutting the file equals cutting the graph and exporting."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cpd_edge.comb import comb
from cpd_edge.cut import cut
from cpd_edge.deploy.onnx import OnnxCutter, export_onnx, finish, survivors
from cpd_edge.deploy.parity import check_parity
from cpd_edge.errors import ParityError
from cpd_edge.measure.runners import OnnxRunner
from cpd_edge.network import Combed, trace

SHAPE = (3, 16, 16)


class Everything(nn.Module):
    """What changes shape constants: grouped conv, split, concat, shuffle by reshape, flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 16, 3, padding=1, groups=4)
        self.mix = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(16 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(F.relu(self.norm(self.stem(x))))
        a, b = x.chunk(2, 1)
        x = torch.cat([self.mix(a), b], 1)
        x = x.reshape(-1, 2, 8, 16, 16).transpose(1, 2).reshape(-1, 16, 16, 16)
        return self.head(F.avg_pool2d(x, 4).flatten(1))


class Attends(nn.Module):
    """One attention of three dims, of four, or of five: windows, in which heads attend."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.stem, self.qkv = nn.Conv2d(3, 12, 4, 4), nn.Linear(12, 36)
        self.shape = {3: (16, 12), 4: (16, 3, 4), 5: (4, 4, 3, 4)}[dims]
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        parts = (part.reshape(-1, *self.shape) for part in self.qkv(x).chunk(3, -1))
        q, k, v = (part.transpose(-3, -2) if len(self.shape) > 2 else part for part in parts)
        y = F.scaled_dot_product_attention(q, k, v)
        y = y.transpose(-3, -2) if len(self.shape) > 2 else y
        return self.head(y.reshape(-1, 16, 12).mean(1))


@contextlib.contextmanager
def engine(model: onnx.ModelProto) -> Iterator[OnnxRunner]:
    runner = OnnxRunner(model.SerializeToString())
    try:
        yield runner
    finally:
        runner.close()


@pytest.fixture(scope="module")
def combed() -> Combed:
    torch.manual_seed(0)
    return comb(Everything(), SHAPE)


def test_the_engine_computes_what_torch_computes(combed: Combed) -> None:
    """Parity within 1e-5 of the largest output, for any batch."""
    network = combed.network
    with engine(finish(export_onnx(network).model)) as runner:
        for batch in (1, 3):
            x = network.example(batch)
            assert check_parity(network, runner.outputs, x, 1e-5, "test").inputs == batch


@pytest.mark.parametrize("dims", [3, 4, 5])
def test_attention_of_any_rank_is_exported(dims: int) -> None:
    """The exporter takes four dims; the file computes what torch computes, cut in half as well."""
    whole = comb(Attends(dims), SHAPE)
    halves = {g.name: np.arange(0, g.units, 2) for g in whole.groups.groups}
    for network in (whole.network, cut(whole, halves)):
        with engine(finish(export_onnx(network).model)) as runner:
            check_parity(network, runner.outputs, network.example(2), 1e-5, "test")


def test_cutting_the_file_equals_cutting_the_graph(combed: Combed) -> None:
    """The same plan on the ONNX initialisers and on the torch graph gives one network."""
    exported = export_onnx(combed.network)
    lowered = comb(exported.lowered, SHAPE)
    assert lowered.groups.widths == combed.groups.widths
    cutter = OnnxCutter(exported.model, lowered)
    rng = np.random.default_rng(0)
    for _ in range(4):
        keep = {g.name: np.sort(rng.permutation(g.units)[: rng.integers(1, g.units + 1)]) for g in combed.groups.groups}
        small = cut(combed, keep)
        with engine(finish(cutter.cut(keep))) as runner:
            check_parity(small, runner.outputs, small.example(), 1e-5, "cut")


def test_a_cutter_leaves_its_source_alone(combed: Combed) -> None:
    """Cutting twice gives the same file, whatever was cut between."""
    exported = export_onnx(combed.network)
    cutter = OnnxCutter(exported.model, comb(exported.lowered, SHAPE))
    name = combed.groups.groups[0].name
    first = cutter.cut({name: np.array([0])}).SerializeToString(deterministic=True)
    cutter.cut({name: np.array([0, 1])})
    assert cutter.cut({name: np.array([0])}).SerializeToString(deterministic=True) == first


def test_provenance_is_in_the_file(combed: Combed) -> None:
    """Who made it and from what stays with it."""
    done = finish(export_onnx(combed.network).model, {"model": "everything"})
    assert {p.key: p.value for p in done.metadata_props}["cpd_edge.model"] == "everything"


def test_batch_norms_are_folded(combed: Combed) -> None:
    """The shipped file holds no batch norm and no constant arithmetic."""
    ops = {n.op_type for n in finish(export_onnx(combed.network).model).graph.node}
    assert not ops & {"BatchNormalization", "CastLike", "Expand", "Constant"}


def test_what_is_laid_out_twice_is_found_again() -> None:
    """`finish` makes one reshape of two: the value between them is the one before them, and others stay themselves."""

    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.relu(x).reshape(-1, 6, 2, 4).reshape(x.shape)

    exported = export_onnx(trace(Twice(), (6, 4, 2)))
    finished = finish(exported.model)
    names = [node.output[0] for node in exported.model.graph.node if node.op_type in ("Relu", "Reshape", "Add")]
    left = {out for node in finished.graph.node for out in node.output}
    found = survivors(names, exported.model, finished)
    assert not left.issuperset(names) and left.issuperset(found.values())
    assert {name: at for name, at in found.items() if name in left} == {name: name for name in names if name in left}
    assert {found[name] for name in names if name not in left} == {"relu"}


def test_an_engine_that_computes_something_else_is_refused() -> None:
    """Above the tolerance there is no engine."""
    network = trace(Everything(), SHAPE)
    x = network.example()
    with torch.no_grad():
        right = network(x).numpy()
    with pytest.raises(ParityError, match="differs from torch by"):
        check_parity(network, lambda feed: right * 1.001, x, 1e-4, "wrong")
    with pytest.raises(ParityError, match="gives shape"):
        check_parity(network, lambda feed: right[:, :3], x, 1e-4, "wrong")
    with pytest.raises(ParityError, match=r"not finite(.|\n)*the images"):
        check_parity(network, lambda feed: right * np.nan, x, 1e-4, "wrong")
