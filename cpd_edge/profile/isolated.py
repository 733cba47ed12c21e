"""The literature's baseline: every operation timed alone, and the sum taken for the network's latency.

It misses what happens between operations (layout conversions, caches) and adds what each engine costs by
itself; it is here to be compared with, not to plan on.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cpd_edge.errors import CpdError
from cpd_edge.measure.shapes import float_shapes
from cpd_edge.measure.site import times_ms
from cpd_edge.profile.attribution import Attribution
from cpd_edge.profile.regions import node_name
from cpd_edge.types import Widths

if TYPE_CHECKING:
    from cpd_edge.profile.table import Sample
    from cpd_edge.profile.turns import MakeRunner

REPEATS = 8


def predict(
    build: Callable[[Widths], bytes],
    attribution: Attribution,
    samples: Sequence[Sample],
    make_runner: MakeRunner,
    *,
    seconds: float = 10.0,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[int, float]:
    """Sum of the regions' heads timed alone, by index of the held-out sample [ms].

    Operations of equal shape are timed once. Samples that the time does not reach are left out, but for the first.

    Args:
        build: the ONNX file of the network at some widths.
        attribution: the network's regions by the names of their nodes; the head of each is timed.
        samples: those that are held out are predicted.
        make_runner: opens a model file in the deployment runtime.
        seconds: time after which no operation of a further sample is timed.
        clock: monotonic clock [ns].
    """
    until = time.monotonic() + seconds
    known: dict[str, float] = {}
    out: dict[int, float] = {}
    for i, sample in enumerate(samples):
        if not sample.held_out:
            continue
        total = 0.0
        model = onnx.load_from_string(build(sample.widths))
        for single in single_operations(model, attribution.adapted(model).heading(model)).values():
            if out and time.monotonic() > until:
                return out
            name = hashlib.sha256(single).hexdigest()
            if name not in known:
                known[name] = _timed_ms(single, make_runner, clock)
            total += known[name]
        out[i] = total
    return out


def single_operations(model: onnx.ModelProto, names: frozenset[str] | set[str]) -> dict[str, bytes]:
    """One model for each named node: its first activation is the input, all else are constants.

    Nodes whose activations or result are not floats of known shape are left out. Equal shapes give equal bytes.
    """
    shapes = float_shapes(model)
    constants = {i.name: i for i in model.graph.initializer}
    out = {}
    for node in model.graph.node:
        feeds = [x for x in node.input if x and x not in constants]
        if node_name(node) in names and feeds and all(shapes.get(x) for x in (*feeds, node.output[0])):
            out[node_name(node)] = _single(model, node, shapes, constants)
    return out


def _single(
    model: onnx.ModelProto,
    node: onnx.NodeProto,
    shapes: Mapping[str, tuple[int, ...]],
    constants: Mapping[str, onnx.TensorProto],
) -> bytes:
    """A model of one node, with values named by position so that equal nodes give equal bytes."""
    alone = onnx.NodeProto()
    alone.CopyFrom(node)
    alone.ClearField("metadata_props")
    alone.name, alone.doc_string = "node", ""
    source = next(i for i, x in enumerate(node.input) if x and x not in constants)
    weights = []
    for i, name in enumerate(node.input):
        if not name:
            continue
        alone.input[i] = f"in{i}"
        if name in constants and len(constants[name].dims) < 2:
            weight = onnx.TensorProto()
            weight.CopyFrom(constants[name])
            weight.name = f"in{i}"
            weights.append(weight)
        elif i != source:
            shape = tuple(constants[name].dims) if name in constants else shapes[name]
            weights.append(numpy_helper.from_array(np.full(shape, 0.01, np.float32), f"in{i}"))
    for i in range(len(node.output)):
        alone.output[i] = f"out{i}"
    name, shape, nodes = f"in{source}", shapes[node.input[source]], [alone]
    if shape[0] != 1:  # engines take one image: what has no batch in front gets it, at no cost
        weights.append(numpy_helper.from_array(np.zeros(1, np.int64), "front"))
        nodes.insert(0, helper.make_node("Squeeze", ["image", "front"], [name], "squeeze"))
        name, shape = "image", (1, *shape)
    feed = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    result = helper.make_tensor_value_info("out0", TensorProto.FLOAT, shapes[node.output[0]])
    graph = helper.make_graph(nodes, "alone", [feed], [result], weights)
    made = helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    return bytes(made.SerializeToString(deterministic=True))


def _timed_ms(model: bytes, make_runner: MakeRunner, clock: Callable[[], int]) -> float:
    """Latency of an operation; 0 for one that the runtime does not take alone [ms]."""
    try:
        runner = make_runner(model, False)
    except CpdError:
        return 0.0
    with contextlib.closing(runner):
        times = times_ms(runner, REPEATS, clock)
    return float(np.quantile(times[2:], 0.25))
