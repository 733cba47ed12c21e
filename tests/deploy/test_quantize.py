"""Laws of quantisation: Q/DQ before every weighted operator and behind none, from the user's own inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from cpd_edge.deploy.quantize import calibration, is_quantised, quantise
from cpd_edge.errors import DataError, ModelError
from cpd_edge.measure.doctor import tiny_model

ort = pytest.importorskip("onnxruntime")
IMAGES = np.random.default_rng(0).standard_normal((12, 3, 16, 16)).astype(np.float32)


def run(proto: onnx.ModelProto, feed: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": feed})[0])


def test_weighted_operators_read_int8_and_write_floats() -> None:
    """So a convolution and the ReLU behind it can fuse; outputs stay within INT8's accuracy."""
    dense = onnx.load_from_string(tiny_model(size=16))
    done = quantise(dense, IMAGES)
    onnx.checker.check_model(done, full_check=True)
    readers = {name: n.op_type for n in done.graph.node for name in n.input}
    makers = {name: n.op_type for n in done.graph.node for name in n.output}
    fed = {makers[name] for n in done.graph.node if n.op_type in ("Conv", "MatMul") for name in n.input[:2]}
    assert {"DequantizeLinear"} == fed
    assert {"Relu"} == {readers[n.output[0]] for n in done.graph.node if n.op_type == "Conv"}
    error = np.abs(run(done, IMAGES) - run(dense, IMAGES)).max() / np.abs(run(dense, IMAGES)).max()
    assert error < 0.1


def test_the_given_model_is_left_alone_and_so_is_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a model in memory, the tool underneath moves its weights to files beside it."""
    monkeypatch.chdir(tmp_path)
    dense = onnx.load_from_string(tiny_model(size=16))
    copy = dense.SerializeToString()
    quantise(dense, IMAGES)
    assert (copy, []) == (dense.SerializeToString(), list(tmp_path.iterdir()))


def test_a_quantised_model_is_not_quantised_again() -> None:
    """It says what to do with it."""
    done = quantise(onnx.load_from_string(tiny_model(size=16)), IMAGES)
    assert is_quantised(done)
    with pytest.raises(ModelError, match="holds Q/DQ nodes already"):
        quantise(done, IMAGES)


@pytest.mark.parametrize(
    ("images", "words"),
    [(IMAGES[:, :2], r"are \[12, 2, 16, 16\], the model's input 'image' is"), (IMAGES * np.inf, "not finite")],
)
def test_images_that_are_not_the_model_s_are_refused(images: Any, words: str) -> None:
    """With both shapes."""
    with np.errstate(invalid="ignore"), pytest.raises(DataError, match=words):
        quantise(onnx.load_from_string(tiny_model(size=16)), images)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no calibration inputs at"), (b"text", "no array file"), (np.zeros((2, 3), np.int64), "holds int64")],
)
def test_calibration_files_are_judged(tmp_path: Path, content: Any, words: str) -> None:
    """Missing, no array, not of floats."""
    path = tmp_path / "images.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(DataError, match=words):
        calibration(path)


def test_calibration_inputs_are_read(tmp_path: Path) -> None:
    """As float32."""
    np.save(tmp_path / "images.npy", IMAGES.astype(np.float64))
    np.testing.assert_array_equal(IMAGES, calibration(tmp_path / "images.npy"))
