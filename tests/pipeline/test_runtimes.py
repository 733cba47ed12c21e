"""Laws of the second runtime in the pipeline: the same verbs, tables of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli.shell import Shell

from cpd_edge.intake.models import RandomWeightsWarning, load_model
from cpd_edge.measure.runners import Kernel
from cpd_edge.pipeline.request import Request
from cpd_edge.pipeline.subject import Subject
from cpd_edge.profile.attribution import Attribution
from cpd_edge.profile.regions import find_regions
from cpd_edge.profile.sample import profile
from cpd_edge.profile.table import LatencyTable, table_folder
from cpd_edge.types import Budget

pytest.importorskip("openvino")

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def subject() -> Subject:
    with pytest.warns(RandomWeightsWarning):
        model = load_model("zoo:resnet8", None, None, in_channels=1)
    return Subject.of(model, SHAPE, runtime="openvino")


@pytest.fixture(scope="module")
def measured(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> tuple[LatencyTable, Path]:
    """A table of a few samples, and the folder it lies in."""
    root: Path = tmp_path_factory.mktemp("tables")
    folder = table_folder(root, subject.key())
    table = profile(
        subject.build, subject.regions, subject.widths, subject.runner, subject.key(),
        model=subject.dense_onnx, samples=6, holdout=2, folder=folder, repeats=6,
    )  # fmt: skip
    return table, root


def test_every_kernel_finds_its_region(subject: Subject, measured: tuple[LatencyTable, Path]) -> None:
    """Fused kernels are the regions' at every width: convolutions take time, and nothing is left without a home.

    A convolution of a branch that is left out is none.
    """
    table, _ = measured
    convolutions = [r for r in subject.regions if r.op == "Conv"]
    assert len(convolutions) == 9
    for sample in table.samples:
        assert sample.rest_ms == 0
        assert sum(sample.ms.values()) > 0
        for region in convolutions:
            stays = all(sample.widths[branch] for branch in region.within)
            assert sample.kernels[region.name] >= 1 if stays else sample.ms[region.name] == 0


def test_a_table_belongs_to_one_runtime(subject: Subject, measured: tuple[LatencyTable, Path]) -> None:
    """The key and the folder name it, so the other runtime's profile measures anew."""
    table, root = measured
    assert table.key["runtime"] == "openvino" and "INFERENCE_PRECISION_HINT=f32" in table.key["providers"]
    other = replace(subject, runtime="onnxruntime")
    assert other.key() != table.key and not table_folder(root, other.key()).exists()
    assert table_folder(root, subject.key()).exists()


def test_names_joined_by_commas_lead_to_the_first_that_is_known(subject: Subject) -> None:
    """What heads a fused kernel comes first; a name that itself holds a comma stays whole."""
    regions = find_regions(subject.dense_onnx, {})
    attribution = Attribution.of(regions)
    first, second = regions[0].name, regions[1].name
    assert attribution.region(f"{second},{first}") == second
    assert attribution.region(f"Multiply_12,{first}/WithoutBiases") == first
    assert attribution.region("Multiply_12,Multiply_13") is None
    assert Attribution({"a,b": "whole", "a": "part"}).region("a,b") == "whole"
    times = attribution.times([Kernel(f"{first},{second}", "Subgraph", 0, np.ones(3))])
    assert (times.ms[first], times.ms[second], times.unattributed_ms) == (1.0, 0.0, 0.0)


def test_a_request_remembers_its_runtime() -> None:
    """It goes into the record, and a run is not resumed on another one."""
    asked = Request("zoo:resnet8", "digits", Budget(speedup=2), runtime="openvino")
    assert Request.from_json(asked.to_json()) == asked and asked.to_json()["runtime"] == "openvino"


def test_the_command_line_takes_the_runtime(shell: Shell, subject: Subject) -> None:
    """`--runtime openvino` names itself in what comes back; an unknown name is answered with those that work."""
    (shell.folder / "small.onnx").write_bytes(subject.build(subject.widths))
    words = ("bench", "small.onnx", "--limit-s", "0.3", "--target", "0.5", "--json")
    assert shell(*words, "--runtime", "openvino").json["environment"]["runtime"] == "openvino"
    refused = shell("profile", "zoo:resnet8", "--runtime", "abacus")
    assert refused.code == 2 and "--runtime openvino" in refused.err
