"""Shapes of an ONNX model's values."""

from __future__ import annotations

import onnx

from cpd_edge.errors import ModelError


def infer_shapes(model: onnx.ModelProto, free: int = 1) -> dict[str, tuple[int, ...]]:
    """Shape of every value, free dims as `free`.

    Raises:
        ModelError: they cannot be inferred.
    """
    graph = _inferred(model)
    out = {v.name: tuple(d.dim_value or free for d in v.type.tensor_type.shape.dim) for v in _values(graph)}
    return {**out, **{i.name: tuple(i.dims) for i in graph.initializer}}


def float_values(model: onnx.ModelProto) -> frozenset[str]:
    """Names of the values and constants that hold float32 numbers.

    Raises:
        ModelError: they cannot be inferred.
    """
    graph, wanted = _inferred(model), onnx.TensorProto.FLOAT
    values = {v.name for v in _values(graph) if v.type.tensor_type.elem_type == wanted}
    return frozenset(values | {i.name for i in graph.initializer if i.data_type == wanted})


def _inferred(model: onnx.ModelProto) -> onnx.GraphProto:
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(f"the ONNX model's shapes cannot be inferred: {error}") from error


def _values(graph: onnx.GraphProto) -> tuple[onnx.ValueInfoProto, ...]:
    return (*graph.input, *graph.value_info, *graph.output)


__all__ = ["float_values", "infer_shapes"]
