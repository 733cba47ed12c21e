"""Laws of INT8 in the pipeline: both engines are quantised, held to torch, judged as deployed; tables are its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli.shell import Done, Shell
from cli.worlds import PRUNE, QUICK

from cpd_edge.deploy.quantize import is_quantised
from cpd_edge.errors import EnvironmentMismatch
from cpd_edge.intake.models import RandomWeightsWarning, load_model
from cpd_edge.intake.tasks import load_task
from cpd_edge.pipeline import rig
from cpd_edge.pipeline.precision import calibration_images, require_computed
from cpd_edge.pipeline.subject import Subject
from cpd_edge.profile.sample import profile
from cpd_edge.profile.table import table_folder
from cpd_edge.store import Run

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def subject() -> Subject:
    with pytest.warns(RandomWeightsWarning):
        model = load_model("zoo:resnet8", None, None, in_channels=1)
    return Subject.of(model, SHAPE, precision="int8")


@pytest.fixture(scope="module")
def pruned(shell: Shell) -> tuple[Run, Done]:
    """A run in INT8, and what its command printed."""
    with pytest.MonkeyPatch.context() as patch:  # no width of an interval is asserted here
        for name in ("QUICK", "FULL"):
            patch.setattr(rig, name, replace(getattr(rig, name), limit_s=2.0))
        done = shell(*PRUNE, "--speedup", "1.02", "--precision", "int8", *QUICK, "--out", "int8", "--json")
    assert done.code in (0, 1, 3), done.err
    return Run(shell.folder / "int8"), done


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_every_kernel_of_a_quantised_network_finds_its_region(runtime: str, subject: Subject) -> None:
    """What converts to integers and back counts for the region it serves, at every width, in both runtimes."""
    pytest.importorskip(runtime)
    here = replace(subject, runtime=runtime)
    table = profile(
        here.build, here.regions, here.widths, here.runner, here.key(),
        model=here.dense_onnx, samples=4, holdout=1, repeats=4,
    )  # fmt: skip
    assert "int8" == table.key["precision"]
    convolutions = [r.name for r in here.regions if r.op == "Conv"]
    for sample in table.samples:
        assert sample.rest_ms == 0
        assert all(sample.kernels[name] >= 1 for name in convolutions)


def test_a_table_belongs_to_one_precision(subject: Subject, tmp_path: Path) -> None:
    """The key and the folder name it; the network is the same, so its signature is."""
    plain = replace(subject, precision="fp32", quantiser=None)
    folders = [table_folder(tmp_path, s.key()) for s in (subject, plain)]
    assert folders[0] != folders[1]
    assert ("-int8-" in str(folders[0]), "-fp32-" in str(folders[1])) == (True, True)
    assert subject.key()["signature"] == plain.key()["signature"]


def test_a_cut_network_is_quantised_without_being_calibrated_again(subject: Subject) -> None:
    """Its values have the dense network's ranges, and those that it alone has do not matter to its latency."""
    half = {name: max(1, n // 2) for name, n in subject.widths.items()}
    assert is_quantised(onnx.load_from_string(subject.build(half)))


def test_both_engines_are_quantised_and_judged_as_deployed(pruned: tuple[Run, Done]) -> None:
    """The record names the calibration, the precision that the kernels tell, and the gain over dense fp32."""
    run, record = pruned[0], pruned[1].json
    for name in ("dense", "pruned"):
        assert is_quantised(onnx.load(run / f"{name}.onnx"))
        assert not is_quantised(onnx.load(run / f"{name}-fp32.onnx"))
        assert "int8" == run.load_measurement(name).environment["precision"]
    assert record["quantisation"]["images"] == 64  # all that there are
    assert record["parity"]["tolerance"] == 0.25
    before = record["fp32"]
    assert before["speedup"]["low"] <= before["speedup"]["estimate"] <= before["speedup"]["high"]
    assert before["latency_ms"]["estimate"] > 0 and 0 <= before["metric"] <= 1
    assert {"dense-fp32.onnx", "pruned-fp32.onnx"} <= set(record["hashes"])


def test_the_report_names_the_precision(pruned: tuple[Run, Done]) -> None:
    """Of the kernels, with the calibration and the fp32 engine beside it."""
    for name in ("report.html", "report.md"):
        text = (pruned[0] / name).read_text()
        assert "int8" in text and "calibration images" in text and "dense, fp32" in text


def test_bytes_of_integers_are_not_taken_for_those_of_floats(pruned: tuple[Run, Done], shell: Shell) -> None:
    """`solve` refuses the limits that `prune` refuses, whose bytes are counted for fp32 only."""
    done = shell("solve", "int8", "--max-size-mb", "1")
    assert done.code == 2 and "bytes are counted for fp32 only" in done.err and "--max-params" in done.err


def test_a_precision_that_a_runtime_lacks_is_refused_at_the_door(shell: Shell) -> None:
    """Before any work."""
    done = shell(*PRUNE, "--speedup", "2", "--precision", "fp16", "--out", "half")
    assert (2, False) == (done.code, (shell.folder / "half").exists())
    assert "ONNX Runtime does not compute in fp16 here: it casts to fp32 and back" in done.err
    assert "--precision fp32 or int8" in done.err


def test_calibration_images_are_drawn_by_the_seed() -> None:
    """The same for the same seed, as many as were asked for, from more than the first class."""
    task = load_task("digits")
    first = calibration_images(task, 0, 64)
    assert (64, *task.input_shape) == first.shape
    np.testing.assert_array_equal(first, calibration_images(task, 0, 64))
    assert not np.array_equal(first, calibration_images(task, 1, 64))


def test_an_engine_of_another_precision_than_asked_for_is_refused() -> None:
    """With what its kernels compute in."""
    seen = {"runtime": "openvino", "precision": "fp32", "layers": "fp32 9"}
    require_computed(seen, "fp32")
    with pytest.raises(EnvironmentMismatch, match="fp16 was asked for, openvino computes in fp32 9"):
        require_computed(seen, "fp16")
