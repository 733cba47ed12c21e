"""Laws of the statistics: floors, coverage, trends, verdicts, paired ratios."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import pytest
from scipy.signal import lfilter

from cpd_edge.errors import BudgetError
from cpd_edge.measure import outliers, paired_speedup, quantile_interval, sample_floor, trend, verdict
from cpd_edge.measure.stats import block_length
from cpd_edge.types import Interval

TRIALS = 400


def autocorrelated(phi: float, trials: int, n: int, seed: int) -> npt.NDArray[np.float64]:
    """Stationary AR(1) with standard normal margins `[trials, n]`."""
    noise = np.random.default_rng(seed).standard_normal((trials, n))
    noise[:, 1:] *= math.sqrt(1 - phi**2)
    found: npt.NDArray[np.float64] = lfilter([1.0], [1.0, -phi], noise, axis=1)
    return found


@pytest.mark.parametrize(("q", "floor"), [(0.5, 5), (0.9, 29), (0.95, 59), (0.99, 299), (0.999, 2995)])
def test_the_sample_floors_are_the_documented_ones(q: float, floor: int) -> None:
    """The smallest n whose maximum bounds the quantile at 95 %."""
    assert sample_floor(q) == floor


@pytest.mark.parametrize("q", [0.5, 0.9, 0.95, 0.99])
def test_the_upper_bound_is_finite_exactly_from_the_floor_on(q: float) -> None:
    """One sample fewer than the floor, and there is no upper bound."""
    values = np.random.default_rng(0).uniform(1, 2, sample_floor(q))
    assert math.isinf(quantile_interval(values[1:], q).high)
    assert quantile_interval(values, q).high == values.max()


@pytest.mark.parametrize("q", [0.5, 0.9, 0.95])
def test_order_statistics_cover_at_least_the_level_for_every_n(q: float) -> None:
    """Exactly, from the floor on: the number of samples below the quantile is binomial."""
    for n in range(sample_floor(q), sample_floor(q) + 60):
        ranks = np.random.default_rng(n).permutation(n) + 1.0  # the k-th smallest sample is k
        interval = quantile_interval(ranks, q)
        if block_length(ranks, q) > 1:
            continue
        inside = range(int(interval.low), int(interval.high))
        assert sum(math.comb(n, k) * q**k * (1 - q) ** (n - k) for k in inside) >= 0.95 - 1e-9


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(("q", "n"), [(0.5, 1000), (0.9, 1000), (0.99, 3000)])
def test_the_interval_covers_the_true_quantile_as_often_as_it_says(phi: float, q: float, n: int) -> None:
    """95 % of intervals hold the truth, within the error of the trial, whatever the autocorrelation."""
    latencies = np.exp(0.05 * autocorrelated(phi, TRIALS, n, seed=1))
    truth = math.exp(0.05 * NormalDist().inv_cdf(q))
    held = [i.low <= truth <= i.high for i in (quantile_interval(row, q) for row in latencies)]
    assert 0.92 <= np.mean(held) <= 0.98


@pytest.mark.parametrize(("q", "n"), [(0.5, 200), (0.9, 300)])
def test_few_samples_that_hang_together_are_covered_too(q: float, n: int) -> None:
    """Some ten independent ones at φ = 0.9: the interval is wide, or has no upper end, and holds the truth."""
    latencies = np.exp(0.05 * autocorrelated(0.9, TRIALS, n, seed=1))
    truth = math.exp(0.05 * NormalDist().inv_cdf(q))
    assert np.mean([i.low <= truth <= i.high for i in (quantile_interval(row, q) for row in latencies)]) >= 0.92


def test_bounds_of_a_tail_fail_on_both_sides_alike() -> None:
    """The p99 interval of independent samples is not right by being wide on one side."""
    latencies = autocorrelated(0.0, TRIALS, 1000, seed=2)
    truth = NormalDist().inv_cdf(0.99)
    found = [quantile_interval(row + 10, 0.99) for row in latencies]
    assert np.mean([i.high < truth + 10 for i in found]) < 0.05
    assert np.mean([i.low > truth + 10 for i in found]) < 0.05


def test_autocorrelated_samples_get_wider_intervals_than_the_same_samples_shuffled() -> None:
    """Order carries information: neighbours that agree are worth fewer samples."""
    values = np.exp(0.05 * autocorrelated(0.9, 1, 1000, seed=3)[0])
    shuffled = np.random.default_rng(0).permutation(values)
    ordered_interval, shuffled_interval = quantile_interval(values, 0.5), quantile_interval(shuffled, 0.5)
    assert block_length(shuffled) == 1
    assert block_length(values) > 10
    assert ordered_interval.high - ordered_interval.low > 2 * (shuffled_interval.high - shuffled_interval.low)


def test_a_tail_seen_in_one_burst_is_not_supported() -> None:
    """Slow samples that all come together are one event, however many samples there are."""
    values = np.random.default_rng(4).normal(10, 0.01, 600)
    values[200:206] += 5
    assert math.isinf(quantile_interval(values, 0.99).high)


def test_equal_samples_give_equal_intervals() -> None:
    """No hidden state and no unseeded draws."""
    values = autocorrelated(0.5, 1, 300, seed=5)[0] + 10
    assert quantile_interval(values, 0.9) == quantile_interval(values, 0.9)
    assert paired_speedup(values) == paired_speedup(values)


def test_constant_samples_give_a_point() -> None:
    """A clock too coarse to see noise is no error."""
    assert quantile_interval([2.0] * 40, 0.5) == Interval(2.0, 2.0, 2.0, 40)


@pytest.mark.parametrize("values", [[], [[1.0, 2.0]]])
def test_what_is_no_vector_of_samples_is_refused(values: list[object]) -> None:
    """An interval of nothing would be a number without samples."""
    with pytest.raises(ValueError, match="at least one sample"):
        quantile_interval(values, 0.5)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(8, 10, "PASS"), (8, 10.001, "INCONCLUSIVE"), (10, 11, "INCONCLUSIVE"), (10.001, 11, "FAIL")],
)
def test_the_verdict_is_said_by_the_bounds(low: float, high: float, expected: str) -> None:
    """Upper bound inside: PASS. Lower bound outside: FAIL. Else nothing is proven."""
    assert verdict(Interval(9.5, low, high, 100), 10) == expected


def test_below_the_floor_a_budget_above_the_samples_stays_inconclusive() -> None:
    """50 fast samples say nothing good about p99."""
    assert verdict(quantile_interval(np.linspace(1, 2, 50), 0.99), 100.0) == "INCONCLUSIVE"


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_a_limit_that_is_none_is_refused(limit: float) -> None:
    """No verdict without a budget."""
    with pytest.raises(BudgetError, match="must be above 0"):
        verdict(Interval(1, 1, 1, 10), limit)


def test_a_slow_down_is_a_trend_and_noise_is_none() -> None:
    """Warming up by 5 % shows; autocorrelated noise of 1 % and outliers in one third do not."""
    noise = 10 * np.exp(0.01 * autocorrelated(0.9, 1, 900, seed=6)[0])
    spiked = noise.copy()
    spiked[:60:3] *= 4
    assert trend(noise * np.linspace(1, 1.1, 900))
    assert not trend(noise)
    assert not trend(spiked)


def test_a_step_inside_one_third_does_not_hide_itself() -> None:
    """It widens that third's interval by as much as it moves its median."""
    values = np.full(900, 10.0)
    values[720:] = 11.0
    assert trend(values)


