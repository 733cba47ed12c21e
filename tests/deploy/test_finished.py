"""The law of the finished cut: cutting the finished file is finishing the cut file."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper
from torch import Tensor, nn

from cpd_edge.comb import comb
from cpd_edge.deploy.finished import FinishedCutter
from cpd_edge.deploy.onnx import OnnxCutter, export_onnx, finish
from cpd_edge.network import trace

SHAPE = (3, 8, 8)


class Residual(nn.Module):
    """A stem, a branch that can go, a grouped convolution and a head: folded norms, shapes and attributes change.

    The branch holds a weight that is large in the dense network and small in a cut one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        wide = nn.Sequential(nn.Conv2d(8, 96, 1), nn.BatchNorm2d(96), nn.ReLU(), nn.Conv2d(96, 96, 3, padding=1))
        self.branch = nn.Sequential(wide, nn.ReLU(), nn.Conv2d(96, 8, 1))
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.head = nn.Linear(8 * 36, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[batch, 5]`."""
        x = self.stem(x)
        x = (x + self.branch(x)).relu()
        return self.head(self.depthwise(x).flatten(1))


@pytest.fixture(scope="module")
def cutters() -> tuple[OnnxCutter, FinishedCutter, dict[str, int]]:
    combed = comb(trace(Residual().eval(), SHAPE), SHAPE)
    exported = export_onnx(combed.network)
    cutter = OnnxCutter(exported.model, comb(exported.lowered, SHAPE))
    found = FinishedCutter.learned(cutter, combed.groups.widths)
    assert found is not None
    return cutter, found, combed.groups.widths


@pytest.mark.parametrize("branch", [0, 1])
def test_cutting_the_finished_file_is_finishing_the_cut(
    cutters: tuple[OnnxCutter, FinishedCutter, dict[str, int]], branch: int
) -> None:
    """Kept units that are no prefix, with and without the branch: the same nodes over the same values."""
    cutter, finished, widths = cutters
    rng = np.random.default_rng(branch)
    keep = {g: np.sort(rng.permutation(n)[: n // 2]) if n > 1 else np.arange(branch) for g, n in widths.items()}
    expected, actual = finish(cutter.cut(keep)), finished.cut(keep)
    assert [n.op_type for n in expected.graph.node] == [n.op_type for n in actual.graph.node]
    wanted, given = ({i.name: numpy_helper.to_array(i) for i in m.graph.initializer} for m in (expected, actual))
    for want, got in zip(expected.graph.node, actual.graph.node, strict=True):
        assert list(want.attribute) == list(got.attribute)
        assert list(want.output) == list(got.output)
        for theirs, ours in zip(want.input, got.input, strict=True):
            assert (theirs in wanted) == (ours in given)
            if ours in given:
                np.testing.assert_allclose(given[ours], wanted[theirs], atol=1e-6)


def test_a_file_that_changes_by_no_rule_is_not_learned(
    cutters: tuple[OnnxCutter, FinishedCutter, dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the finished files of two widths differ by more than their extents, nothing is claimed."""
    cutter, _, widths = cutters
    made = []

    def moody(model: object) -> object:
        out = finish(model)  # type: ignore[arg-type]
        made.append(out)
        if len(made) % 2:
            del out.graph.node[-1:]
        return out

    monkeypatch.setattr("cpd_edge.deploy.finished.finish", moody)
    assert FinishedCutter.learned(cutter, widths) is None
