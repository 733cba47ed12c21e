"""Laws of regions that a runtime runs as one kernel: measured as one, fitted as one, shared out by the fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from cpd_edge.layout import Leaf
from cpd_edge.profile.attribution import Attribution
from cpd_edge.profile.table import LatencyTable, Sample
from cpd_edge.types import Region


@dataclass(frozen=True)
class Kernel:
    name: str
    op: str
    order: int
    ms: npt.NDArray[np.float64]
    nodes: tuple[str, ...] = ()


def region(name: str, c_in: str, c_out: str, units: int = 64) -> Region:
    reads, writes = Leaf(c_in, units), Leaf(c_out, units)
    return Region(name, "Conv", (name, f"{name}/relu"), reads, writes, (writes, reads), units * units * 49)


REGIONS = tuple(region(name, *ends) for name, ends in {"one": "ab", "two": "bc", "three": "cd", "four": "de"}.items())
GROUPS = dict.fromkeys("abcde", 64)


def kernels(*given: tuple[str, str, float, tuple[str, ...]]) -> list[Kernel]:
    return [Kernel(name, op, i, np.full(3, ms), nodes) for i, (name, op, ms, nodes) in enumerate(given)]


def test_a_kernel_of_several_regions_has_one_time() -> None:
    """That of the first; sets that share a region are one; a change of format and a stranger are kept apart."""
    seen = kernels(
        ("Reformatting CopyNode for Input Tensor 0", "Reformat", 0.5, ()),
        ("myelin", "Myelin", 2.0, ("two/relu", "three")),
        ("tail", "gemm", 1.0, ("three/relu", "four")),
        ("conv", "conv", 4.0, ("one", "one/relu")),
        ("signal", "Signal", 0.25, ()),
    )
    plain = Attribution.of(REGIONS)
    assert plain.spanned(seen) == (("two", "three", "four"),)
    times = plain.fused(plain.spanned(seen)).times(seen)
    assert (times.ms, times.unattributed_ms, times.reformats_ms) == ({"one": 4.0, "two": 3.0}, 0.25, 0.5)


def test_a_foreign_node_holds_what_lies_between_its_ends() -> None:
    """And is in no other kernel: some versions tell the ends alone."""
    whole = kernels(("{ForeignNode[one...four]}", "Myelin", 1.0, ("one", "four")))
    assert Attribution.of(REGIONS).spanned(whole) == (("one", "two", "three", "four"),)
    most = [*whole, *kernels(("three", "conv", 1.0, ("three",)))]
    assert Attribution.of(REGIONS).spanned(most) == (("one", "two", "four"),)


def test_what_fused_regions_cost_adds_up_to_what_was_measured() -> None:
    """The table's sum is exact where the truth is work and traffic; each part's share depends on its own widths."""
    rng = np.random.default_rng(0)

    def true_ms(widths: dict[str, int], pairs: Sequence[str]) -> float:
        return 0.2 + sum(2e-4 * widths[p[0]] * widths[p[1]] + 1e-3 * (widths[p[0]] + widths[p[1]]) for p in pairs)

    samples = []
    for _ in range(16):
        widths = {g: int(rng.integers(1, 65)) for g in GROUPS}
        ms = {"one": true_ms(widths, ["ab"]), "two": true_ms(widths, ["bc", "cd", "de"])}
        samples.append(Sample(widths, ms, {"one": 1, "two": 1}, 0.0, sum(ms.values()), 1.0, False))
    table = LatencyTable.fitted({}, GROUPS, REGIONS, samples, fused=[("two", "three", "four")])
    for widths in (GROUPS, dict.fromkeys(GROUPS, 16)):
        assert table.predict(widths) == pytest.approx(
            true_ms(widths, ["ab"]) + true_ms(widths, ["bc", "cd", "de"]), rel=0.05
        )
    assert table.region_ms("three", {"c": 8, "d": 64}) < table.region_ms("three", {"c": 64, "d": 64})
    assert table.region_ms("three", {"b": 8}) == table.region_ms("three", {"b": 64})