def test_slow_noise_is_seldom_called_a_trend() -> None:
    """5 % of noise with φ = 0.9 has no trend in at least 95 of 100 windows."""
    assert np.mean([trend(row) for row in np.exp(0.05 * autocorrelated(0.9, 200, 900, seed=7))]) <= 0.05


def test_outliers_are_the_samples_that_were_disturbed() -> None:
    """Their places are reported."""
    values = np.random.default_rng(8).normal(10, 0.05, 300)
    values[[7, 200]] = 30, 3
    assert outliers(values).tolist() == [7, 200]


@pytest.mark.parametrize("blocks", [5, 10, 40])
def test_the_paired_interval_covers_the_true_ratio(blocks: int) -> None:
    """95 % of intervals hold the truth, for few blocks as for many."""
    draws = math.log(1.5) + np.random.default_rng(9).normal(0, 0.02, (TRIALS, blocks))
    found = [paired_speedup(row) for row in draws]
    assert 0.92 <= np.mean([i.low <= 1.5 <= i.high for i in found]) <= 0.98


def test_a_disturbed_block_does_not_move_the_ratio() -> None:
    """One block in ten that something else ran in is trimmed from the estimate."""
    ratios = np.full(10, math.log(2.0))
    ratios[3] = math.log(8.0)
    assert paired_speedup(ratios).estimate == pytest.approx(2.0)


def test_one_block_proves_no_ratio() -> None:
    """There is no spread to see."""
    assert paired_speedup([0.0]) == Interval(1.0, 0.0, math.inf, 1)
