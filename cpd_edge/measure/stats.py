"""Statistics of latency samples: quantile intervals, floors, trends, paired ratios, verdicts.

All functions are pure; the bootstraps are seeded, so equal samples give equal intervals.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from cpd_edge.errors import BudgetError
from cpd_edge.types import Interval, Verdict

Samples = npt.ArrayLike
_Floats = npt.NDArray[np.float64]

_DRAWS = 1999
_BLOCK_STRETCH = 1.5
"""The block length that minimises the error of a variance is too short for an interval's coverage."""

_CONTRADICTED = 2.0
"""How many times the variance that the ranks explain the samples beyond a quantile must show to be believed instead.

They are few, so their own variance is known badly; sampling that stops at a narrow interval would pick its errors.
"""

_TREND_WIDTHS = 2.5
"""Half-widths between two medians that noise seldom reaches: 1.9 at 99 %, and more as the quieter third is taken."""


def sample_floor(q: float, level: float = 0.95) -> int:
    """Smallest n whose largest sample bounds quantile `q` from above at `level`, for any distribution.

    The largest of n independent samples lies below the quantile with probability q^n.
    """
    return math.ceil(math.log(1 - level) / math.log(q))


def quantile_interval(values_ms: Samples, q: float, level: float = 0.95) -> Interval:
    """Two-sided interval of a quantile: order statistics, or moving blocks where samples are autocorrelated.

    `high` is `inf` below the sample floor; for autocorrelated samples the floor is held against
    the effective number of samples. `low` is 0 where n supports no lower bound: no latency is below it.

    Args:
        values_ms: latencies in the order they were taken `[n]`.
        q: quantile in (0, 1).
        level: coverage.

    Raises:
        ValueError: no samples, or a quantile or level outside (0, 1).
    """
    values = np.asarray(values_ms, np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"latencies must be a vector of at least one sample, got shape {values.shape}")
    if not (0 < q < 1 and 0 < level < 1):
        raise ValueError(f"quantile {q} and level {level} must lie between 0 and 1")
    ordered = np.sort(values)
    estimate = float(np.quantile(ordered, q))
    block = block_length(values, q)
    ends = _order_ends(values.size, q, level) if block == 1 else _block_ends(values, q, level, block)
    low = ordered[ends[0]] if ends[0] is not None else 0.0
    high = ordered[ends[1]] if ends[1] is not None else math.inf
    return Interval(estimate, min(float(low), estimate), max(float(high), estimate), values.size)


def half_width(interval: Interval) -> float:
    """Half of the interval's width relative to its estimate; `inf` where the upper bound is."""
    return (interval.high - interval.low) / 2 / interval.estimate


def block_length(values_ms: Samples, q: float = 0.5) -> int:
    """Samples that a bootstrap must move together; 1 where the samples look independent.

    The longer of what the ranks ask for (robust to outliers) and of what the exceedances of the
    quantile ask for (bursts that only the tail sees).
    """
    values = np.asarray(values_ms, np.float64)
    if values.size < 8:
        return 1
    ranks = _ranks(values)
    exceeds = (values > np.quantile(values, q)).astype(np.float64)
    return max(_series_block_length(ranks), _series_block_length(exceeds))


def trend(values_ms: Samples, tolerance: float = 0.02) -> bool:
    """Whether the first and the last third differ by more than `tolerance` and by more than noise explains.

    Medians ignore outliers. The noise is the half-width of the quieter third's interval, which knows
    autocorrelation: slow noise alone is no trend, and a step inside one third does not hide itself.
    """
    values = np.asarray(values_ms, np.float64)
    third = values.size // 3
    if third < sample_floor(0.5):
        return False
    first, last = quantile_interval(values[:third], 0.5), quantile_interval(values[-third:], 0.5)
    noise = min(first.high - first.low, last.high - last.low) / 2
    shift = abs(last.estimate - first.estimate)
    return bool(shift > max(_TREND_WIDTHS * noise, tolerance * np.median(values)))


def outliers(values_ms: Samples, fence: float = 3.0) -> npt.NDArray[np.int64]:
    """Indices of samples beyond `fence` interquartile ranges outside the quartiles: to report, not to drop."""
    values = np.asarray(values_ms, np.float64)
    if not values.size:
        return np.empty(0, np.int64)
    lower, upper = np.quantile(values, (0.25, 0.75))
    reach = fence * (upper - lower)
    return np.flatnonzero((values < lower - reach) | (values > upper + reach)).astype(np.int64)


