"""Laws of the OpenVINO runner: it answers as ONNX Runtime does, and says where its time goes in ONNX words."""

from __future__ import annotations

import gc
import importlib
import os
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cpd_edge.errors import EnvironmentMismatch, ModelError, RuntimeMissing, UsageError
from cpd_edge.measure import OnnxRunner, Protocol, compare, key, require_comparable
from cpd_edge.measure.compiled_runner import ROUND, SETTINGS, OpenVinoRunner
from cpd_edge.measure.doctor import tiny_model
from cpd_edge.measure.fused import Step, held_nodes
from cpd_edge.measure.quiet import elapsed_us, quiet_ms
from cpd_edge.measure.runtimes import ON_CPU, RUNNERS, TITLES, model_runner, require_runtime

pytest.importorskip("openvino")

WIDE = (3, 24, 48, 48)


@pytest.fixture
def runner() -> Iterator[OpenVinoRunner]:
    made = OpenVinoRunner(tiny_model(size=12))
    yield made
    made.close()


def model(nodes: list[onnx.NodeProto], shape: list[int | str], **weights: tuple[int, ...]) -> onnx.ModelProto:
    """A model from `x` to `y`, both of one shape."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    held = [numpy_helper.from_array(np.full(dims, 0.1, np.float32), name) for name, dims in weights.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], held)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("mine", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def test_both_runtimes_answer_alike(tmp_path: Path, runner: OpenVinoRunner) -> None:
    """Same model, same images, same outputs to 1e-5 of the largest, whatever the batch, from bytes or a file."""
    path = tmp_path / "tiny.onnx"
    path.write_bytes(tiny_model(size=12))
    other, from_file = OnnxRunner(path), OpenVinoRunner(path)
    for count in (1, 3, 8):
        feed = np.random.default_rng(count).standard_normal((count, 3, 12, 12)).astype(np.float32)
        expected = other.outputs(feed)
        for made in (runner, from_file):
            found = made.outputs(feed)
            assert found.shape == expected.shape
            assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    from_file.close()


def test_what_is_timed_is_what_answers(runner: OpenVinoRunner) -> None:
    """The engine with the fixed batch gives, for an input of the ring, what the one with the free batch gives."""
    runner.run()
    timed = np.array(runner._requests[1].get_output_tensor(0).data)  # the first inference used input 0
    np.testing.assert_allclose(timed, runner.outputs(runner.ring[1]), rtol=1e-5, atol=1e-6)


def test_inputs_are_those_of_the_other_runtime_and_stay_where_they_are(runner: OpenVinoRunner) -> None:
    """Equal seeds give equal rings; each request reads the tensor that was filled once."""
    other = OnnxRunner(tiny_model(size=12))
    assert all(np.array_equal(a, b) for a, b in zip(runner.ring, other.ring, strict=True))
    for request, feed in zip(runner._requests, runner._feeds, strict=True):
        assert request.get_input_tensor(0).data.ctypes.data == feed.data.ctypes.data
    runner._feeds[2].data[...] = 0
    runner._turn = 2
    runner.run()
    nothing = runner.outputs(np.zeros((1, 3, 12, 12), np.float32))
    np.testing.assert_allclose(runner._requests[2].get_output_tensor(0).data, nothing, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("profile", [False, True])
def test_kernels_are_parts_of_the_whole(profile: bool) -> None:
    """Their sum is most of the wall time and never above it; one figure a round, and again when asked again."""
    made = OpenVinoRunner(tiny_model(WIDE, size=40), profile=profile)
    for repeats, rounds in ((4, 1), (ROUND + 1, 2)):
        times = made.kernel_times(repeats)
        sums = np.sum([kernel.ms for kernel in times.kernels], axis=0)
        assert times.totals_ms.shape == sums.shape == (rounds,)
        assert (sums <= times.totals_ms * (1 + 1e-9)).all() and (sums > 0.5 * times.totals_ms).all()
        assert [kernel.order for kernel in times.kernels] == list(range(len(times.kernels)))
    made.close()


def test_kernels_are_called_after_the_nodes_they_hold(runner: OpenVinoRunner) -> None:
    """A convolution and the ReLU behind it are one kernel of both names; a change of layout has its reader's name."""
    nodes = {node.name for node in onnx.load_from_string(tiny_model(size=12)).graph.node}
    found = runner.kernels(3)
    names = [set(kernel.name.split(",")) for kernel in found]
    assert all(name <= nodes for name in names)
    assert {"conv0", "relu0"} in names and {"conv2", "relu2"} in names
    first = next(kernel for kernel in found if kernel.op == "Reorder")
    assert first.name.startswith("conv0")


