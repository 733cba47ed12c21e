"""Laws of the ONNX Runtime runner and of the doctor, on a tiny model."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from cpd_edge.errors import ModelError, RuntimeMissing
from cpd_edge.measure import Disturbance, OnnxRunner, Protocol, SimulatedDevice, SimulatedRunner, agent, compare, doctor
from cpd_edge.measure.doctor import install_lines, tiny_model
from cpd_edge.measure.runners import RING

REFERENCE = pytest.importorskip("onnx.reference")


@pytest.fixture
def runner() -> Iterator[OnnxRunner]:
    made = OnnxRunner(tiny_model(size=12))
    yield made
    made.close()


def test_threads_of_an_engine_rest_between_inferences(runner: OnnxRunner, tmp_path: Path) -> None:
    """Here and on another device: they would take the CPU from the engine that it runs in turns with."""
    path = tmp_path / "tiny.onnx"
    path.write_bytes(tiny_model(size=12))
    options = {"provider": "cpu", "threads": 2, "batch": 1, "profile": False, "ring": None, "seed": 0, "shape": None}
    there = agent.Engine(str(path), options, None)
    for session in (runner._session, there.session):
        assert session.get_session_options().get_session_config_entry("session.force_spinning_stop") == "1"


@pytest.mark.parametrize("count", [1, 3, 8])
def test_outputs_are_the_model_s_for_any_batch(runner: OnnxRunner, count: int) -> None:
    """The session that is timed has its batch fixed; the one that answers has not."""
    feed = np.random.default_rng(count).standard_normal((count, 3, 12, 12)).astype(np.float32)
    expected = REFERENCE.ReferenceEvaluator(onnx.load_from_string(tiny_model(size=12))).run(None, {"image": feed})[0]
    np.testing.assert_allclose(runner.outputs(feed), expected, rtol=1e-4, atol=1e-5)


def test_a_model_is_read_from_a_file_as_from_bytes(tmp_path: Path, runner: OnnxRunner) -> None:
    """Same model, same outputs."""
    path = tmp_path / "tiny.onnx"
    path.write_bytes(tiny_model(size=12))
    from_file = OnnxRunner(path)
    assert np.array_equal(from_file.outputs(runner.ring[0]), runner.outputs(runner.ring[0]))
    from_file.close()


def test_the_environment_says_what_really_ran(runner: OnnxRunner) -> None:
    """Provider, shape, threads and inputs are the session's, not the wish."""
    expected = {
        "runtime": "onnxruntime",
        "providers": "CPUExecutionProvider",
        "threads": 1,
        "batch": 1,
        "shape": "1x3x12x12",
        "inputs": "ring of 8, standard normal",
        "profiled": False,
    }
    assert expected.items() <= runner.environment.items()
    assert runner.environment["input_low"] == min(float(values.min()) for values in runner.ring)


def test_the_ring_is_seeded_and_its_inputs_differ() -> None:
    """Equal seeds, equal inputs; eight of them."""
    first, again, other = (OnnxRunner(tiny_model(size=12), batch=2, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first.ring, again.ring, strict=True))
    assert len({values.tobytes() for values in (*first.ring, *other.ring)}) == 2 * RING
    assert first.ring[0].shape == (2, 3, 12, 12)


def test_given_samples_fill_the_ring(runner: OnnxRunner) -> None:
    """Every input of the ring is one of the images."""
    images = np.random.default_rng(0).uniform(0, 1, (5, 3, 12, 12)).astype(np.float32)
    made = OnnxRunner(tiny_model(size=12), sample_input=images)
    assert all(any(np.array_equal(values[0], image) for image in images) for values in made.ring)
    assert made.environment["inputs"] == "ring of 8, given samples"


@pytest.mark.parametrize("profile", [False, True])
def test_kernels_come_in_execution_order_with_one_time_a_run(profile: bool) -> None:
    """Convolutions first, then the pool, then the head; as often as asked, and again when asked again."""
    made = OnnxRunner(tiny_model(size=12), profile=profile)
    for repeats in (4, 2):
        times = made.kernel_times(repeats)
        ops = [kernel.op for kernel in times.kernels]
        main = [op for op in ops if op in ("Conv", "FusedConv", "GlobalAveragePool", "MatMul")]
        assert [op.removeprefix("Fused") for op in main] == ["Conv"] * 3 + ["GlobalAveragePool", "MatMul"]
        assert [kernel.order for kernel in times.kernels] == list(range(len(ops)))
        assert all(kernel.ms.shape == (repeats,) for kernel in times.kernels)
        assert (times.totals_ms > 0).all()
        assert (sum(kernel.ms for kernel in times.kernels) <= times.totals_ms).all()
    made.close()


def test_load_and_first_inference_are_reported_apart(runner: OnnxRunner) -> None:
    """Two figures, both times."""
    assert set(runner.load_ms) == {"first_load", "first_inference"}
    assert all(value > 0 for value in (*runner.load_ms.values(), runner.warm_load_ms()))


