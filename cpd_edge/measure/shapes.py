"""Shapes of an ONNX model's values."""

from __future__ import annotations

import onnx

from cpd_edge.errors import ModelError


def infer_shapes(model: onnx.ModelProto, free: int = 1) -> dict[str, tuple[int, ...]]:
    """Shape of every value, free dims as `free`.

    Raises:
        ModelError: they cannot be inferred.
    """
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(f"the ONNX model's shapes cannot be inferred: {error}") from error
    out = {
        info.name: tuple(d.dim_value or free for d in info.type.tensor_type.shape.dim)
        for info in (*graph.input, *graph.value_info, *graph.output)
    }
    return {**out, **{i.name: tuple(i.dims) for i in graph.initializer}}


__all__ = ["infer_shapes"]