def verdict(interval: Interval, limit_ms: float) -> Verdict:
    """PASS where the upper bound is inside the limit, FAIL where the lower bound is outside, else INCONCLUSIVE.

    Raises:
        BudgetError: a limit that is not a positive number.
    """
    if not limit_ms > 0:
        raise BudgetError(f"limit of {limit_ms} ms: it must be above 0", hint="for example --budget-ms 12")
    if interval.high <= limit_ms:
        return "PASS"
    return "FAIL" if interval.low > limit_ms else "INCONCLUSIVE"


def paired_speedup(log_ratios: Samples, level: float = 0.95, seed: int = 0) -> Interval:
    """Speed-up from one log-ratio per block: trimmed mean, bootstrap over blocks, exponentiated.

    The trimmed mean (a fifth off each end) holds against blocks that something else disturbed. The
    percentiles are expanded for few blocks (Hesterberg 2015, the t and n/(n-1) factors).

    Args:
        log_ratios: log of reference latency over candidate latency, by block `[blocks]`.
        level: coverage.
        seed: of the bootstrap.

    Returns:
        The speed-up's interval; `n` is the number of blocks. With one block: from 0 to `inf`.
    """
    values = np.asarray(log_ratios, np.float64)
    estimate = math.exp(float(_trimmed_mean(values[None])[0]))
    if values.size < 2:
        return Interval(estimate, 0.0, math.inf, values.size)
    picks = np.random.default_rng(seed).integers(0, values.size, (_DRAWS, values.size))
    tail = _expanded_tail((1 - level) / 2, values.size)
    low, high = np.exp(np.quantile(_trimmed_mean(values[picks]), (tail, 1 - tail)))
    return Interval(estimate, min(float(low), estimate), max(float(high), estimate), values.size)


def _trimmed_mean(rows: _Floats) -> _Floats:
    """Mean of each row without a fifth of it at either end `[rows]`."""
    cut = rows.shape[1] // 5
    kept: _Floats = np.sort(rows, axis=1)[:, cut : rows.shape[1] - cut].mean(axis=1)
    return kept


