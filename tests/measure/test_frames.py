"""Laws of the end-to-end mode on a CPU: what the stages compute, and what is said of their times."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback import device, over_pipes

from cpd_edge.errors import EnvironmentMismatch, ModelError, UsageError
from cpd_edge.kernels import reference
from cpd_edge.measure import OnnxRunner, Protocol, compare, measure, require_comparable
from cpd_edge.measure.compiled_runner import OpenVinoRunner
from cpd_edge.measure.doctor import tiny_model
from cpd_edge.measure.end_to_end import end_to_end
from cpd_edge.measure.frames import Camera, HostFrames, colours
from cpd_edge.measure.host_stages import STAGES
from cpd_edge.measure.remote import RemoteRunner
from cpd_edge.measure.station import Station

SHORT = Protocol(warmup_s=0.02, block_s=0.01, target=0.5, limit_s=1.0)
CAMERA = Camera(48, 64)


class Echo:
    """An engine that gives its input as logits, of 4 dims or of 2."""

    def __init__(self, shape: tuple[int, ...], dims: int = 4, dtype: type = np.float32) -> None:
        self.source = np.zeros(shape, dtype)
        self.made = np.zeros(shape if dims == 4 else (shape[0], int(np.prod(shape[1:]))), dtype)
        self.environment: dict[str, Any] = {"shape": "x".join(map(str, shape))}
        self.closed = False

    def in_place(self) -> tuple[Any, Any]:
        return self.source, self.made

    def run(self) -> None:
        self.made[...] = self.source.reshape(self.made.shape)

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("letterbox", [False, True])
@pytest.mark.parametrize("shape", [(1, 3, 20, 30), (1, 3, 60, 40), (1, 1, 20, 30)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_frame_becomes_the_input_that_the_reference_makes(
    shape: tuple[int, ...], letterbox: bool, dtype: type
) -> None:
    """Up to Pillow's rounding to grey levels: the same resize, box, channel order and normalisation."""
    camera = Camera(48, 64, letterbox)
    engine = Echo(shape, dtype=dtype)
    staged = HostFrames(engine, camera)
    staged.run()
    frames = staged._framed.frames[0]
    expected = reference.preprocess(camera.recipe(shape), frames.reshape(1, 48, 64, shape[1]))
    recipe = camera.recipe(shape)
    level = 1.01 * 255 * float(recipe.a.max()) / 255
    assert float(np.abs(engine.source - expected).max()) <= level + (0.01 if dtype is np.float16 else 0)


def test_logits_become_the_top_classes_of_the_reference() -> None:
    """The values, largest first, each with a class of its own that has it; among equals any."""
    engine = Echo((1, 3, 8, 8), dims=2)
    staged = HostFrames(engine, CAMERA)
    staged.run()
    values, classes = staged.result
    assert np.array_equal(reference.topk(engine.made, 5)[0][0], values)
    assert np.array_equal(engine.made[0][classes], values)
    assert 5 == len(set(classes.tolist()))


def test_a_class_map_becomes_the_colours_of_the_reference() -> None:
    """The palette of the class of each pixel."""
    engine = Echo((1, 3, 8, 8))
    staged = HostFrames(engine, CAMERA)
    staged.run()
    expected = reference.palette(reference.argmax(engine.made), colours())
    assert np.array_equal(expected[0], staged.result)


def test_every_class_has_a_colour_of_its_own() -> None:
    """256 of them; class 0 is black."""
    assert 256 == len({tuple(row) for row in colours().tolist()})
    assert [0, 0, 0] == colours()[0].tolist()


@pytest.mark.parametrize("make", [OnnxRunner, OpenVinoRunner], ids=["onnxruntime", "openvino"])
def test_the_stages_add_up_to_the_whole(make: Any) -> None:
    """Each run has a time for each stage; together they are no longer than the run, and nearly as long."""
    with contextlib.closing(end_to_end(make(tiny_model()), CAMERA)) as staged:
        found = measure(staged, "it", SHORT)
        stages = staged.stage_ms(found.starts_ns)
    assert list(STAGES) == list(stages)
    total_ms = np.sum(list(stages.values()), axis=0)
    assert total_ms.shape == found.samples_ns.shape
    assert np.all(total_ms <= found.samples_ns / 1e6)
    assert float(total_ms.sum()) > 0.5 * float(found.samples_ns.sum() / 1e6)


