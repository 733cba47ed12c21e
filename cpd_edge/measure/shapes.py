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
    return {**{v.name: _shape(v, free) for v in _values(graph)}, **{i.name: tuple(i.dims) for i in graph.initializer}}


def float_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shape of every value of float32 that is no constant, free dims as 1.

    Raises:
        ModelError: they cannot be inferred.
    """
    values = _values(_inferred(model))
    return {v.name: _shape(v, 1) for v in values if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}


def _shape(value: onnx.ValueInfoProto, free: int) -> tuple[int, ...]:
    return tuple(d.dim_value or free for d in value.type.tensor_type.shape.dim)


def _inferred(model: onnx.ModelProto) -> onnx.GraphProto:
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(f"the ONNX model's shapes cannot be inferred: {error}") from error


def _values(graph: onnx.GraphProto) -> tuple[onnx.ValueInfoProto, ...]:
    return (*graph.input, *graph.value_info, *graph.output)


__all__ = ["float_shapes", "infer_shapes"]
