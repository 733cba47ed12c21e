"""The ranges of a network's values on real inputs: what static quantisation needs to know.

ONNX Runtime runs the model once over the calibration inputs, with the extremes of every value as further outputs.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from cpd_edge.errors import DataError, RuntimeMissing

Ranges = Mapping[str, tuple[float, float]]
"""Least and greatest number that a value held, by the value's name."""


def observe(model: onnx.ModelProto, images: npt.NDArray[Any], values: Collection[str], batch: int = 8) -> Ranges:
    """The extremes of some values of a model over calibration inputs.

    Args:
        model: in fp32, with one input.
        images: calibration inputs `[n, ...]` as the model takes them.
        values: names of activations.
        batch: images per run.

    Raises:
        DataError: images of another shape, or values that are not finite.
        RuntimeMissing: ONNX Runtime is not installed.
    """
    source = model.graph.input[0]
    _require_fitting(source, images)
    names = sorted(set(values) - {source.name})
    session = _session(_with_extremes(model, names))
    low, high = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    for start in range(0, len(images), batch) if names else ():
        found = session.run(
            [*map(_least, names), *map(_most, names)], {source.name: _piece(images, start, batch, source)}
        )
        low = np.minimum(low, found[: len(names)])
        high = np.maximum(high, found[len(names) :])
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        odd = names[int(np.argmin(np.isfinite(low) & np.isfinite(high)))]
        raise DataError(f"on the calibration inputs, the model's value {odd} is not finite")
    ranges = {name: (float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)}
    return {source.name: (float(images.min()), float(images.max())), **ranges}


def calibration(path: Path) -> npt.NDArray[Any]:
    """Calibration inputs from a `.npy` file.

    Raises:
        DataError: no such file, or no array of numbers `[n, ...]` in it.
    """
    try:
        found = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"no calibration inputs at {path}", hint="numpy.save them as float32 [n, c, h, w]") from None
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} is no array file: {error}", hint="numpy.save the inputs as float32") from None
    if found.ndim < 2 or found.dtype.kind != "f" or not len(found):
        raise DataError(
            f"{path} holds {found.dtype} of shape {list(found.shape)}: inputs as the model takes them are needed",
            hint="numpy.save them as float32 [n, c, h, w], normalised as for the model",
        )
    return np.asarray(found, np.float32)


def _with_extremes(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """The model with two further outputs for each value."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    for name in names:
        for operator, called in (("ReduceMin", _least(name)), ("ReduceMax", _most(name))):
            out.graph.node.append(helper.make_node(operator, [name], [called], name=called, keepdims=0))
            out.graph.output.append(helper.make_tensor_value_info(called, TensorProto.FLOAT, []))
    return out


def _least(name: str) -> str:
    return f"{name}/least"


def _most(name: str) -> str:
    return f"{name}/most"


def _require_fitting(source: onnx.ValueInfoProto, images: npt.NDArray[Any]) -> None:
    dims = [d.dim_value for d in source.type.tensor_type.shape.dim]
    fits = len(dims) == images.ndim and all(a in (0, b) for a, b in zip(dims[1:], images.shape[1:], strict=True))
    if not fits:
        wanted = [d or "any" for d in dims]
        raise DataError(f"calibration inputs are {list(images.shape)}, the model's input {source.name!r} is {wanted}")
    if not np.isfinite(images).all():
        raise DataError("calibration inputs hold values that are not finite")


def _piece(images: npt.NDArray[Any], start: int, batch: int, source: onnx.ValueInfoProto) -> npt.NDArray[Any]:
    """One calibration batch; a fixed batch of the model is filled by going round."""
    fixed = source.type.tensor_type.shape.dim[0].dim_value
    size = fixed or min(batch, len(images) - start)
    return np.ascontiguousarray(images[np.arange(start, start + size) % len(images)], np.float32)


def _session(model: onnx.ModelProto) -> Any:
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise RuntimeMissing(
            "quantising needs ONNX Runtime, which is not installed", hint="pip install 'cpd-edge[cpu]'"
        ) from error
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    return runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


__all__ = ["Ranges", "calibration", "observe"]
