"""The name a result is filed under, from what frameworks and systems say in their own words."""

import json
import os
import platform

import pytest

import utils_machine

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
    assert utils_machine.parse_gpu_cores(report) == cores


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
    assert utils_machine.machine_tag(facts, device, *(gpu or (None, None))) == tag


def test_this_machine_is_described_by_what_it_is():
    facts = utils_machine.machine_facts()
    assert facts["memory_gb"] == pytest.approx(
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, rel=0.01
    )
    assert 1 <= facts["cpu_cores"] <= os.cpu_count()
    assert facts["python"] == platform.python_version()
