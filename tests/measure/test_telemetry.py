"""Laws of telemetry, on lines that devices printed and on numbers of the kind that their sysfs holds."""

from __future__ import annotations

import pytest

from cpd_edge.measure.telemetry import (
    Energy,
    Power,
    Reading,
    Slowdown,
    energy,
    mean_power,
    parse_tegrastats,
    reading,
    throttling,
    total_mw,
)

# Lines as boards printed them, shortened. Sources: Nano, TX1, TX2 and AGX Xavier from the tests of
# DataDog/datadog-agent; the AGX Orin of JetPack 7 and the clocks of Thor from bug reports to rbonghi/jetson_stats;
# Orin Nano, AGX Orin of L4T 35 and the rails of Thor from logs that their users published.
NANO = (
    "RAM 613/3964MB (lfb 634x4MB) SWAP 0/1982MB (cached 0MB) CPU [2%@102,1%@102,0%@102,0%@102] EMC_FREQ 0% "
    "GR3D_FREQ 0% PLL@39C CPU@40.5C PMIC@100C GPU@41C AO@46C thermal@41C "
    "POM_5V_IN 900/943 POM_5V_GPU 0/0 POM_5V_CPU 123/123"
)
TX1 = (
    "RAM 1179/3983MB (lfb 120x4MB) IRAM 0/252kB(lfb 252kB) CPU [1%@102,4%@102,0%@102,0%@102] EMC_FREQ 7%@408 "
    "GR3D_FREQ 0%@76 APE 25 AO@42.5C GPU@39C VDD_IN 2532/2698 VDD_CPU 76/178 VDD_GPU 19/19"
)
TX2 = (
    "RAM 1345/7829MB (lfb 1290x4MB) CPU [2%@345,off,off,off,off,off] EMC_FREQ 13%@40 GR3D_FREQ 0%@114 APE 150 "
    "BCPU@35C MCPU@35C GPU@41C VDD_IN 2003/2658 VDD_CPU 320/518 VDD_GPU 400/735 VDD_SOC 400/415 VDD_WIFI 0/0"
)
AGX_XAVIER = (
    "RAM 1903/15692MB (lfb 3251x4MB) CPU [1%@1190,1%@1190] EMC_FREQ 0% GR3D_FREQ 0% AO@32.5C GPU@32C PMIC@100C "
    "GPU 0/0 CPU 216/216 SOC 864/864 CV 0/0 VDDRQ 144/144 SYS5V 1889/1889"
)
ORIN_NANO = (
    "10-08-2026 04:38:21 RAM 1343/7620MB (lfb 157x4MB) SWAP 165/3810MB (cached 3MB) CPU [0%@1497,0%@729] "
    "EMC_FREQ 15%@204 GR3D_FREQ 0%@[305] NVDEC off VIC off OFA off APE 200 cpu@48.562C gpu@49.625C tj@49.312C "
    "VDD_IN 5251mW/8535mW VDD_CPU_GPU_CV 512mW/1944mW VDD_SOC 2720mW/3659mW"
)
AGX_ORIN = (
    "10-16-2023 10:59:22 RAM 1205/30623MB (lfb 6429x4MB) SWAP 0/15311MB (cached 0MB) CPU [0%@729,0%@729] "
    "EMC_FREQ 0%@204 GR3D_FREQ 0%@114 GR3D2_FREQ 0%@114 NVJPG1 729 VIC_FREQ 729 APE 233 CV0@-256C CPU@43.5C "
    "GPU@38.156C VDD_GPU_SOC 4788mW/4788mW VDD_CPU_CV 798mW/798mW VIN_SYS_5V0 3842mW/3842mW NC 0mW/0mW "
    "VDDQ_VDD2_1V8AO 707mW/707mW NC 0mW/0mW"
)
ORIN_JETPACK_7 = (
    "07-25-2026 09:08:28 RAM 20642/62817MB (lfb 1x2MB) CPU [23%@2201,10%@2201] EMC_FREQ 3%@3199 "
    "GR3D_FREQ 12%@[1300,1300] NVENC0 off VIC off PVA0_FREQ off APE 174 cpu@52.968C/52.968C gpu@47.625C/47.625C "
    "VDD_GPU_SOC 5139mW/5139mW/5139mW VDD_CPU_CV 3268mW/3268mW/3268mW VIN_SYS_5V0 5500mW/5500mW/5500mW"
)
THOR = (
    "07-31-2026 14:45:55 RAM 86905/125772MB (lfb 368x4MB) CPU [12%@972,10%@972,off,33%@1890] "
    "GR3D_FREQ @[1000,1000,1000] cpu@39.812C tj@39.906C soc012@38.812C gpu@39.906C VDD_GPU 3561mW/3561mW "
    "VDD_CPU_SOC_MSS 7910mW/7910mW VIN_SYS_5V0 7620mW/7620mW VIN 26686mW/26686mW"
)


