"""Every group that comb found, put to the proof: cut it, mask it, compare; then the same as an ONNX file.

Each group is cut to about half of its units and held against the mask over its own part of the network, in float64.
Then whole networks are cut and compared by their outputs: half of everything, and random widths. Groups that a
statistic runs over (`exact=False`) have to cut and run; how far they are from the mask is reported and not judged.
Last, the network at half of everything goes to ONNX, and ONNX Runtime is held against torch.

All of it on a clone whose every parameter matters (`enliven`).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from cpd_edge.comb import comb
from cpd_edge.cut import cut
from cpd_edge.deploy.onnx import export_onnx, finish
from cpd_edge.layout import Keep, axes, occupants
from cpd_edge.measure.runners import onnxruntime
from cpd_edge.network import Combed, Network, trace
from cpd_edge.pipeline.enliven import enliven, in_double
from cpd_edge.pipeline.lockstep import difference
from cpd_edge.pipeline.proof import GOOD, TOLERANCE, PlanRow, Proof, Row
from cpd_edge.store import plain
from cpd_edge.types import Groups

ONNX_TOLERANCE = 1e-4
"""Largest difference of ONNX Runtime and torch in float32, relative to the largest output."""

Progress: TypeAlias = Callable[[str, float, str], None]


@dataclass(frozen=True)
class Verification:
    """The proof, group by group and plan by plan.

    Attributes:
        groups: what comb found.
        rows, plans: one a group, one a whole network.
        prunable_params_fraction: share of the parameters' elements that some unit occupies.
        params: parameters of the network.
        seconds: by stage: trace, comb, verify, onnx.
        onnx: whether an ONNX file was asked for.
        onnx_max_error: largest relative difference of ONNX Runtime and torch; None where there is none.
        onnx_cause: why there is none.
        half: the network at half of every group, with the parameters it was verified with; None where there is none.
    """

    groups: Groups
    rows: tuple[Row, ...]
    plans: tuple[PlanRow, ...]
    prunable_params_fraction: float
    params: int
    seconds: Mapping[str, float]
    onnx: bool
    onnx_max_error: float | None = None
    onnx_cause: str = ""
    half: Network | None = field(default=None, repr=False, compare=False)

    @property
    def params_half(self) -> int | None:
        """Parameters of the network at half of every group."""
        return sum(p.numel() for p in self.half.parameters()) if self.half is not None else None

    @property
    def max_error(self) -> float:
        """Largest error among what is judged."""
        judged = [r.error for r in self.rows if r.exact] + [p.error for p in self.plans if p.judged]
        return max(judged, default=0.0)

    @property
    def verified(self) -> bool:
        """Whether every group and plan did what it has to, and the ONNX file agrees with torch."""
        cuts = all(outcome in GOOD for outcome in (*(r.outcome for r in self.rows), *(p.outcome for p in self.plans)))
        return cuts and (not self.onnx or (self.onnx_max_error is not None and self.onnx_max_error < ONNX_TOLERANCE))

    def to_json(self, model: str = "") -> dict[str, Any]:
        """What `cpd-edge comb MODEL --verify --json` prints."""
        groups = self.groups.groups
        counts = {
            "groups": len(groups),
            "units": sum(g.units for g in groups),
            "exact_groups": sum(g.exact for g in groups),
            "depth_groups": sum(g.depth for g in groups),
            "frozen_axes": len(self.groups.frozen),
        }
        numbers = {
            "prunable_params_fraction": self.prunable_params_fraction,
            "params": self.params,
            "params_half": self.params_half,
            "max_error": self.max_error,
            "tolerance": TOLERANCE,
            "onnx_max_error": self.onnx_max_error,
            "onnx_tolerance": ONNX_TOLERANCE,
            "onnx_cause": self.onnx_cause,
        }
        found: dict[str, Any] = {
            "model": model,
            "verified": self.verified,
            "seconds": self.seconds,
            **counts,
            **numbers,
        }
        found |= {"rows": self.rows, "plans": self.plans, "frozen": self.groups.frozen}
        plainly: dict[str, Any] = plain(found)
        return plainly


def verify(
    model: nn.Module,
    input_shape: tuple[int, ...],
    *,
    plans: int = 3,
    onnx: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Verification:
    """Cuts every group of a network, alone and together, and holds each cut against the mask.

    Args:
        model: a module that takes one tensor `[batch, *input_shape]`; not changed.
        input_shape: shape of one input, without the batch.
        plans: random whole-network plans over the exact groups; one more over all groups, where some are not exact.
        onnx: also export the network at half of every group, and compare ONNX Runtime with torch.
        seed: of parameters that are drawn, inputs, kept units and widths.
        progress: gets stage, fraction and message.

    Raises:
        ModelError: the model cannot be exported.
        RuntimeMissing: ONNX Runtime is not installed.
    """
    if onnx:
        onnxruntime()
    clock = _Clock(progress or (lambda stage, fraction, text: None))
    with clock.stage("trace"):
        network = enliven(trace(model, input_shape), seed)
    with clock.stage("comb"):
        combed = comb(network, input_shape)
    with clock.stage("verify") as tell:
        proof = Proof(in_double(combed), seed, tell)
        rows = proof.each_group()
        failed = {row.group for row in rows if row.outcome not in GOOD}
        whole = proof.whole_networks(plans, failed)
    error, cause, small = None, "", _cut(combed, proof.halves)
    if onnx:
        with clock.stage("onnx"):
            error, cause = _onnx_error(small) if isinstance(small, Network) else (None, small)
    return Verification(
        groups=combed.groups,
        rows=tuple(rows),
        plans=tuple(whole),
        prunable_params_fraction=prunable_fraction(combed),
        params=sum(p.numel() for p in network.parameters()),
        seconds=clock.seconds,
        onnx=onnx,
        onnx_max_error=error,
        onnx_cause=cause,
        half=small if isinstance(small, Network) else None,
    )


def prunable_fraction(combed: Combed) -> float:
    """Share of the parameters' elements that a unit of some group occupies, along any dim."""
    names = set(combed.groups.widths)
    total = fixed = 0
    for name, parameter in combed.network.named_parameters():
        stays = 1
        for size, layout in zip(parameter.shape, combed.parameters.get(name, ()), strict=False):
            held = [occupants(layout, axis).reshape(-1) for axis in axes(layout) if axis in names]
            stays *= size - len({int(index) for where in held for index in where})
        total += parameter.numel()
        fixed += stays if name in combed.parameters else parameter.numel()
    return 1 - fixed / max(total, 1)


