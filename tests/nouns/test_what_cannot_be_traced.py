"""A model that cannot be traced is refused with the user's own line and what a model must be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cpd_edge.errors import ModelError
from cpd_edge.network import trace

SHAPE = (3, 8, 8)


class Body(nn.Module):
    """A convolution, then whatever a test wants."""

    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.then = nn.Conv2d(3, 4, 1), then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.conv(x))


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def branches(x: Tensor) -> Tensor:
    return x if x.mean() > 0 else -x


def loops(x: Tensor) -> Tensor:
    while x.abs().max() > 1:
        x = x / 2
    return x


def scales(x: Tensor) -> Tensor:
    if x.max().item() > 1:
        x = x * 2
    return x


def writes(x: Tensor) -> Tensor:
    print(f"{float(x.sum()):.3f}" if float(x.sum()) > 0 else "")
    return x


def numpies(x: Tensor) -> Tensor:
    return x + torch.from_numpy(x.numpy())


@pytest.mark.parametrize(
    ("then", "line"),
    [
        (branches, "return x if x.mean() > 0 else -x"),
        (loops, "while x.abs().max() > 1:"),
        (scales, "if x.max().item() > 1:"),
        (writes, 'print(f"{float(x.sum()):.3f}" if float(x.sum()) > 0 else "")'),
        (numpies, "return x + torch.from_numpy(x.numpy())"),
    ],
)
def test_what_depends_on_values_is_refused_by_its_own_line(then: Callable[[Tensor], Tensor], line: str) -> None:
    """Control flow, loops, `.item()`, printed values and NumPy: file, line and source, then what is wanted."""
    with pytest.raises(ModelError) as refused:
        trace(Body(then), SHAPE)
    assert f"{__file__}:{then.__code__.co_firstlineno + 1}: {line}" in str(refused.value)
    assert "Body cannot be exported" in str(refused.value)
    assert refused.value.hint.startswith("it must be traceable by torch.export with one tensor of the shape")
    assert refused.value.hint.endswith("or --input: here ('batch', 3, 8, 8)")


def test_two_inputs_are_refused() -> None:
    """The message says that one is missing, by the name it has in the user's forward."""
    with pytest.raises(ModelError, match=r"TwoInputs cannot be exported(.|\n)*with one tensor of the shape") as refused:
        trace(TwoInputs(), SHAPE)
    assert "y" in str(refused.value)


def test_a_shape_that_does_not_fit_is_refused_by_the_layer() -> None:
    """The wrong number of channels is the user's line, not a traceback through torch."""
    with pytest.raises(ModelError, match=r"test_what_cannot_be_traced\.py:\d+: return self\.then\(self\.conv\(x\)\)"):
        trace(Body(branches), (5, 8, 8))
