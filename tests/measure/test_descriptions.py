"""Device descriptions are whole, sourced, and refused when they are not."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from cpd_edge.errors import StoreError, UsageError
from cpd_edge.kernels import ARCHITECTURES
from cpd_edge.measure.descriptions import (
    DeviceDescription,
    PowerMode,
    PowerModes,
    Rail,
    Software,
    Source,
    description,
    descriptions,
    matching,
    read_description,
)

ALL = list(descriptions().values())
NAMED = [pytest.param(device, id=device.name) for device in ALL]
FAMILIES = (
    "jetson-nano", "jetson-tx2", "jetson-xavier-nx", "jetson-agx-xavier", "jetson-orin-nano", "jetson-orin-nx",
    "jetson-agx-orin", "jetson-agx-thor", "geforce-", "cpu-x86-64", "raspberry-pi",
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_described(family: str) -> None:
    """Each Jetson from Nano to Thor, desktop GPUs and CPUs have a file."""
    assert [] != [device for device in ALL if device.name.startswith(family)]


@pytest.mark.parametrize("device", NAMED)
def test_every_fact_names_its_source(device: DeviceDescription) -> None:
    """Each field that says something is backed by a document with an address, and none is backed in vain."""
    backed = {fact for source in device.sources for fact in source.facts}
    assert set(device.facts) == backed
    assert all(source.url.startswith("https://") and source.title and source.facts for source in device.sources)


@pytest.mark.parametrize("device", NAMED)
def test_every_gpu_has_kernels(device: DeviceDescription) -> None:
    """Kernels are compiled for each GPU that is described, and a description without a GPU claims none."""
    assert (device.arch in ARCHITECTURES) == (device.kind != "cpu")


@pytest.mark.parametrize("device", NAMED)
def test_a_description_agrees_with_itself(device: DeviceDescription) -> None:
    """Mode numbers are unique in a configuration, totals are rails that exist, and no cap exceeds the GPU's clock."""
    for configuration in device.power_modes:
        numbers = [mode.id for mode in configuration.modes]
        assert numbers == list(range(len(numbers)))
        assert all((mode.gpu_max_mhz or 0) <= (device.gpu_max_mhz or 1e9) * 1.01 for mode in configuration.modes)
    assert {rail.name for rail in device.rails} >= set(device.total_rails or ())
    assert (device.total_rails is None) == (device.total_scope is None)


def test_a_jetson_says_what_its_agent_needs() -> None:
    """Every Jetson has modes, rails, software and memory: what labels and energy are read by."""
    jetsons = [device for device in ALL if device.kind == "jetson"]
    assert [] == [d.name for d in jetsons if not (d.power_modes and d.rails and d.software and d.memory_bytes)]


def test_no_field_can_hold_a_latency() -> None:
    """Facts only: a description has no place for a time, and unknown fields are refused (below)."""
    kinds = (DeviceDescription, PowerMode, PowerModes, Rail, Software, Source)
    names = [field.name for kind in kinds for field in fields(kind)]
    assert [] == [name for name in names if name.endswith(("_ms", "_ns", "_s", "fps")) and name != "memory_gb_per_s"]


def test_an_unknown_name_lists_the_known() -> None:
    """A misspelt device is answered with those there are."""
    assert "NVIDIA Jetson Nano 4GB" == description("jetson-nano").title
    with pytest.raises(UsageError, match=r"'jetson-nona'(.|\n)*jetson-nano"):
        description("jetson-nona")


GIB = 1 << 30