class _Clock:
    """Seconds by stage, told as they pass."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Callable[[float, str], None]]:
        """Times a stage; gives a function that tells how far it is."""
        self._progress(name, 0.0, "")
        started = time.perf_counter()
        yield lambda fraction, text: self._progress(name, fraction, text)
        self.seconds[name] = time.perf_counter() - started
        self._progress(name, 1.0, "")


def _cut(combed: Combed, keep: Keep) -> Network | str:
    """The network at half of everything, or why there is none."""
    try:
        return cut(combed, keep)
    except Exception as error:  # whatever tracing raises over shapes that do not fit
        return _said(error)


def _onnx_error(network: Network) -> tuple[float | None, str]:
    """Largest relative difference of ONNX Runtime and torch over all outputs and two batch sizes, or why not."""
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, torch.get_num_threads()
    worst = 0.0
    try:
        model = finish(export_onnx(network).model).SerializeToString()
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        for batch in (2, 1):
            inputs = network.example(batch, seed=batch)
            with torch.no_grad():
                wanted = [t.cpu() for t in pytree.tree_leaves(network(inputs)) if isinstance(t, Tensor)]
            got = session.run(None, {session.get_inputs()[0].name: inputs.cpu().numpy()})
            worst = max([worst, *(difference(torch.from_numpy(g), w) for g, w in zip(got, wanted, strict=True))])
    except Exception as error:  # the exporter and the runtime raise what they like
        return None, _said(error)
    return worst, "" if worst < math.inf else "outputs have other shapes, or are not finite"


def _said(error: BaseException) -> str:
    """What an exception comes down to, on one line: exporters say why only in the first of a chain of them."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}"
