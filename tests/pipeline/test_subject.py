"""What is derived from a network alone: networks at any widths, cut in the file or, where that fails, in the graph."""

from __future__ import annotations

import contextlib

import onnx
import pytest
import torch
from torch import Tensor, nn

from cpd_edge.deploy.onnx import OnnxCutter
from cpd_edge.measure.runners import OnnxRunner
from cpd_edge.pipeline.outcome import macs_at
from cpd_edge.pipeline.subject import Subject

SHAPE = (3, 8, 8)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(torch.relu(self.first(x))).mean((2, 3)))


def weights(model: bytes) -> dict[str, list[int]]:
    return {i.name: list(i.dims) for i in onnx.load_from_string(model).graph.initializer}


def test_a_network_at_any_widths_has_those_widths() -> None:
    """`build` gives a file that runs, with as many channels as were asked for."""
    subject = Subject.of(Small(), SHAPE)
    model = subject.build({"first": 5, "second": 2})
    assert [2, 5, 3, 3] in weights(model).values()
    with contextlib.closing(OnnxRunner(model)) as runner:
        runner.run()


def test_a_file_that_cannot_be_cut_is_exported_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cutter that computes something else is found out by numbers, and the graph is cut in its place."""
    true = OnnxCutter.cut
    monkeypatch.setattr(OnnxCutter, "cut", lambda self, keep: true(self, {}))
    subject = Subject.of(Small(), SHAPE)
    assert weights(subject.build({"first": 5, "second": 2}))["second.weight"] == [2, 5, 3, 3]


def test_a_network_has_one_signature_before_and_after_it_is_trained() -> None:
    """Biases and batch norms as they are made, and as training leaves them: one signature, and so one table."""
    convs = (nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 6, 1))
    model = nn.Sequential(*convs).eval()
    nn.init.zeros_(model[3].bias)
    nn.init.zeros_(model[4].bias)
    before = Subject.of(model, SHAPE)
    with torch.no_grad():
        for tensor in (model[3].bias, model[4].bias, model[1].bias, model[1].running_mean):
            tensor.add_(torch.rand(tensor.shape) + 0.1)
    after = Subject.of(model, SHAPE)
    assert before.signature == after.signature
    inputs = [[len(node.input) for node in subject.dense_onnx.graph.node] for subject in (before, after)]
    assert inputs[0] == inputs[1]


def test_macs_follow_the_widths() -> None:
    """Multiply-accumulates at widths are those of the layers, counted by hand."""
    subject = Subject.of(Small(), SHAPE)
    for first, second in ((8, 6), (5, 2)):
        by_hand = 36 * 27 * first + 16 * 9 * first * second + second * 4
        assert macs_at(subject.regions, {"first": first, "second": second}) == by_hand
