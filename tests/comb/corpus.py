"""Small networks around one operation each, with the groups that comb must find in them.

A case states its groups as `name:units`, `~` behind those that a statistic runs over. Everything is in float64.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cpd_edge.canonical import op_name
from cpd_edge.cut import cut, mask
from cpd_edge.layout import Keep
from cpd_edge.network import Combed, Network, trace
from cpd_edge.types import Group

Forward = Callable[[Any, Tensor], Tensor]

TOLERANCE = 1e-11
"""Largest difference of cut and mask in float64, relative to the largest output or to one."""


class Net(nn.Module):
    """Modules, parameters and buffers by name, and a function of them and the input."""

    def __init__(self, forward: Forward, parts: dict[str, nn.Module | Tensor]) -> None:
        super().__init__()
        self.body = forward
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


@dataclass(frozen=True)
class Case:
    """A network, the shape of its input, its groups and, if stated, the calls that read units."""

    net: Net
    shape: tuple[int, ...]
    groups: str
    reads: str = ""


CASES: dict[str, Case] = {}


def case(
    name: str, shape: tuple[int, ...], groups: str, forward: Forward, reads: str = "", **parts: nn.Module | Tensor
) -> None:
    """Adds a network to the corpus."""
    assert name not in CASES
    CASES[name] = Case(Net(forward, parts), shape, groups, reads)


def par(*shape: int) -> nn.Parameter:
    """A parameter; its values are drawn later."""
    return nn.Parameter(torch.zeros(shape))


def conv(c_in: int, c_out: int, kernel: int = 1, **options: Any) -> nn.Conv2d:
    """A convolution over two dims of space."""
    return nn.Conv2d(c_in, c_out, kernel, **options)


def total(x: Tensor) -> Tensor:
    """Sum over space `[b, c]`: exact, and every place counts."""
    return x.flatten(2).sum(2)


def lively(net: nn.Module) -> nn.Module:
    """The module in float64, every parameter and statistic drawn from a seed."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.is_floating_point():
                tensor.normal_(0, 0.7, generator=generator)
    return net.double().eval()


@cache
def traced(name: str) -> Network:
    """The network of a case; not to be changed."""
    with warnings.catch_warnings():  # recurrent modules hold their parameters twice, which torch.export finds odd
        warnings.filterwarnings("ignore", "The tensor attributes", UserWarning)
        return trace(lively(CASES[name].net), CASES[name].shape)


def described(combed: Combed) -> str:
    """The groups as a case states them; what can go whole has its own tests."""
    return " ".join(f"{g.name}:{g.units}{'' if g.exact else '~'}" for g in combed.groups.groups if not g.depth)


def as_stated(case: Case, combed: Combed) -> bool:
    """Whether comb found the groups and the readers that a case states."""
    read = {c.node for c in combed.contractions}
    names = {op_name(node) for node in combed.network.graph.nodes if node.name in read}
    return described(combed) == case.groups and (not case.reads or names == set(case.reads.split()))


def some(group: Group) -> Keep:
    """About half of a group's units; none of a branch."""
    if group.depth:
        return {group.name: np.zeros(0, np.int64)}
    return {group.name: np.arange(group.units)[1::2]}


def keeps(combed: Combed) -> Iterator[tuple[str, Keep, bool]]:
    """Cuts to try, with a name and whether they must equal the mask."""
    groups = [g for g in combed.groups.groups if not g.depth]
    exact = [g for g in groups if g.exact]
    yield "all exact groups", merged(some(g) for g in exact), True
    if len(exact) > 1:
        yield "one unit of every other group", merged({g.name: np.array([g.units - 1])} for g in exact[::2]), True
        yield "one unit of the rest", merged({g.name: np.array([0])} for g in exact[1::2]), True
    if len(groups) > len(exact):
        yield "all groups", merged(some(g) for g in groups), False


def merged(parts: Iterable[Keep]) -> Keep:
    """Several cuts at once."""
    return {name: units for part in parts for name, units in part.items()}


@torch.no_grad()
def wrong(combed: Combed, batches: tuple[int, ...] = (1, 3)) -> str:
    """The first cut that is not its mask or not finite, or ''.

    Raises:
        RuntimeError: a cut network does not run.
    """
    for name, keep, exact in keeps(combed):
        small = cut(combed, keep)
        masked = mask(combed, keep) if exact else None
        for batch in batches:
            x = combed.network.example(batch, seed=batch)
            got = small(x)
            if not got.isfinite().all():
                return f"{name}: not finite"
            if masked is not None:
                wanted = masked(x)
                error = float((got - wanted).abs().max() / wanted.abs().max().clamp(min=1))
                if not error <= TOLERANCE:
                    return f"{name}: {error:.1e} at batch {batch}"
    return ""
