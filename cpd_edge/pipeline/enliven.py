"""A network whose every parameter matters, so that a wrong cut of any of them shows in numbers.

Networks start with branches that are multiplied by zero, heads that are zero, and batch norms that change nothing. A
cut that is wrong there is as right as any other. What is verified is therefore a clone in which such parameters have
drawn values, and batch norms the statistics of what they are given.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from cpd_edge.canonical import op_name
from cpd_edge.network import Combed, Network

_ALIKE = 1e-3
"""A parameter whose elements differ by less is as it was made: zeros, ones, or where a layer scale starts."""

_BATCH = 4
"""Inputs that batch norms take their statistics from."""

_MEAN, _VARIANCE, _MOMENTUM = 3, 4, 6
"""Positions in the arguments of a batch norm."""


def enliven(network: Network, seed: int = 0) -> Network:
    """A clone with drawn values where parameters are (nearly) zero or all alike, and lively batch norm statistics.

    Zeros become values in ±0.1, anything else that is constant is scaled by 0.5 to 1.5. Trained parameters stay.
    """
    network = network.clone()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.is_floating_point() and parameter.numel() and _alike(parameter):
                drawn = torch.rand(parameter.shape, generator=generator).to(parameter)
                zero = float(parameter.abs().max()) < _ALIKE
                parameter.copy_(0.2 * drawn - 0.1 if zero else parameter * (0.5 + drawn))
        _calibrate(network, generator)
    return network


def in_double(combed: Combed) -> Combed:
    """The same network, layouts and groups in float64; calls that ask for float32 ask for float64."""
    network = combed.network.clone().double()
    for node in network.graph.nodes:
        if node.op == "get_attr":
            held = network.fetch(str(node.target))
            if isinstance(held, Tensor) and held.dtype is torch.float32:  # a constant that is no buffer
                _put(network, str(node.target), held.double())
        node.args = fx.node.map_aggregate(node.args, _wider)
        node.kwargs = fx.node.map_aggregate(node.kwargs, _wider)
    network.refresh()
    return replace(combed, network=network)


def _alike(parameter: Tensor) -> bool:
    return float(parameter.max() - parameter.min()) < _ALIKE


def _calibrate(network: Network, generator: torch.Generator) -> None:
    """Gives every batch norm the mean and variance of what it is given, and moves both a little."""
    norms = [node for node in network.graph.nodes if op_name(node) == "batch_norm" and _keeps_statistics(node)]
    if not norms:
        return
    given = [node.args[_MOMENTUM] for node in norms]
    for node in norms:
        node.update_arg(_MOMENTUM, 1.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network.train()(network.example(_BATCH, seed=1))
    for node, momentum in zip(norms, given, strict=True):
        node.update_arg(_MOMENTUM, momentum)
    network.eval().recompile()
    for node in norms:
        mean, variance = (network.fetch(str(node.args[at].target)) for at in (_MEAN, _VARIANCE))
        variance.nan_to_num_(1.0).clamp_(min=max(1e-2 * float(variance.mean()), 1e-6))
        drawn = torch.rand((2, *mean.shape), generator=generator).to(mean)
        mean.add_((drawn[0] - 0.5) * variance.sqrt())
        variance.mul_(0.5 + drawn[1])


def _keeps_statistics(norm: fx.Node) -> bool:
    held = norm.args[_MEAN], norm.args[_VARIANCE]
    return all(isinstance(node, fx.Node) and node.op == "get_attr" for node in held)


def _wider(argument: Any) -> Any:
    return torch.float64 if argument is torch.float32 else argument


def _put(root: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, last = name.rpartition(".")
    setattr(root.get_submodule(path), last, tensor)
