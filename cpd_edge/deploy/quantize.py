"""INT8 by explicit Q/DQ nodes, placed where TensorRT fuses them: at the inputs of weighted operators, not behind them.

ONNX Runtime's static quantisation does the calibration. Its own habit of quantising every tensor puts a Q/DQ pair
between a convolution and its activation, which keeps TensorRT from fusing the two; so outputs are left alone here.
"""

from __future__ import annotations

import importlib
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from cpd_edge.errors import DataError, ModelError, RuntimeMissing

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that are quantised where one of their inputs is a weight."""

_MARKS = frozenset(["QuantizeLinear", "DequantizeLinear"])


def is_quantised(model: onnx.ModelProto) -> bool:
    """Whether the model holds Q/DQ nodes."""
    return any(node.op_type in _MARKS for node in model.graph.node)


def quantise(model: onnx.ModelProto, images: npt.NDArray[Any], batch: int = 8) -> onnx.ModelProto:
    """The model with symmetric INT8 Q/DQ around the inputs and the weights (per channel) of weighted operators.

    Args:
        model: in fp32, with one input.
        images: calibration inputs `[n, ...]` as the model takes them; their extremes set the scales.
        batch: images per calibration run.

    Raises:
        DataError: images of another shape, or values that are not finite.
        ModelError: the model is quantised already, or has nothing to quantise.
        RuntimeMissing: ONNX Runtime is not installed.
    """
    if is_quantised(model):
        raise ModelError("the model holds Q/DQ nodes already", hint="build it as it is with --precision int8")
    weights = {i.name for i in model.graph.initializer}
    nodes = [n.name for n in model.graph.node if n.op_type in WEIGHTED and any(x in weights for x in n.input[1:2])]
    if not nodes:
        raise ModelError("the model has no convolution or matrix product with a weight: nothing to quantise")
    source = model.graph.input[0]
    _require_fitting(source, images)
    tool = _tool()
    feeds = iter([{source.name: _piece(images, i, batch, source)} for i in range(0, len(images), batch)])
    with tempfile.TemporaryDirectory(prefix="cpd-edge-") as folder, _quiet():
        before, after = Path(folder) / "model.onnx", Path(folder) / "quantised.onnx"
        onnx.save(model, before)  # given a model in memory, the quantiser would move its weights to files
        tool.quantize_static(
            before,
            after,
            _reader(tool, feeds),
            quant_format=tool.QuantFormat.QDQ,
            per_channel=True,
            activation_type=tool.QuantType.QInt8,
            weight_type=tool.QuantType.QInt8,
            nodes_to_quantize=nodes,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "OpTypesToExcludeOutputQuantization": list(WEIGHTED),
            },
        )
        return onnx.load(after)


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


def _tool() -> Any:
    try:
        return importlib.import_module("onnxruntime.quantization")
    except ImportError as error:
        raise RuntimeMissing(
            "quantising needs ONNX Runtime, which is not installed", hint="pip install 'cpd-edge[cpu]'"
        ) from error


def _reader(tool: Any, feeds: Iterator[dict[str, npt.NDArray[Any]]]) -> Any:
    class Reader(tool.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
            return next(feeds, None)

    return Reader()


@contextmanager
def _quiet() -> Iterator[None]:
    """ONNX Runtime's quantiser advises on the root logger; what it advises has been done."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)


__all__ = ["WEIGHTED", "calibration", "is_quantised", "quantise"]
