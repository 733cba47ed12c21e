"""Times per kernel from counters that only tell averages since the engine was loaded, freed of disturbed runs.

A runtime that counts so gives, after run `r`, the integer average `a_r` of a kernel [µs]: its time so far lies in
`[r·a_r, r·a_r + r)`. The difference of two of these is the kernel's time in between, to about `r` µs; so engines are
loaded anew after a few runs, and what a stretch of runs took is read at its ends.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

QUIET = 1 / 3
"""Share of the runs that count: the fastest. Interference only ever adds time."""

Floats = npt.NDArray[np.float64]


def elapsed_us(averages_us: npt.NDArray[np.int64], runs: npt.NDArray[np.int64]) -> Floats:
    """Time that each kernel took so far, from its averages: the middle of what they allow `[reads, kernels]` [µs].

    A kernel that never takes a whole microsecond reads as 0. Counters cut each run to whole microseconds, which is
    made up for by half of one.

    Args:
        averages_us: as read `[reads, kernels]` [µs].
        runs: how many inferences lie behind each read `[reads]`.
    """
    n = runs[:, None].astype(np.float64)
    middle = n * averages_us + np.maximum(n - 1, 0) / 2 + n / 2
    return np.where(averages_us[-1] > 0, np.where(n > 0, middle, 0.0), 0.0)


def quiet_ms(averages_us: npt.NDArray[np.int64], runs: npt.NDArray[np.int64], walls_ms: Floats) -> tuple[Floats, float]:
    """Mean time of each kernel over the fastest runs `[kernels]`, and of the whole inference over the same [ms].

    The kernels' sum is no larger than the whole, of which they are parts: reading errors are scaled away.

    Args:
        averages_us: before the first run and after each `[1 + runs, kernels]` [µs].
        runs: how many inferences lie behind each read `[1 + runs]`.
        walls_ms: of each run `[runs]` [ms].
    """
    took = np.diff(elapsed_us(averages_us, runs), axis=0)  # [runs, kernels]
    quiet = walls_ms <= np.quantile(walls_ms, QUIET)
    ms = np.maximum(took[quiet].mean(axis=0), 0.0) / 1e3
    whole_ms = float(walls_ms[quiet].mean())
    return np.asarray(ms * min(1.0, whole_ms / max(float(ms.sum()), 1e-9)), np.float64), whole_ms


__all__ = ["QUIET", "elapsed_us", "quiet_ms"]