def chain() -> onnx.ModelProto:
    """Three products with a norm behind the first and a softmax behind the second."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], "first"),
        helper.make_node("LayerNormalization", ["h", "g", "g"], ["n"], "norm"),
        helper.make_node("MatMul", ["n", "a"], ["k"], "second"),
        helper.make_node("Softmax", ["k"], ["s"], "soft"),
        helper.make_node("MatMul", ["s", "a"], ["y"], "third"),
    ]
    return model(nodes, ["batch", 4, 16], a=(16, 16), g=(16,))


def test_a_rewritten_node_is_found_by_where_it_stands() -> None:
    """A norm of a made-up name lies between two that kept theirs; with nothing there, it is a part of what follows."""
    steps = [
        Step("x", "Input", (), (), works=False),
        Step("first/all", "FullyConnected", ("first/WithoutBiases",), ("x",)),
        Step("MVN_7", "MVN", ("MVN_7",), ("first/all",)),
        Step("second", "FullyConnected", ("second", "soft"), ("MVN_7",)),
        Step("Power_9", "Eltwise", ("Power_9",), ("second",)),
        Step("y", "FullyConnected", ("y",), ("Power_9",)),
        Step("strange", "Memory", (), ()),
    ]
    expected = {"first/all": ("first",), "MVN_7": ("norm",), "second": ("second", "soft"), "y": ("third",)}
    assert held_nodes(steps, chain()) == {**expected, "Power_9": ("third",), "x": (), "strange": ()}


def test_layout_changes_count_for_the_kernel_they_serve() -> None:
    """To a layout of the runtime's own: the reader. Back to the plain one: the writer."""
    steps = [
        Step("to first", "Reorder", (), (), plain=False),
        Step("first", "FullyConnected", ("first", "norm"), ("to first",)),
        Step("to second", "Reorder", (), ("first",), plain=False),
        Step("second", "FullyConnected", ("second",), ("to second",), plain=False),
        Step("back", "Reorder", (), ("second",)),
        Step("soft", "Softmax", ("soft",), ("back",)),
    ]
    held = held_nodes(steps, chain())
    found = {name: held[name][0] for name in ("to first", "to second", "back")}
    assert found == {"to first": "first", "to second": "second", "back": "second"}


def test_every_kernel_of_a_real_chain_is_placed() -> None:
    """Norm and softmax among them, however the runtime rewrites them."""
    made = OpenVinoRunner(chain().SerializeToString())
    placed = {name for kernel in made.kernels(2) for name in kernel.name.split(",")}
    assert placed == {"first", "norm", "second", "soft", "third"}
    made.close()