def _binomial_cdf(n: int, q: float) -> _Floats:
    """P(Binomial(n, q) <= k) for k in 0..n `[n + 1]`."""
    k = np.arange(n + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    log_choose = log_factorial[n] - log_factorial - log_factorial[::-1]
    cdf: _Floats = np.cumsum(np.exp(log_choose + k * math.log(q) + (n - k) * math.log1p(-q)))
    return cdf


def _order_ends(n: int, q: float, level: float) -> tuple[int | None, int | None]:
    """Indices of the two order statistics that enclose the quantile; None where n supports no such end.

    The upper end misses with P(Binomial >= u), the lower with P(Binomial <= l - 1). Each gets half of
    1 - level; where half is too little for a finite upper end but the whole is enough, it takes what
    it needs, so that the upper end is finite from the sample floor on.
    """
    cdf = _binomial_cdf(n, q)
    share = (1 - level) / 2
    if n >= sample_floor(q, level):
        share_high = max(share, q**n)
        misses = 1 - cdf[:n]  # [n], P(Binomial >= u) for u in 1..n
        misses[-1] = q**n
        upper = int(np.argmax(misses <= share_high))
        share = min(share, 1 - level - share_high)
    else:
        upper = None
    lower = int(np.searchsorted(cdf, share, side="right"))
    return (lower - 1 if lower else None), upper


def _block_ends(values: _Floats, q: float, level: float, block: int) -> tuple[int | None, int | None]:
    """As `_order_ends`, for autocorrelated samples: the ends for as many independent samples as these are worth.

    What they are worth is the binomial's variance over that of the number of samples below the quantile, as the order
    of all ranks tells it; or as the circular moving-block bootstrap does, where that is much more: a tail may come in
    bursts of which the ranks know nothing. Both have closed forms, so nothing is drawn, and unlike the bootstrap's
    percentiles the binomial's ends have the right skew in the tail. The level is expanded for few blocks. O(n log n).
    """
    n = values.size
    below = np.cumsum(np.concatenate([[False], np.resize(values <= np.quantile(values, q), n + block - 1)]))
    variance = float(np.var(below[block:] - below[:-block])) / block / (1 - block / n)
    seen, expected = variance / (q * (1 - q)), _copula_inflation(_ranks(values), q)
    worth = max(1, int(n / max(1.0, seen if seen > _CONTRADICTED * expected else expected)))
    lower, upper = _order_ends(worth, q, 1 - 2 * _expanded_tail((1 - level) / 2, math.ceil(n / block)))
    scale = n / (worth + 1)
    return (
        None if lower is None else int((lower + 1) * scale),
        None if upper is None else min(n - 1, math.ceil((upper + 1) * scale)),
    )


def _expanded_tail(tail: float, n: int) -> float:
    """Tail of the normal that gives a percentile bootstrap over n pieces the reach of Student's t.

    Cornish-Fisher expansion of the t quantile (Abramowitz & Stegun 26.7.5).
    """
    freedom = max(n - 1, 2)
    z = NormalDist().inv_cdf(1 - tail)
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return NormalDist().cdf(-t * math.sqrt((freedom + 1) / freedom))


def _ranks(values: _Floats) -> _Floats:
    """Rank of each value from 0; equal values share the mean of theirs, so that a coarse clock makes no trend `[n]`."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    shared: _Floats = (np.cumsum(counts) - (counts + 1) / 2)[place.reshape(-1)]
    return shared


def _copula_inflation(ranks: _Floats, q: float) -> float:
    """How many samples with the order of these count as one independent sample for the share below quantile `q`.

    All ranks tell how neighbours hang together, where the few samples beyond a tail quantile hardly do. The correlation
    of exceedances follows from that of ranks for a Gaussian copula: r = 2 sin(pi r_ranks / 6), and the probability that
    both neighbours lie below is its integral (Plackett 1954).
    """
    lags, window = _window(ranks)
    if not lags.size:
        return 1.0
    angle = np.arcsin(np.clip(2 * np.sin(math.pi / 6 * window), -1, 1))[:, None]
    nodes, weights = np.polynomial.legendre.leggauss(24)
    theta = angle * (nodes + 1) / 2
    z2 = NormalDist().inv_cdf(q) ** 2
    both = (np.exp(-z2 / (1 + np.sin(theta))) * weights).sum(axis=1) * angle[:, 0] / (4 * math.pi)
    return float(1 + 2 * both.sum() / (q * (1 - q)))


def _window(series: _Floats) -> tuple[npt.NDArray[np.int64], _Floats]:
    """Lags at which a series is autocorrelated, and the autocorrelation there, tapered by a flat top; often none.

    The last lag that counts is where the correlogram falls silent (Politis & White 2004).
    """
    n = series.size
    centred = series - series.mean()
    power = np.abs(np.fft.rfft(centred, 2 * n)) ** 2
    covariance = np.fft.irfft(power)[:n] / n
    if covariance[0] <= 0:
        return np.empty(0, np.int64), np.empty(0)
    correlation = covariance / covariance[0]
    run = max(5, math.ceil(math.sqrt(math.log10(n))))
    longest = min(n - 1, math.ceil(math.sqrt(n)) + run)
    large = np.abs(correlation[1 : longest + 1]) >= 2 * math.sqrt(math.log10(n) / n)
    quiet = [lag for lag in range(longest - run + 1) if not large[lag : lag + run].any()]
    reach = quiet[0] if quiet else int(np.flatnonzero(large)[-1]) + 1
    lags = np.arange(1, min(2 * reach, n - 1) + 1 if reach else 1)
    return lags, np.clip(2 * (1 - lags / (2 * max(reach, 1))), 0, 1) * correlation[lags]


def _series_block_length(series: _Floats) -> int:
    """Block length for the bootstrap of a mean; 1 where no autocorrelation shows.

    Politis & White 2004, corrected by Patton, Politis & White 2009 (circular blocks, flat-top window).
    """
    n = series.size
    lags, window = _window(series)
    total = 1 + 2 * window.sum()
    if not lags.size or total <= 0:
        return 1
    slope = 2 * (lags * window).sum()
    best = float(_BLOCK_STRETCH * (1.5 * (slope / total) ** 2 * n) ** (1 / 3))
    return max(2, min(math.ceil(best), math.ceil(3 * math.sqrt(n)), n // 3))