@pytest.mark.parametrize(
    ("line", "rails", "total", "gpu", "hot"),
    [
        (NANO, {"POM_5V_IN": 900, "POM_5V_GPU": 0, "POM_5V_CPU": 123}, (900, "module (POM_5V_IN)"), (None, 0), 41),
        (TX1, {"VDD_IN": 2532, "VDD_CPU": 76, "VDD_GPU": 19}, (2532, "module (VDD_IN)"), (76, 0), 39),
        (
            TX2,
            {"VDD_IN": 2003, "VDD_CPU": 320, "VDD_GPU": 400, "VDD_SOC": 400, "VDD_WIFI": 0},
            (2003, "module (VDD_IN)"), (114, 0), 41,
        ),
        (
            AGX_XAVIER,
            {"GPU": 0, "CPU": 216, "SOC": 864, "CV": 0, "VDDRQ": 144, "SYS5V": 1889},
            (3113, "sum of rails GPU + CPU + SOC + CV + VDDRQ + SYS5V"), (None, 0), 32,
        ),
        (
            ORIN_NANO,
            {"VDD_IN": 5251, "VDD_CPU_GPU_CV": 512, "VDD_SOC": 2720},
            (5251, "module (VDD_IN)"), (305, 0), 49.625,
        ),
        (
            AGX_ORIN,
            {"VDD_GPU_SOC": 4788, "VDD_CPU_CV": 798, "VIN_SYS_5V0": 3842, "VDDQ_VDD2_1V8AO": 707},
            (9428, "sum of rails VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"), (114, 0), 38.156,
        ),
        (
            ORIN_JETPACK_7,
            {"VDD_GPU_SOC": 5139, "VDD_CPU_CV": 3268, "VIN_SYS_5V0": 5500},
            (13907, "sum of rails VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"), (1300, 12), 47.625,
        ),
        (
            THOR,
            {"VDD_GPU": 3561, "VDD_CPU_SOC_MSS": 7910, "VIN_SYS_5V0": 7620, "VIN": 26686},
            (26686, "board input (VIN)"), (1000, None), 39.906,
        ),
    ],
    ids=["nano", "tx1", "tx2", "agx-xavier", "orin-nano", "agx-orin", "orin-jetpack-7", "thor"],
)  # fmt: skip
def test_every_dialect_gives_its_rails_total_clock_and_temperature(line, rails, total, gpu, hot) -> None:
    """Power is a rail's present value; the total is the input's rail, or the sum of what is not within another."""
    found = parse_tegrastats(line)
    assert rails == found.power_mw
    assert total == total_mw(found.power_mw)
    assert gpu == (found.gpu_mhz, found.gpu_percent)
    assert hot == {name.lower(): c for name, c in found.temperature_c.items()}["gpu"]


def test_cores_that_are_off_and_sensors_that_are_off_are_absent() -> None:
    """An `off` core has no clock; −256 °C is no temperature."""
    assert (972, 972, 1890) == parse_tegrastats(THOR).cpu_mhz
    assert "CV0" not in parse_tegrastats(AGX_ORIN).temperature_c
    assert 3199 == parse_tegrastats(ORIN_JETPACK_7).emc_mhz


