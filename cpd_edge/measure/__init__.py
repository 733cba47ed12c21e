"""measure: an engine and a device in, raw samples with their environment out, and what they prove."""

from cpd_edge.measure.doctor import doctor
from cpd_edge.measure.environment import capture, key, pin, require_comparable
from cpd_edge.measure.protocol import Protocol, Runner, compare, measure
from cpd_edge.measure.runners import Kernel, KernelTimes, OnnxRunner
from cpd_edge.measure.simulated import Disturbance, SimulatedDevice, SimulatedRunner
from cpd_edge.measure.stats import (
    outliers,
    paired_speedup,
    quantile_interval,
    sample_floor,
    trend,
    verdict,
)

__all__ = [
    "Disturbance", "Kernel", "KernelTimes", "OnnxRunner", "Protocol", "Runner", "SimulatedDevice", "SimulatedRunner",
    "capture", "compare", "doctor", "key", "measure", "outliers", "paired_speedup", "pin", "quantile_interval",
    "require_comparable", "sample_floor", "trend", "verdict",
]  # fmt: skip