@pytest.mark.parametrize(
    ("model", "memory_gib", "name"),
    [
        ("NVIDIA Jetson Orin Nano Developer Kit", 7.44, "jetson-orin-nano-8gb"),
        ("NVIDIA Jetson Orin Nano Developer Kit", 3.4, "jetson-orin-nano-4gb"),
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", 15.3, "jetson-orin-nx-16gb"),
        ("NVIDIA Jetson AGX Orin Developer Kit", 61.4, "jetson-agx-orin-64gb"),
        ("NVIDIA Jetson AGX Orin Developer Kit", 29.9, "jetson-agx-orin-32gb"),
        ("NVIDIA Jetson AGX Thor Developer Kit", 122.8, "jetson-agx-thor-t5000"),
        ("NVIDIA Jetson Xavier NX Developer Kit", 6.8, "jetson-xavier-nx-8gb"),
        ("NVIDIA Jetson Nano Developer Kit", 3.87, "jetson-nano"),
        ("NVIDIA Jetson Nano 2GB Developer Kit", 1.9, None),
        ("NVIDIA Jetson Xavier NX Developer Kit", 15.3, None),
        ("Raspberry Pi 5 Model B Rev 1.0", 7.8, "raspberry-pi-5"),
        ("Raspberry Pi 3 Model B Plus Rev 1.3", 0.9, None),
        ("Jetson-AGX", 31.1, None),
    ],
)
def test_a_board_finds_its_own_description(model: str, memory_gib: float, name: str | None) -> None:
    """By what its device tree calls it and by its memory; a board that none describes finds none."""
    found = matching(model, int(memory_gib * GIB), "aarch64")
    assert name == (found and found.name)


def test_a_processor_without_a_board_is_the_generic_one() -> None:
    """On x86-64, and nowhere else."""
    found = matching("Intel(R) Xeon(R) Processor", 8 * GIB, "x86_64")
    assert found is not None and "cpu-x86-64" == found.name
    assert matching("some board", 8 * GIB, "riscv64") is None


GOOD: dict[str, Any] = {"name": "a", "title": "A", "kind": "gpu", "sources": []}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"latency_ms": 3}, "unknown fields: latency_ms"),
        ({"kind": "tpu"}, "kind is 'tpu', not one of jetson, gpu, cpu"),
        ({"arch": None}, "arch is null: leave it out"),
        ({"memory_bytes": 1.5}, "memory_bytes is 1.5, not int"),
        ({"memory_bytes": True}, "memory_bytes is True, not int"),
        ({"gpu_max_mhz": "fast"}, "gpu_max_mhz is 'fast', not float"),
        ({"rails": {}}, "rails is dict, not a list"),
        ({"rails": [{"name": "VDD_IN"}]}, r"rails\[0\]\. lacks monitor"),
        ({"power_modes": [{"configuration": "c", "modes": [{"id": "0", "name": "m"}]}]}, r"modes\[0\]\.id is '0'"),
        ({"name": "b"}, "its name is 'b'"),
    ],
)
def test_a_wrong_file_is_refused_by_place(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    """Whatever is unknown, missing or mistyped is named with its place in the file."""
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(StoreError, match=says):
        read_description(path)


@pytest.mark.parametrize(("text", "says"), [("{", "Expecting"), ("[]", "list, not an object"), ("{}", "lacks name")])
def test_what_is_no_description_is_refused(tmp_path: Path, text: str, says: str) -> None:
    """No JSON, no object and an empty object are errors of the file."""
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(StoreError, match=says):
        read_description(tmp_path / "a.json")


def test_numbers_without_a_point_are_numbers(tmp_path: Path) -> None:
    """`102` and `102.0` read the same; a tuple comes for every list."""
    (tmp_path / "a.json").write_text(json.dumps({**GOOD, "memory_gb_per_s": 102, "notes": ["n"]}))
    found = read_description(tmp_path / "a.json")
    assert (102.0, float, ("n",)) == (found.memory_gb_per_s, type(found.memory_gb_per_s), found.notes)


def test_the_readme_s_example_runs() -> None:
    """What `profiles/README.md` shows gives the values that it speaks of."""
    page = (Path(__file__).parents[2] / "profiles/README.md").read_text()
    code = page.partition("```python\n")[2].partition("```")[0]
    found: dict[str, Any] = {}
    exec(code, found)
    before, after = found["orin"].power_modes
    assert [7, 25] == [before.modes[1].watts, after.modes[1].watts]