def test_what_is_not_known_is_passed_over() -> None:
    """A line of another world is an empty reading, not an error."""
    assert Reading() == parse_tegrastats("NEW_THING off FOO 12 bar [x] %@ /// 3mW")


RAW = {
    "t_ns": 7, "time": 0.0, "cpufreq": [1510400, None], "rapl": [["package-0", 5], ["core", 3]],
    "rails": [
        ["ina3221", "VDD_IN", 4984, 1856, None], ["ina3221", "sum of shunt voltages", 3, 4, None],
        ["ina3221x", "POM_5V_CPU", None, None, 123], ["ina238", "", None, None, 26686000],
    ],
    "zones": [["gpu-thermal", 49468], ["cv0-thermal", -256000], ["tj-thermal", None]],
    "cooling": [["gpu-throttle-alert", 1, 2], ["pwm-fan", 3, 5]],
    "devfreq": [["17000000.gpu", 612000000, 306000000, 612000000], ["gpu-nvd-0", 9, 9, 9]],
    "overcurrent": {"oc1": 1, "oc3": None},
}  # fmt: skip


def test_raw_numbers_get_their_units() -> None:
    """mV × mA, mW of the old driver and µW of hwmon are all mW; sums and closed files are left out."""
    found = reading(RAW)
    assert {"VDD_IN": pytest.approx(9250.304), "POM_5V_CPU": 123, "VIN": 26686} == found.power_mw
    assert {"gpu": 49.468} == found.temperature_c
    assert (612, (1510,)) == (found.gpu_mhz, found.cpu_mhz)
    assert ({"gpu-throttle-alert": 1}, {"oc1": 1}, {"package-0": 5}) == (
        found.cooling, found.overcurrent, found.energy_uj,
    )  # fmt: skip


def test_tegrastats_fills_what_sysfs_does_not_show() -> None:
    """Rails come from the line only where no file had any."""
    blind = {**RAW, "rails": [], "tegrastats": ORIN_NANO}
    assert 5251 == reading(blind).power_mw["VDD_IN"]
    assert 204 == reading(blind).emc_mhz
    assert "VDD_SOC" not in reading({**blind, "rails": RAW["rails"]}).power_mw


def ramp(seconds: int) -> list[Reading]:
    """Power that grows by 100 mW each second from 1 W."""
    return [Reading(int(t * 1e9), power_mw={"VDD_IN": 1000 + 100 * t}) for t in range(seconds + 1)]


def test_energy_is_the_integral_of_power_over_the_inferences() -> None:
    """The trapezoid of a straight line is exact, also where the window cuts between two readings."""
    found = energy(ramp(60), int(10.5e9), int(50.5e9), 1000, Power(1000, "module (VDD_IN)"))
    joules = 40 * (1 + 0.1 * 30.5)
    assert joules == pytest.approx(found.gross_mj)  # 1000 inferences: J in all is mJ each
    assert joules - 40 == pytest.approx(found.net_mj)
    assert ("module (VDD_IN)", "") == (found.scope, found.reason)


@pytest.mark.parametrize(
    ("readings", "window_s", "inferences", "said"),
    [
        (ramp(60), (0, 29), 10, "30 s are needed"),
        (ramp(60), (0, 40), 0, "no inference"),
        (ramp(20), (0, 40), 10, "was not read"),
        ([], (0, 40), 10, "no power rail"),
        ([*ramp(30), Reading(int(31e9), power_mw={"CPU": 5})], (0, 31), 10, "rails changed"),
    ],
)
def test_without_grounds_there_is_a_reason_and_no_number(readings, window_s, inferences, said) -> None:
    """A short window, a gap, no sensor: the energy is None and says why."""
    found: Energy = energy(readings, int(window_s[0] * 1e9), int(window_s[1] * 1e9), inferences)
    assert (None, None) == (found.gross_mj, found.net_mj)
    assert said in found.reason


