"""Fingerprints of tensors, small enough that one of every value of a network can be kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from cpd_edge.network import Network

_SAMPLES = 1021
"""Elements of a tensor that its fingerprint holds, evenly spread."""


@dataclass(frozen=True)
class Print:
    """The fingerprint of a tensor: its shape, and elements spread over it."""

    shape: tuple[int, ...]
    values: Tensor

    def near(self, other: Print, tolerance: float) -> bool:
        """Whether two tensors are the same, up to a share of the second one's size."""
        if self.shape != other.shape:
            return False
        return bool((self.values - other.values).abs().max() <= tolerance * other.values.abs().max())


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of a call's arguments or results, in order, also those of plain objects such as model outputs."""
    found = []
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif hasattr(leaf, "__dataclass_fields__"):
            found += tensors_in([getattr(leaf, name) for name in leaf.__dataclass_fields__])
    return found


def relative_difference(got: Any, want: Any) -> float:
    """Largest difference between the tensors of two outputs, of the largest element wanted; inf if shapes differ."""
    ours, theirs = tensors_in(got), tensors_in(want)
    if not theirs or [t.shape for t in ours] != [t.shape for t in theirs]:
        return float("inf")
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        a, b = a.detach().double(), b.detach().double()
        gap, most = (a - b).abs().max(), b.abs().max()
        worst = max(worst, float(gap / most) if most > 0 else float(gap))
        if gap.isnan():
            return float("inf")
    return worst


def fingerprint(tensor: Tensor) -> Print:
    """A tensor's shape and up to 1021 of its elements."""
    flat = tensor.detach().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    if not flat.numel():
        return Print(tuple(tensor.shape), torch.zeros(1, dtype=torch.float64))
    at = torch.linspace(0, flat.numel() - 1, min(_SAMPLES, flat.numel()), dtype=torch.float64).long()
    values = flat[at.to(flat.device)].to("cpu", torch.float64)
    return Print(tuple(tensor.shape), values.nan_to_num(0.0, 1e300, -1e300))


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps a fingerprint of every tensor."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self.prints: dict[str, Print] = {}

    def run_node(self, n: fx.Node) -> Any:
        """The node's value, fingerprinted before a later call may change it in place."""
        value = super().run_node(n)
        if isinstance(value, Tensor) and n.op in ("call_function", "placeholder"):
            self.prints[n.name] = fingerprint(value)
        return value


def prints(network: Network, inputs: Tensor) -> Mapping[str, Print]:
    """A fingerprint of every tensor that a graph makes, by node."""
    recorder = _Recorder(network)
    with torch.no_grad():
        recorder.run(inputs)
    return recorder.prints