def test_the_stages_of_lead_ins_are_not_those_of_samples() -> None:
    """In turns with another engine each block has a lead-in that does not count: no stage of it is told."""
    a, b = (HostFrames(Echo((1, 3, 8, 8), dims=2), CAMERA) for _ in range(2))
    found = compare(a, b, ("a", "b"), Protocol(warmup_s=0.01, block_s=0.0, limit_s=0.3, min_blocks=3)).b
    begun_ns, rows_ns = b._framed.begun_ns, b._framed.stage_ns
    ends_ns = found.starts_ns + found.samples_ns
    within = [any((found.starts_ns <= at) & (at < ends_ns)) for at in begun_ns]
    assert len(found.samples_ns) == sum(within) < len(begun_ns)
    engine_ms = [row[1] / 1e6 for row, counts in zip(rows_ns, within, strict=True) if counts]
    assert engine_ms == b.stage_ms(found.starts_ns)["engine"].tolist()


@pytest.mark.parametrize("make", [OnnxRunner, OpenVinoRunner], ids=["onnxruntime", "openvino"])
def test_the_engine_computes_on_what_was_prepared(make: Any) -> None:
    """The array that preprocessing writes is the one that the engine reads; its output is where post reads."""
    with contextlib.closing(make(tiny_model())) as engine:
        source, made = engine.in_place()
        for seed in range(2):
            source[...] = np.random.default_rng(seed).standard_normal(source.shape)
            engine.run()
            assert np.allclose(engine.outputs(source), made, atol=1e-5)


def test_end_to_end_is_another_environment_than_the_engine_alone() -> None:
    """Frame, fit and what ran the stages are part of what makes numbers comparable."""
    with contextlib.closing(OnnxRunner(tiny_model())) as alone:
        environments = [alone.environment]
        for camera in (CAMERA, Camera(48, 64, letterbox=True), Camera(50, 64)):
            with contextlib.closing(end_to_end(OnnxRunner(tiny_model()), camera)) as staged:
                environments.append(staged.environment)
    for i, one in enumerate(environments):
        for other in environments[:i]:
            with pytest.raises(EnvironmentMismatch):
                require_comparable(one, other)
    assert "Pillow" in environments[1]["stages"] and "on the CPU" in environments[1]["stages"]


@pytest.mark.parametrize(
    ("shape", "dims", "says"),
    [((2, 3, 8, 8), 4, "camera's frame becomes"), ((1, 5, 8, 8), 4, "camera's frame"), ((1, 3, 8), 2, "camera's")],
)
def test_what_is_no_network_for_frames_is_refused(shape: tuple[int, ...], dims: int, says: str) -> None:
    """A batch, other channels, no image: with the way out."""
    with pytest.raises(ModelError, match=rf"{says}(.|\n)*leave out --end-to-end"):
        HostFrames(Echo(shape, dims), CAMERA)


def test_an_output_that_is_no_answer_is_refused() -> None:
    """Neither classes nor a class map."""
    engine = Echo((1, 3, 8, 8))
    engine.made = np.zeros((1, 300, 8, 8), np.float32)
    with pytest.raises(ModelError, match=r"output of \[1, 300, 8, 8\]"):
        HostFrames(engine, CAMERA)


@pytest.mark.parametrize("extents", [(0, 8), (8, -1), (8, 1 << 16)])
def test_a_frame_without_pixels_is_refused(extents: tuple[int, int]) -> None:
    """With an example to type."""
    with pytest.raises(UsageError, match="--frame 1080,1920"):
        Camera(*extents)


@pytest.fixture
def piped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Station]:
    if sys.platform != "linux":
        pytest.skip("the device's side runs on Linux")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    found = Station(device(tmp_path / "device"), connect=over_pipes(sys.executable))
    yield found
    found.close()


def test_a_device_runs_the_same_stages(piped: Station) -> None:
    """Their code is sent; times and words come back, and the protocol measures them like any engine."""
    with contextlib.closing(end_to_end(RemoteRunner(piped, tiny_model()), CAMERA)) as staged:
        found = measure(staged, "it", SHORT)
        stages = staged.stage_ms(found.starts_ns)
    total_ms = np.sum(list(stages.values()), axis=0)
    assert total_ms.shape == found.samples_ns.shape
    assert np.all(total_ms <= found.samples_ns / 1e6)
    assert "48x64x3" == found.environment["frame"]
    assert "Pillow" in found.environment["stages"]


def test_a_device_refuses_what_this_machine_refuses(piped: Station) -> None:
    """In the same words; the job lives on."""
    import onnx

    model = onnx.load_from_string(tiny_model())
    model.graph.output[0].name = "features"  # as it leaves the pool, still [batch, c]: fine
    flat = onnx.helper.make_node("Unsqueeze", ["logits", "axis"], ["deeper"])
    model.graph.node.append(flat)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2], np.int64), "axis"))
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("deeper", 1, ["batch", 10, 1]))
    with pytest.raises(ModelError, match=r"output of \[1, 10, 1\]"):
        end_to_end(RemoteRunner(piped, model.SerializeToString()), CAMERA)
    assert piped.ask("moment")
