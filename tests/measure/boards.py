"""A board's `/proc` and `/sys`, as far as the agent looks: what an Orin Nano shows."""

from __future__ import annotations

from pathlib import Path


def fake_board(root: Path) -> None:
    """What the sysfs of an Orin Nano shows, as far as the agent looks."""
    files = {
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.4, GCID: 41062509, BOARD: generic, EABI: aarch64",
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "proc/meminfo": "MemTotal:        7802820 kB\nMemFree:          123456 kB\nMemAvailable:    5000000 kB\n",
        "var/lib/nvpmodel/status": "pmode:0002",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq": "1510400",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "1510400",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1510400",
        "sys/class/devfreq/17000000.gpu/cur_freq": "624750000",
        "sys/class/devfreq/17000000.gpu/min_freq": "624750000",
        "sys/class/devfreq/17000000.gpu/max_freq": "624750000",
        "sys/class/hwmon/hwmon1/name": "ina3221",
        "sys/class/hwmon/hwmon1/in1_label": "VDD_IN",
        "sys/class/hwmon/hwmon1/in1_input": "4984",
        "sys/class/hwmon/hwmon1/curr1_input": "1856",
        "sys/class/hwmon/hwmon1/in7_label": "sum of shunt voltages",
        "sys/class/hwmon/hwmon1/in7_input": "3",
        "sys/class/hwmon/hwmon2/name": "ina238",
        "sys/class/hwmon/hwmon2/power1_input": "26686000",
        "sys/class/hwmon/hwmon3/oc3_event_cnt": "27",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
        "sys/class/thermal/thermal_zone0/temp": "49468",
        "sys/class/thermal/thermal_zone1/type": "gpu-thermal",
        "sys/class/thermal/cooling_device0/type": "cpu-throttle-alert",
        "sys/class/thermal/cooling_device0/cur_state": "0",
        "sys/class/thermal/cooling_device0/max_state": "2",
        "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/rail_name_0": "POM_5V_IN",
        "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_power0_input": "2532",
    }
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text + ("" if text.endswith("\0") else "\n"))