def test_real_engines_are_compared_with_their_samples() -> None:
    """Wall times are positive and every block is there; how fast they are is nobody's law."""
    a, b = OnnxRunner(tiny_model(size=12)), OnnxRunner(tiny_model((3, 8, 8), size=12))
    found = compare(a, b, ("dense", "pruned"), Protocol(warmup_s=0.01, block_s=0.002, limit_s=0.2))
    assert (found.a.samples_ns > 0).all()
    assert (found.b.samples_ns > 0).all()
    lead = "lead-in of 3 inferences after another engine"
    assert found.a.environment["protocol"] == f"back-to-back, blocks of 0.002 s, {lead}, warm-up 0.01 s"


def with_input(shape: list[int | str], elem_type: int = onnx.TensorProto.FLOAT) -> bytes:
    """A model that hands its input through."""
    tensors = [onnx.helper.make_tensor_value_info(name, elem_type, shape) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["y"])], "g", tensors[:1], tensors[1:])
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    serialized: bytes = made.SerializeToString()
    return serialized


def test_a_batch_of_any_name_is_fixed() -> None:
    """Exporters call it `N`, `s0` or `batch`."""
    assert OnnxRunner(with_input(["N", 3]), batch=4).environment["shape"] == "4x3"


def test_symbolic_image_sizes_are_settled_by_the_samples() -> None:
    """And by nothing else."""
    model = with_input(["batch", 3, "h", "w"])
    images = np.zeros((2, 3, 5, 6), np.float32)
    assert OnnxRunner(model, sample_input=images).environment["shape"] == "1x3x5x6"
    with pytest.raises(ModelError, match="give sample_input"):
        OnnxRunner(model)


@pytest.mark.parametrize(
    ("model", "more", "words"),
    [
        (with_input([2, 3]), {}, "batch is fixed at 2, 1 was asked for"),
        (with_input(["batch", 3]), {"sample_input": np.zeros((1, 4), np.float32)}, r"the images are \[4\]"),
        (with_input(["batch", 3], onnx.TensorProto.INT32), {}, "not of float32"),
    ],
)
def test_a_model_that_does_not_take_the_images_is_refused(model: bytes, more: dict[str, Any], words: str) -> None:
    """With what it takes and what it was given."""
    with pytest.raises(ModelError, match=words):
        OnnxRunner(model, **more)


def test_a_missing_runtime_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pip line is the hint, in the error and in the doctor's warnings."""

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(RuntimeMissing, match=r"pip install 'cpd-edge\[cpu\]'"):
        OnnxRunner(tiny_model())
    report = doctor()
    assert report["aa"] is None
    assert any("pip install 'cpd-edge[cpu]'" in warning for warning in report["warnings"])


def test_the_doctor_finds_the_noise_floor_of_a_known_device() -> None:
    """An engine against itself shows no difference; more noise, a higher floor."""
    floors = []
    for noise in (0.005, 0.1):
        device = SimulatedDevice(Disturbance(noise=noise, drift_per_s=0.01))
        made = SimulatedRunner(2.0, device)
        report = doctor(lambda made=made: made, clock=device.clock, sleep=device.sleep)
        assert report["aa"]["outcome"] in ("equivalent", "inconclusive")
        assert report["aa"]["sound"]
        assert math.isfinite(report["aa"]["detectable_percent"])
        floors.append(report["aa"]["noise_floor_percent"])
    assert floors[0] < floors[1]


def test_the_doctor_names_versions_and_install_lines() -> None:
    """Installed: a version. Not installed: None, and the line to type."""
    device = SimulatedDevice()
    report = doctor(lambda: SimulatedRunner(1.0, device), clock=device.clock, sleep=device.sleep)
    assert report["packages"]["numpy"] == np.__version__
    assert report["runtimes"]["openvino"]["install"] == "pip install 'cpd-edge[openvino]'"
    assert report["runtimes"]["onnxruntime"]["version"]


def test_the_doctor_advises_no_two_extras_that_exclude_each_other() -> None:
    """Without a GPU nothing of one is advised; with one, ONNX Runtime's CPU build goes first."""
    cpu = {"onnxruntime": "1.20", "onnxruntime-gpu": None}
    assert not any("gpu]" in line for line in install_lines(cpu, gpu=False).values())
    assert install_lines(cpu, gpu=True)["tensorrt"].startswith("pip uninstall onnxruntime, then")
    assert install_lines({}, gpu=True)["tensorrt"] == "pip install 'cpd-edge[gpu]'"
    assert "cpu]" not in install_lines({"onnxruntime-gpu": "1.20"}, gpu=True)["onnxruntime"]


@pytest.mark.parametrize("batch", ["batch", "N"])
def test_the_first_load_is_the_first(batch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the batch is called: a name that is only learnt from the model costs another load, which is warm."""
    taken: list[float] = []
    opened = OnnxRunner._open

    def recorded(self: OnnxRunner, *given: Any) -> Any:
        session, load_ms = opened(self, *given)
        taken.append(load_ms)
        return session, load_ms

    monkeypatch.setattr(OnnxRunner, "_open", recorded)
    assert OnnxRunner(with_input([batch, 4])).load_ms["first_load"] == taken[0]
    assert len(taken) == 1 + (batch != "batch")