def test_counters_that_tell_averages_give_times_back() -> None:
    """From integer averages since the load, the quiet runs' means come back to a microsecond; disturbed runs do not."""
    random = np.random.default_rng(0)
    true_us = np.array([0.2, 3.0, 40.0, 800.0, 2500.0])
    took = np.floor(true_us * (1 + 0.002 * random.random((15, 5))) + random.random((15, 5)))
    took[[5, 9, 13]] *= 3  # someone else had the CPU
    took[:, 0] = 0
    counts = np.arange(16)
    averages = np.array([took[:n].sum(axis=0) // max(n, 1) for n in counts], np.int64)
    walls_ms = took.sum(axis=1) / 1e3 + 0.02
    found, whole_ms = quiet_ms(averages[2:], counts[2:], walls_ms[2:])
    assert np.abs(found * 1e3 - true_us)[1:].max() < 5 and found[0] == 0
    assert abs(whole_ms - (true_us.sum() / 1e3 + 0.02)) < 0.02 and found.sum() <= whole_ms
    last = elapsed_us(averages, counts)[-1] - counts[-1] / 2
    assert (np.abs(last - took.sum(axis=0)) <= counts[-1] / 2).all()


def test_threads_are_what_was_asked_for(runner: OpenVinoRunner) -> None:
    """The compiled model says so; more than there are CPUs is refused, with the number that works."""
    assert runner._compiled.get_property("INFERENCE_NUM_THREADS") == 1 == runner.environment["threads"]
    with pytest.raises(UsageError, match=r"--threads \d+"):
        OpenVinoRunner(tiny_model(size=12), threads=(os.cpu_count() or 1) + 1)


def test_the_environment_says_what_really_ran(runner: OpenVinoRunner) -> None:
    """Release, properties as the compiled model has them, shape and inputs."""
    here = runner.environment
    assert (here["runtime"], here["shape"], here["profiled"]) == ("openvino", "1x3x12x12", False)
    assert here["runtime_build"].startswith(here["runtime_version"] + "-")
    assert here["providers"].startswith("CPU,INFERENCE_PRECISION_HINT=f32,")
    assert all(f"{name}=" in here["providers"] for name in SETTINGS)
    assert set(runner.load_ms) == {"first_load", "first_inference"}
    assert all(value > 0 for value in (*runner.load_ms.values(), runner.warm_load_ms()))


def test_numbers_of_two_runtimes_are_not_compared(runner: OpenVinoRunner) -> None:
    """Their keys differ, so a table or a measurement of one never passes for the other's."""
    other = OnnxRunner(tiny_model(size=12))
    assert key(runner.environment)["runtime"] != key(other.environment)["runtime"]
    with pytest.raises(EnvironmentMismatch, match=r"runtime \(openvino against onnxruntime\)"):
        require_comparable(runner.environment, other.environment)
    with pytest.raises(EnvironmentMismatch):
        compare(runner, other, ("a", "b"), Protocol(warmup_s=0.001, block_s=0.001, limit_s=0.01))


def test_two_engines_are_compared_with_their_samples() -> None:
    """Two engines of this runtime may be open at once and are timed in turn."""
    a, b = OpenVinoRunner(tiny_model(size=12)), OpenVinoRunner(tiny_model((3, 8, 8), size=12))
    found = compare(a, b, ("dense", "pruned"), Protocol(warmup_s=0.01, block_s=0.002, limit_s=0.2))
    assert (found.a.samples_ns > 0).all() and (found.b.samples_ns > 0).all()
    a.close()
    b.close()


def test_closing_gives_the_engine_back() -> None:
    """Nothing holds the compiled model any longer, and it does not run."""
    made = OpenVinoRunner(tiny_model(size=12))
    made.outputs(made.ring[0])
    held = [weakref.ref(made._compiled), weakref.ref(made._free), *(weakref.ref(r) for r in made._requests)]
    made.close()
    gc.collect()
    assert [None] * len(held) == [ref() for ref in held]
    with pytest.raises(IndexError):
        made.run()


@pytest.mark.parametrize(
    ("nodes", "shape", "words"),
    [
        ([helper.make_node("Twist", ["x"], ["y"], "twist", domain="mine")], ["batch", 3], r"mine\.Twist"),
        ([helper.make_node("Neg", ["x"], ["y"])], [2, 3], "batch is fixed at 2, 1 was asked for"),
        ([helper.make_node("Neg", ["x"], ["y"])], ["batch", 3, "h", "w"], "give sample_input"),
    ],
)
def test_a_model_that_cannot_run_is_refused(nodes: list[onnx.NodeProto], shape: list[int | str], words: str) -> None:
    """With what is wrong, in one sentence."""
    with pytest.raises(ModelError, match=words):
        OpenVinoRunner(model(nodes, shape).SerializeToString())


def test_a_file_that_is_no_model_is_refused_by_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """And nothing else is printed: no reader of another format looks at it."""
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"junk")
    with pytest.raises(ModelError, match=r"does not take .*broken\.onnx"):
        OpenVinoRunner(path)
    assert capfd.readouterr().err == ""


def test_a_missing_runtime_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pip line is the hint, before any work."""

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(RuntimeMissing, match=r"pip install 'cpd-edge\[openvino\]'"):
        require_runtime("openvino")
    require_runtime("openvino", "another device")
    with pytest.raises(RuntimeMissing, match=r"pip install 'cpd-edge\[openvino\]'"):
        OpenVinoRunner(tiny_model())


def test_runtimes_are_made_by_name() -> None:
    """Each name gives its own runner, and an unknown one is answered with those that are known."""
    assert TITLES.keys() >= RUNNERS.keys() >= set(ON_CPU)
    for name in ON_CPU:
        made = model_runner(name, tiny_model(size=12), threads=1)
        assert made.environment["runtime"] == name
        made.close()
    with pytest.raises(UsageError, match="--runtime onnxruntime or --runtime openvino"):
        model_runner("abacus", b"")
