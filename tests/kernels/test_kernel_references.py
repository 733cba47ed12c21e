"""The NumPy reference is what the rest of the world computes: torch, Pillow and ONNX Runtime agree with it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from cpd_edge.errors import UsageError
from cpd_edge.kernels import Preprocess, reference

torch = pytest.importorskip("torch")

SIZES = [((37, 53), (16, 24)), ((16, 24), (37, 53)), ((40, 9), (9, 40)), ((1, 9), (4, 4)), ((31, 31), (31, 31))]


def picture(h: int, w: int, channels: int = 3) -> npt.NDArray[np.uint8]:
    """Random bytes: the hardest picture to resize."""
    return np.random.default_rng(8).integers(0, 256, (1, h, w, channels), np.uint8)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("src", "dst"), SIZES)
def test_resizing_is_torch_s(src: tuple[int, int], dst: tuple[int, int], antialias: bool) -> None:
    """Half-pixel centres, with and without antialias: `interpolate` to a thousandth of a grey level."""
    image = picture(*src)
    ours = reference.preprocess(Preprocess(*dst, std=(1 / 255,), antialias=antialias), image)
    pixels = torch.from_numpy(image).permute(0, 3, 1, 2).float()
    theirs = torch.nn.functional.interpolate(pixels, dst, mode="bilinear", antialias=antialias, align_corners=False)
    assert np.abs(ours - theirs.numpy()).max() < 1e-3  # type: ignore[operator]


@pytest.mark.parametrize(("src", "dst"), SIZES)
def test_antialias_is_pillow_s_to_a_grey_level(src: tuple[int, int], dst: tuple[int, int]) -> None:
    """Pillow rounds to bytes after each of its two passes, so a level is the most that lies between."""
    from PIL import Image

    image = picture(*src)
    ours = reference.preprocess(Preprocess(*dst, std=(1 / 255,), antialias=True), image)
    theirs = np.asarray(Image.fromarray(image[0]).resize(dst[::-1], Image.Resampling.BILINEAR), np.float32)
    assert np.abs(ours[0] - theirs.transpose(2, 0, 1)).max() <= 1.0  # type: ignore[operator]


def test_without_antialias_a_shrunk_picture_is_another() -> None:
    """The two resizes differ by tens of grey levels on detail: a network trained with one must not get the other."""
    image = picture(64, 64)
    soft, sharp = (
        reference.preprocess(Preprocess(16, 16, std=(1 / 255,), antialias=antialias), image)
        for antialias in (True, False)
    )
    assert np.abs(soft - sharp).mean() > 20  # type: ignore[operator]


def test_normalising_is_torchvision_s() -> None:
    """`(pixel / 255 - mean) / std`, to the last bits of float32."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    image = picture(9, 9)
    ours = reference.preprocess(Preprocess(9, 9, mean=mean, std=std), image)
    theirs = (image.transpose(0, 3, 1, 2) / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    assert np.abs(ours - theirs).max() < 1e-6  # type: ignore[operator]


def test_quantising_is_onnx_s() -> None:
    """QuantizeLinear gives the same bytes: rounding, zero point, saturation."""
    onnxruntime = pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    value = np.concatenate([np.arange(-300, 300) / 2, [-1e9, 1e9, 0.2499999, 0.25]]).astype(np.float32)
    nodes = [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"])]
    given = [
        helper.make_tensor("scale", TensorProto.FLOAT, [], [0.5]),
        helper.make_tensor("zero", TensorProto.INT8, [], [-7]),
    ]
    graph = helper.make_graph(
        nodes, "quantise", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [len(value)])],
        [helper.make_tensor_value_info("y", TensorProto.INT8, [len(value)])], given,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.array_equal(session.run(None, {"x": value})[0], reference.quantise(value, 0.5, -7))


def test_topk_and_argmax_are_torch_s() -> None:
    """Where nothing is equal, order and winner are torch's, a NaN's place among them."""
    logits = torch.randperm(400).reshape(4, 100).float()
    logits[2, 7] = float("nan")
    values, indices = torch.topk(logits, 5)
    best, where = reference.topk(logits.numpy(), 5)
    assert np.array_equal(indices.numpy(), where)
    assert np.array_equal(values.numpy(), best, equal_nan=True)
    planes = logits.reshape(4, 4, 5, 5)
    assert np.array_equal(planes.argmax(1).numpy(), reference.argmax(planes.numpy()))


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4, 3), np.uint8), np.zeros((1, 4, 4, 3)), np.zeros((1, 4, 4, 1), np.uint8)]
)
def test_what_is_no_image_is_refused(image: npt.NDArray[np.uint8]) -> None:
    """Without a batch, in another type or with another channel count, it says what it takes."""
    with pytest.raises(UsageError, match=r"give uint8 \[n, h, w, 3 or 4\]"):
        reference.preprocess(Preprocess(4, 4), image)