def test_counters_of_a_cpu_give_the_energy_of_its_package() -> None:
    """20 W for 40 s, counted in µJ."""
    readings = [Reading(int(t * 1e9), energy_uj={"package-0": t * 20_000_000}) for t in range(41)]
    found = energy(readings, 0, int(40e9), 100)
    assert 8000 == pytest.approx(found.gross_mj)
    assert "RAPL" in found.scope


def test_throttling_is_told_by_counters_that_grew_and_alerts_that_were_active() -> None:
    """A counter that stood before is no evidence; one that grew is."""
    quiet = Reading(1, cooling={"gpu-throttle-alert": 0}, overcurrent={"oc1": 4, "oc3": 0})
    hot = Reading(2, cooling={"gpu-throttle-alert": 1}, overcurrent={"oc1": 4, "oc3": 2})
    assert () == throttling([quiet, quiet])
    said = throttling([quiet, hot, Reading(3, cooling={"gpu-throttle-alert": 0}, overcurrent={"oc1": 4, "oc3": 2})])
    expected = ("2 over-current events (oc3)", "gpu-throttle-alert was active (state 1)")
    assert tuple(Slowdown(what, voids=True) for what in expected) == said


def test_what_counts_as_a_gpu_s_slowdown() -> None:
    """Heat and hardware void a number, a power cap goes with it, an idle clock and a user's clock are nothing."""

    def said(bits: int) -> list[bool]:
        return [slowdown.voids for slowdown in throttling([Reading(1), Reading(2, gpu_events=bits), Reading(3)])]

    assert ([], [], [False], [True]) == (said(0x1), said(0x2), said(0x4), said(0x40))
    assert [False, True, True] == said(0x4 | 0x8 | 0x20)
    (cores,) = throttling([Reading(1, cpu_throttled=7), Reading(2, cpu_throttled=9)])
    assert cores.voids and "2 times" in cores.what


GPU = {"power_mw": 61_500, "energy_mj": 5_000_000, "temperature_c": 54, "sm_mhz": 1980, "reasons": 0x4}


def test_a_discrete_gpu_is_read_by_nvml() -> None:
    """Its energy counter before its power, its temperature beside the zones; of several none is the one."""
    desktop = {**RAW, "rails": [], "devfreq": [], "gpus": [GPU]}
    found = reading(desktop)
    assert ({"package-0": 5, "GPU board": 5_000_000_000}, {}) == (found.energy_uj, found.power_mw)
    assert (1980, 54, 0x4) == (found.gpu_mhz, found.temperature_c["gpu"], found.gpu_events)
    older = reading({**desktop, "gpus": [{**GPU, "energy_mj": None}]})
    assert (61_500, "GPU board (NVML)") == total_mw(older.power_mw)
    several = reading({**desktop, "gpus": [GPU, {**GPU, "reasons": 0x40}]})
    assert ({"package-0": 5}, {}, 0x44) == (several.energy_uj, several.power_mw, several.gpu_events)


def test_mean_power_is_known_from_two_readings_on() -> None:
    """Of rails by their integral, of counters by their difference."""
    assert Power(pytest.approx(1500), "module (VDD_IN)") == mean_power(ramp(10))
    counters = [Reading(int(t * 1e9), energy_uj={"package-0": t * 20_000_000}) for t in range(11)]
    found = mean_power(counters)
    assert found is not None and (20_000, True) == (pytest.approx(found.mw), "RAPL" in found.scope)
    assert mean_power(ramp(0)) is None
    assert mean_power([Reading(0), Reading(10**9)]) is None


def test_idle_power_of_another_scope_gives_no_net_energy() -> None:
    """A module's input less a sum of rails is no number."""
    found = energy(ramp(60), 0, int(40e9), 1000, Power(1000, "sum of rails CPU + GPU"))
    assert found.gross_mj is not None and found.net_mj is None
