"""Shapes of an ONNX model's values."""

from __future__ import annotations

import onnx

from cpd_edge.errors import ModelError


def infer_shapes(model: onnx.ModelProto, free: int = 1) -> dict[str, tuple[int, ...]]:
    """Shape of every value where the inputs' free dims are `free`.

    Raises:
        ModelError: they cannot be inferred.
    """
    graph = _inferred(model, free)
    return {**{v.name: _shape(v, free) for v in _values(graph)}, **{i.name: tuple(i.dims) for i in graph.initializer}}


def float_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shape of every value of float32 that is no constant, where the inputs' free dims are 1.

    Raises:
        ModelError: they cannot be inferred.
    """
    values = _values(_inferred(model, 1))
    return {v.name: _shape(v, 1) for v in values if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}


def _shape(value: onnx.ValueInfoProto, free: int) -> tuple[int, ...]:
    return tuple(d.dim_value or free for d in value.type.tensor_type.shape.dim)


def _inferred(model: onnx.ModelProto, free: int) -> onnx.GraphProto:
    """The graph with shapes. Free dims are bound at the inputs: `batch * heads` is another number than `batch`."""
    bound = onnx.ModelProto()
    bound.CopyFrom(model)
    for value in bound.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.dim_value:
                dim.dim_value = free
    for value in (*bound.graph.value_info, *bound.graph.output):
        if not all(dim.dim_value for dim in value.type.tensor_type.shape.dim):
            value.type.tensor_type.ClearField("shape")
    try:
        return onnx.shape_inference.infer_shapes(bound, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(f"the ONNX model's shapes cannot be inferred: {error}") from error


def _values(graph: onnx.GraphProto) -> tuple[onnx.ValueInfoProto, ...]:
    return (*graph.input, *graph.value_info, *graph.output)


__all__ = ["float_shapes", "infer_shapes"]
