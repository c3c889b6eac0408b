"""The name a result is filed under, from what frameworks and systems say in their own words."""

import json
import os
import platform
import subprocess
import sys
import types

import pytest

import harness.machine
from harness.device import Device

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


# A display adapter, in the list before the chip.
ADAPTER = {"_name": "Display", "sppci_device_type": "spdisplays_other"}
WITH_ADAPTER = json.dumps({"SPDisplaysDataType": [ADAPTER, *json.loads(M3_PRO).popitem()[1]]})


@pytest.mark.parametrize(
    ("report", "cores"),
    [
        (M3_PRO, 14),
        (WITH_ADAPTER, 14),
        ("", None),
        ("{}", None),
        ("[]", None),
        (M3_PRO.replace("14", "many"), None),
    ],
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
        # One card, as PyTorch and NVML count its memory.
        ("Linux", "Intel i9", 8, None, 33.3e9, "cuda", ("NVIDIA H200", 139.8 * 2**30),
         "NVIDIA_H200_141GB"),
        ("Linux", "Intel i9", 8, None, 33.3e9, "cuda", ("NVIDIA H200", 143_771 * 2**20),
         "NVIDIA_H200_141GB"),
        ("Linux", "Intel i9", 8, None, 33.3e9, "cuda", ("Tesla T4", 14.6 * 2**30), "Tesla_T4_16GB"),
        ("Linux", "Grace", 20, None, 128e9, "cuda", ("NVIDIA GB10", 119.6 * 2**30),
         "NVIDIA_GB10_128GB"),
        ("Linux", "AMD EPYC", 8, None, 33.3e9, "cuda",
         ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 4.75 * 2**30), "NVIDIA_A100-SXM4-40GB_MIG_1g.5gb"),
        ("Linux", "AMD EPYC", 8, None, 33.3e9, "cuda", ("2x NVIDIA TITAN RTX", 25_386_352_640),
         "2x_NVIDIA_TITAN_RTX_24GB"),
        # A card that the framework does not use leaves no trace in the name.
        ("Linux", "AMD EPYC", 2, None, 25_181_712_384, "cpu", None, "AMD_EPYC_2_Cores_24GB"),
        ("Linux", None, None, None, 8 * 2**30, "cpu", None, f"{platform.machine()}_8GB"),
    ],
)  # fmt: skip
def test_tag(monkeypatch, system, chip, cpu_cores, gpu_cores, memory, device, gpu, tag):
    monkeypatch.setattr(platform, "system", lambda: system)
    facts = dict(chip=chip, cpu_cores=cpu_cores, gpu_cores=gpu_cores, memory_gb=memory / 1e9)
    assert Device(device, 0, *(gpu or (None, None))).tag(facts) == tag


X86 = {"arch": "X86_64", "vendor_id_raw": "GenuineIntel"}


@pytest.mark.parametrize(
    ("told", "board", "chip"),
    [
        (X86 | {"brand_raw": "Intel(R) Core(TM) i9-9900K CPU @ 3.60GHz", "family": 6, "model": 158},
         None, "Intel Core i9-9900K"),
        # Skylake and Cascade Lake of one cloud: only the stepping tells them apart.
        (X86 | {"brand_raw": "Intel(R) Xeon(R) CPU @ 2.00GHz", "family": 6, "model": 85,
                "stepping": 3}, None, "Intel Xeon family 6 model 85 stepping 3"),
        (X86 | {"brand_raw": "Intel(R) Xeon(R) CPU @ 2.20GHz", "family": 6, "model": 85,
                "stepping": 7}, None, "Intel Xeon family 6 model 85 stepping 7"),
        ({"brand_raw": "AMD EPYC", "family": 26, "model": 2, "stepping": 1}, None,
         "AMD EPYC family 26 model 2 stepping 1"),
        ({"brand_raw": "AMD EPYC 7B13 64-Core Processor", "family": 25, "model": 1}, None,
         "AMD EPYC 7B13"),
        (X86 | {"family": 6, "model": 143}, None, "GenuineIntel family 6 model 143"),
        ({"brand_raw": "Neoverse-N1", "model": 1, "stepping": "r3p1"}, "Amazon EC2 m6g.large",
         "Neoverse-N1"),
        ({"brand_raw": "-", "model": 1}, "Amazon EC2 m9g.large part 0xd84",
         "Amazon EC2 m9g.large part 0xd84"),
        ({"brand_raw": "ARMv8 Processor rev 1 (v8l)"}, "NVIDIA Jetson AGX Orin",
         "NVIDIA Jetson AGX Orin"),
        ({}, None, None),
    ],
)  # fmt: skip
def test_two_generations_of_processors_are_two_names(monkeypatch, told, board, chip):
    monkeypatch.setattr("cpuinfo.get_cpu_info", lambda: told)
    monkeypatch.setattr(harness.machine, "board_name", lambda: board)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    assert harness.machine.chip_name() == chip


