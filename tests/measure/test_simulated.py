"""Laws of the simulated device: it does what it was told to, or it proves nothing about the protocol."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from cpd_edge.measure import Disturbance, SimulatedDevice, SimulatedRunner


def latencies_ms(disturbance: Disturbance, n: int = 4000) -> npt.NDArray[np.float64]:
    runner = SimulatedRunner(5.0, SimulatedDevice(disturbance, seed=1))
    times = [runner.device.clock()]
    for _ in range(n):
        runner.run()
        times.append(runner.device.clock())
    return np.diff(times) / 1e6


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
def test_the_true_quantile_is_that_of_the_samples(q: float) -> None:
    """Within the error of 4000 samples."""
    disturbance = Disturbance(noise=0.05)
    truth = SimulatedRunner(5.0, SimulatedDevice(disturbance)).true_ms(q)
    assert np.quantile(latencies_ms(disturbance), q) == pytest.approx(truth, rel=0.01)


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_neighbours_correlate_as_told(phi: float) -> None:
    """The lag-1 autocorrelation is phi."""
    noise = np.log(latencies_ms(Disturbance(noise=0.05, phi=phi)))
    assert np.corrcoef(noise[1:], noise[:-1])[0, 1] == pytest.approx(phi, abs=0.05)


def test_drift_outliers_and_throttling_act_as_told() -> None:
    """A known rate, share and factor."""
    still = {"noise": 0.0}
    assert latencies_ms(Disturbance(**still, drift_per_s=0.1), 201)[-1] == pytest.approx(5 * 1.1, rel=0.01)
    assert np.mean(latencies_ms(Disturbance(**still, outlier_rate=0.1)) > 10) == pytest.approx(0.1, abs=0.02)
    throttled = latencies_ms(Disturbance(**still, throttle_after_s=1.0, throttle_factor=2.0), 300)
    assert throttled[:200].tolist() == [5.0] * 200
    assert throttled[200:].tolist() == [10.0] * 100
