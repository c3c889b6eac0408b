"""The name a result is filed under, from what frameworks and systems say in their own words."""

import json
import os
import platform
import subprocess
import sys
import types

import pytest

import harness.machine

M3_PRO = json.dumps(
    {
        "SPDisplaysDataType": [
            {
                "_name": "Apple M3 Pro",
                "spdisplays_mtlgpufamilysupport": "spdisplays_metal3",
                "spdisplays_vendor": "sppci_vendor_Apple",
                "sppci_bus": "spdisplays_builtin",
                "sppci_cores": "14",
                "sppci_device_type": "spdisplays_gpu",
                "sppci_model": "Apple M3 Pro",
            }
        ]
    }
)


@pytest.mark.parametrize(
    ("report", "cores"),
    [(M3_PRO, 14), ("", None), ("{}", None), ("[]", None), (M3_PRO.replace("14", "many"), None)],
)
def test_gpu_cores_are_read_or_unknown(report, cores):
    assert harness.machine.parse_gpu_cores(report) == cores


@pytest.mark.parametrize(
    ("system", "chip", "cpu_cores", "gpu_cores", "memory", "device", "gpu", "tag"),
    [
        ("Darwin", "Apple M3 Pro", 11, 14, 18 * 2**30, "mps", None,
         "Apple_M3_Pro_18GB_14_GPU_Cores"),
        ("Darwin", "Apple M3 Pro", 11, 14, 18 * 2**30, "cpu", None,
         "Apple_M3_Pro_18GB_11_CPU_Cores"),
        ("Linux", "Intel i9", 8, None, 33.3e9, "cuda", ("NVIDIA TITAN RTX", 25_386_352_640),
         "NVIDIA_TITAN_RTX_24GB"),
        ("Linux", "Intel i9", 8, None, 33.3e9, "cuda", ("NVIDIA H100 80GB HBM3", 85_017_755_648),
         "NVIDIA_H100_80GB_HBM3"),
        # A card that the framework does not use leaves no trace in the name.
        ("Linux", "AMD EPYC", 2, None, 25_181_712_384, "cpu", None, "AMD_EPYC_2_Cores_24GB"),
        ("Linux", None, None, None, 8 * 2**30, "cpu", None, f"{platform.machine()}_8GB"),
    ],
)  # fmt: skip
def test_tag(monkeypatch, system, chip, cpu_cores, gpu_cores, memory, device, gpu, tag):
    monkeypatch.setattr(platform, "system", lambda: system)
    facts = dict(chip=chip, cpu_cores=cpu_cores, gpu_cores=gpu_cores, memory_gb=memory / 1e9)
    assert harness.machine.machine_tag(facts, device, *(gpu or (None, None))) == tag


def test_this_machine_is_described_by_what_it_is():
    facts = harness.machine.machine_facts()
    assert facts["memory_gb"] == pytest.approx(
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, rel=0.01
    )
    assert 1 <= facts["cpu_cores"] <= os.cpu_count()
    assert facts["python"] == platform.python_version()


PMSET = """System-wide power settings:
Currently in use:
 standby              1
 Sleep On Power Button 1
 powernap             1
 displaysleep         2
 lowpowermode         {}
 hibernatemode        3
"""


@pytest.mark.parametrize(
    ("report", "low"),
    [(PMSET.format(1), True), (PMSET.format(0), False), ("", None), ("lowpowermode ?", None)],
)
def test_low_power_mode(report, low):
    assert harness.machine.parse_low_power_mode(report) is low


@pytest.mark.parametrize(
    ("report", "state"),
    [
        ("Note: No thermal warning level has been recorded\n", "nominal"),
        ("CPU_Scheduler_Limit \t= 100\nCPU_Speed_Limit \t= 100\n", "nominal"),
        ("CPU_Scheduler_Limit \t= 100\nCPU_Speed_Limit \t= 63\n", "processor limited to 63 %"),
        ("pmset: command not understood", None),
        ("", None),
    ],
)
def test_thermal_state_of_a_mac(report, state):
    assert harness.machine.parse_pmset_therm(report) == state


@pytest.mark.parametrize(
    ("report", "state"),
    [
        ("0x0000000000000000\n", "nominal"),
        ("0x0000000000000001\n", "nominal"),  # idle
        ("0x0000000000000024\n0x0000000000000000\n", "power cap, software thermal slowdown"),
        ("[N/A]\n", None),
        ("NVIDIA-SMI has failed because it couldn't communicate with the driver.", None),
        ("", None),
    ],
)
def test_why_a_card_is_held_back(report, state):
    assert harness.machine.parse_clock_reasons(report) == state


def test_a_missing_command_is_silence():
    assert harness.machine.output_of("no-such-command-here") == ""


def test_power_source(monkeypatch):
    battery = types.SimpleNamespace(power_plugged=False)
    monkeypatch.setattr(harness.machine.psutil, "sensors_battery", lambda: battery, raising=False)
    assert harness.machine.power_source() == "battery"
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(harness.machine, "output_of", lambda *command: PMSET.format(1))
    assert harness.machine.power_source() == "battery_low_power"
    battery.power_plugged = True
    assert harness.machine.power_source() == "ac_low_power"


def test_another_heavy_program_is_seen_and_named():
    code = "import time\nend = time.time() + 20\nwhile time.time() < end: pass"
    with subprocess.Popen([sys.executable, "-c", code]) as busy:
        percent, name = harness.machine.other_load()
        busy.kill()
    assert percent > 50 / os.cpu_count() and name
