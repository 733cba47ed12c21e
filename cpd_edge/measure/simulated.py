"""A device that is arithmetic: known latency, drift, noise, outliers and throttling on a clock of its own.

Nothing waits, so the measuring code can be tested against the truth, instantly and repeatably.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from cpd_edge.measure.site import Here, Site

NAME = "simulated (arithmetic, nothing was measured)"
"""What the environment calls the device, so that no number made on it looks measured."""


@dataclass(frozen=True)
class Disturbance:
    """What a simulated device does to every latency.

    Attributes:
        noise: standard deviation of the log of latency.
        phi: autocorrelation of that noise from one inference to the next (AR(1)).
        drift_per_s: relative slow-down per second of device time.
        outlier_rate: share of inferences that an interrupt hits.
        outlier_factor: how many times slower those are.
        throttle_after_s: device time at which the clock drops, or None.
        throttle_factor: how many times slower it is from then on.
    """

    noise: float = 0.01
    phi: float = 0.0
    drift_per_s: float = 0.0
    outlier_rate: float = 0.0
    outlier_factor: float = 3.0
    throttle_after_s: float | None = None
    throttle_factor: float = 1.3


class SimulatedDevice:
    """The clock and the state of the noise, shared by all runners on this device.

    Attributes:
        site: times engines on this clock; nothing of the machine below enters.
    """

    def __init__(self, disturbance: Disturbance | None = None, seed: int = 0) -> None:
        self.disturbance = disturbance or Disturbance()
        self._random = np.random.default_rng(seed)
        self._level = float(self._random.standard_normal())
        self._now_ns = 0
        self.site: Site = Here(self.clock, self.sleep, moment=dict, switches=lambda: 0)

    def clock(self) -> int:
        """Device time [ns]."""
        return self._now_ns

    def sleep(self, seconds: float) -> None:
        """Lets device time pass."""
        self._now_ns += max(0, round(seconds * 1e9))

    def work(self, latency_ms: float) -> None:
        """Lets the time pass that work of `latency_ms` takes now, under the device's disturbance."""
        kind, now_s = self.disturbance, self._now_ns / 1e9
        factor = math.exp(kind.noise * self._level) * (1 + kind.drift_per_s * now_s)
        if kind.throttle_after_s is not None and now_s >= kind.throttle_after_s:
            factor *= kind.throttle_factor
        if kind.outlier_rate and self._random.random() < kind.outlier_rate:
            factor *= kind.outlier_factor
        innovation = math.sqrt(1 - kind.phi**2) * float(self._random.standard_normal())
        self._level = kind.phi * self._level + innovation
        self._now_ns += max(1, round(latency_ms * factor * 1e6))


class SimulatedRunner:
    """An engine of known latency on a simulated device, timed on that device's clock."""

    def __init__(self, latency_ms: float, device: SimulatedDevice | None = None) -> None:
        self.latency_ms = latency_ms
        self.device = device or SimulatedDevice()
        self.site = self.device.site

    @property
    def environment(self) -> Mapping[str, Any]:
        """The environment; the same for all runners on all simulated devices."""
        return {"device": NAME, "runtime": "simulated", "threads": 1, "batch": 1, "precision": "fp32"}

    def run(self) -> None:
        """One inference."""
        self.device.work(self.latency_ms)

    def close(self) -> None:
        """Nothing to give back."""

    def true_ms(self, q: float) -> float:
        """The true quantile of latency at device time 0, outliers aside [ms]."""
        return self.latency_ms * math.exp(self.device.disturbance.noise * NormalDist().inv_cdf(q))
