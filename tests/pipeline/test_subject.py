"""What is derived from a network alone: networks at any widths, cut in the file or, where that fails, in the graph."""

from __future__ import annotations

import contextlib

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from cpd_edge.comb.relate import RULES
from cpd_edge.deploy.onnx import OnnxCutter
from cpd_edge.layout import size
from cpd_edge.measure.runners import OnnxRunner
from cpd_edge.measure.shapes import infer_shapes
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


class Windows(nn.Module):
    """Attention in windows: the batch is multiplied by their number, and by the heads'."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x = x.reshape(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
        q, k, v = self.qkv(x).reshape(-1, 16, 3, 2, 4).permute(2, 0, 3, 1, 4)
        x = ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(-1, 16, c)
        return self.out(x).reshape(b, -1, c).mean(1)


def test_shapes_are_those_that_the_runtime_has() -> None:
    """Of every value, also where the batch is multiplied by a number of windows; so are the multiply-accumulates."""
    subject = Subject.of(Windows().eval(), (8, 8, 8))
    model, shapes = onnx.ModelProto(), infer_shapes(subject.dense_onnx)
    model.CopyFrom(subject.dense_onnx)
    values = [name for node in model.graph.node for name in node.output if name]
    model.graph.output.extend(onnx.ValueInfoProto(name=v) for v in values if v != model.graph.output[0].name)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, {"input": np.zeros((1, 8, 8, 8), np.float32)}), strict=True))
    assert {name: shapes[name] for name in names} == {name: array.shape for name, array in found.items()}
    qkv, scores = 4 * 16 * 8 * 24, 4 * 2 * 16 * 4 * 16
    assert macs_at(subject.regions, subject.widths) == qkv + 2 * scores + 4 * 16 * 8 * 8


class Gated(nn.Module):
    """Transposed convolutions, which the exporter writes otherwise, and a gate: a branch whose end it names anew."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up, self.wide = nn.Conv2d(3, 8, 2, 2), nn.ConvTranspose2d(8, 6, 2, 2), nn.Conv2d(3, 6, 1)
        self.gate, self.again = nn.Conv2d(6, 1, 1), nn.ConvTranspose2d(12, 8, 2, groups=2)
        self.out = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.relu(self.wide(x))
        return self.out(self.again(torch.cat([self.up(self.down(x)), wide * self.gate(wide).sigmoid()], 1)))


def test_a_network_with_transposed_convolutions_is_cut_in_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """It need not be exported anew for every sample, also where they have groups."""
    subject = Subject.of(Gated().eval(), SHAPE)
    monkeypatch.setattr(Subject, "network", None)
    halves = {name: max(1, units // 2) for name, units in subject.widths.items()}
    with contextlib.closing(OnnxRunner(subject.build(halves))) as runner:
        runner.run()


def test_branches_are_found_in_the_file_under_the_names_that_the_exporter_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where its graph has other groups than the network's, as where a call of it has no rule."""
    monkeypatch.delitem(RULES, "convolution")
    subject = Subject.of(Gated().eval(), SHAPE)
    assert "gate:depth" in subject.widths
    assert [region.name for region in subject.regions if "gate:depth" in region.within] == ["node_conv2d_2"]


class Halves(nn.Module):
    """Branches that begin at a half of a split, and behind a dropout that is not in the file."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.part, self.whole = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.drop, self.head = nn.Dropout(0.1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.stem(x).chunk(2, 1)
        x = self.drop(torch.cat([second, first + self.part(first).relu_()], 1))
        return self.head((x + self.drop(self.whole(x)).relu_()).relu_())


@pytest.mark.parametrize("renamed", [False, True])
def test_every_value_and_branch_of_the_file_is_the_networks_own(renamed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is split, passed on, or called otherwise by the exporter is told by what it was made of, not by its name."""
    if renamed:  # as where a call that only the exporter's graph has is without a rule
        monkeypatch.delitem(RULES, "relu")
    subject = Subject.of(Halves().eval(), SHAPE)
    inside = {region.fqn: region.within for region in subject.regions if region.within}
    assert inside == {"part.weight": ("part:depth",), "whole.weight": ("whole:depth",)}
    shapes = infer_shapes(subject.dense_onnx)
    named = {name: dims for name, dims in subject.layouts.items() if name in shapes}
    assert {name: [size(d, {}) for d in dims][1:] for name, dims in named.items()} == {
        name: list(shapes[name])[1:] for name in named
    }


def test_macs_follow_the_widths() -> None:
    """Multiply-accumulates at widths are those of the layers, counted by hand."""
    subject = Subject.of(Small(), SHAPE)
    for first, second in ((8, 6), (5, 2)):
        by_hand = 36 * 27 * first + 16 * 9 * first * second + second * 4
        assert macs_at(subject.regions, {"first": first, "second": second}) == by_hand
