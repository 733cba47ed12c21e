"""How far off a fit may be at widths that were not measured, as far as the samples leave that open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cpd_edge.profile.fit import Family, Samples
from cpd_edge.profile.forms import Columns, Design, Fitted, Floats, Model, parts_of

LOOSE = 1e-3
"""Share of its own weight by which a coefficient is taken as known."""


def least_certain(
    regions: Sequence[Fitted],
    samples: Samples,
    models: Mapping[str, Model],
    networks: Columns,
    count: int,
    measured: int = 0,
) -> list[int]:
    """Networks whose latency is least certain, each chosen as if those before it were measured.

    Args:
        regions: what was fitted.
        samples: what it was fitted to.
        models: the fit, by region.
        networks: widths by group `[networks]`.
        count: how many.
        measured: so many of the first networks will be measured anyway, and are not chosen.

    Returns:
        Indices into `networks`.
    """
    doubts = [_Doubt(region, samples, models, networks) for region in regions if samples.ms[region.name].any()]
    total = np.sum([doubt.ms for doubt in doubts], axis=0)
    chosen = list(range(measured))
    for at in chosen:
        for doubt in doubts:
            doubt.see(at)
    for _ in range(min(count, len(total) - measured)):
        worth = np.sum([doubt.variance for doubt in doubts], axis=0) / np.maximum(total, 1e-12) ** 2
        worth[chosen] = -1.0
        chosen.append(int(np.argmax(worth)))
        for doubt in doubts:
            doubt.see(chosen[-1])
    return chosen[measured:]


class _Doubt:
    """One region's part of it.

    Attributes:
        ms: expected latency at each network `[networks]` [ms].
    """

    def __init__(self, region: Fitted, samples: Samples, models: Mapping[str, Model], networks: Columns) -> None:
        parts = parts_of(region)
        form = models[parts[0].name].form
        coefficients = np.sum([models[part.name].coefficients for part in parts], axis=0)
        family = Family([region], samples)
        sums = family.sums(form)
        gram = sums.gram[0, -1]
        least = 1e-12 * max(float(np.diag(gram).max()), 1e-300)
        off = sums.rows[0] @ coefficients - family.ms[0] * family.weight[0]
        found = Design(region, networks).features(form)
        self._rows = np.broadcast_to(found, (len(next(iter(networks.values()))), found.shape[-1]))
        self._inverse = np.linalg.inv(gram + np.diag(LOOSE * np.diag(gram) + least))
        self._spread = float(np.mean(off**2))
        self.ms: Floats = np.asarray(self._rows @ coefficients, np.float64)
        self._weight = 1.0 / (self.ms + float(family.floor_ms[0]))

    @property
    def variance(self) -> Floats:
        """Of the expected latency at each network `[networks]` [ms²]."""
        return np.asarray(
            self._spread * np.einsum("nk,kl,nl->n", self._rows, self._inverse, self._rows, optimize=True), np.float64
        )

    def see(self, at: int) -> None:
        """Counts a network as measured."""
        row = self._rows[at] * self._weight[at]
        along = self._inverse @ row
        self._inverse = self._inverse - np.outer(along, along) / (1 + float(row @ along))