def test_macos_itself_names_an_apple_chip(monkeypatch):
    monkeypatch.setattr("cpuinfo.get_cpu_info", lambda: {})  # on a macOS newer than py-cpuinfo
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(harness.machine, "sysctl", {"machdep.cpu.brand_string": "Apple M5"}.get)
    assert harness.machine.chip_name() == "Apple M5"


def write(root, name, text):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def test_boards_and_clouds_of_arm(tmp_path):
    assert harness.machine.board_name(tmp_path) is None
    core = "processor\t: 0\nCPU implementer\t: 0x41\nCPU variant\t: 0x1\nCPU part\t: 0xd40\n"
    write(tmp_path, "proc/cpuinfo", f"{core}\n{core}")
    assert harness.machine.board_name(tmp_path) == "implementer 0x41 part 0xd40"
    write(tmp_path, "sys/class/dmi/id/sys_vendor", "Amazon EC2\n")
    write(tmp_path, "sys/class/dmi/id/product_name", "c7g.xlarge\n")
    name = "Amazon EC2 c7g.xlarge implementer 0x41 part 0xd40"
    assert harness.machine.board_name(tmp_path) == name
    write(tmp_path, "proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0")
    assert harness.machine.board_name(tmp_path) == "Raspberry Pi 5 Model B Rev 1.0"


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


def test_a_missing_command_is_silence():
    assert harness.machine.output_of("no-such-command-here") == ""


def supplies(root, **kinds):
    for name, files in kinds.items():
        folder = root / "sys/class/power_supply" / name
        folder.mkdir(parents=True)
        for file, text in files.items():
            (folder / file).write_text(f"{text}\n")
    return root


MAINS = {"type": "Mains", "online": "1"}
MOUSE = {"type": "Battery", "scope": "Device", "status": "Discharging"}


@pytest.mark.parametrize(
    ("kinds", "source"),
    [
        ({}, None),  # a container or a server: there is not even the folder
        ({"AC": MAINS}, None),
        ({"hidpp_battery_0": MOUSE, "AC": MAINS}, None),
        ({"BAT0": {"type": "Battery", "status": "Discharging"}}, "battery"),
        ({"BAT0": {"type": "Battery", "status": "Full"}, "hidpp_battery_0": MOUSE}, "ac"),
        ({"BAT0": {"type": "Battery", "status": "Not charging"}, "AC": MAINS}, "ac"),
        # Some boards name it otherwise; it says that it is the system's.
        ({"macsmc-battery": {"type": "Battery", "scope": "System", "status": "Discharging"}},
         "battery"),
    ],
)  # fmt: skip
def test_power_source_on_linux(tmp_path, kinds, source):
    assert harness.machine.linux_power_source(supplies(tmp_path, **kinds)) == source


def test_power_source_of_a_mac(monkeypatch):
    battery = types.SimpleNamespace(power_plugged=False)
    monkeypatch.setattr(harness.machine.psutil, "sensors_battery", lambda: battery, raising=False)
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
