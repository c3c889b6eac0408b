"""On which device a model ran, read from what llama.cpp logged (recorded text)."""

import pytest

from harness.frameworks import llama

CPU_LOG = "load_tensors:   CPU_Mapped model buffer size =  3647.87 MiB\n"
METAL_LOG = """\
llama_prepare_model_devices: using device MTL0 (Apple M3 Pro) (unknown id) - 12287 MiB free
load_tensors: offloading output layer to GPU
load_tensors: offloading 31 repeating layers to GPU
load_tensors: offloaded 33/33 layers to GPU
"""
USING_CUDA0 = "using device CUDA0 (NVIDIA TITAN RTX) (0000:01:00.0) - 23900 MiB free\n"
CUDA_LOG = """\
ggml_cuda_init: found 1 CUDA devices (Total VRAM: 24217 MiB):
  Device 0: NVIDIA TITAN RTX, compute capability 7.5, VMM: yes, VRAM: 24217 MiB
llama_prepare_model_devices: using device CUDA0 (NVIDIA TITAN RTX) (0000:01:00.0) - 23900 MiB free
load_tensors: offloaded {}/33 layers to GPU
"""


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (CPU_LOG, (0, None, "cpu", None, None)),
        (METAL_LOG, (33, 33, "metal", "Apple M3 Pro", None)),
        (CUDA_LOG.format(33), (33, 33, "cuda", "NVIDIA TITAN RTX", 24217 * 2**20)),
        (CUDA_LOG.format(10), (10, 33, "cuda", "NVIDIA TITAN RTX", 24217 * 2**20)),
        (
            CUDA_LOG.format(33).replace(USING_CUDA0, USING_CUDA0 + USING_CUDA0.replace("A0", "A1")),
            (33, 33, "cuda", "2x NVIDIA TITAN RTX", 24217 * 2**20),
        ),
        # A GPU that is there and gets no layer is not where the model runs.
        (CUDA_LOG.format(0), (0, 33, "cpu", None, None)),
    ],
)
def test_offload_is_what_llama_cpp_reports(log, expected):
    assert llama.parse_offload(log) == expected


@pytest.mark.parametrize(
    ("log", "machine", "device"),
    [
        (METAL_LOG, "Apple_M3_Pro_18GB_14_GPU_Cores", "metal (Apple M3 Pro)"),
        (CPU_LOG, "Apple_M3_Pro_18GB_11_CPU_Cores", "cpu"),
        (CUDA_LOG.format(33), "NVIDIA_TITAN_RTX_24GB", "cuda (NVIDIA TITAN RTX)"),
    ],
)
def test_machine_is_the_device_really_used(log, machine, device, monkeypatch):
    facts = {
        "chip": "Apple M3 Pro",
        "cpu_cores": 11,
        "gpu_cores": 14,
        "memory_gb": 18 * 2**30 / 1e9,
    }
    monkeypatch.setattr("harness.machine.machine_facts", lambda: facts)
    monkeypatch.setattr("harness.machine.platform.system", lambda: "Darwin")
    columns = llama.machine_columns(llama.parse_offload(log))
    assert (columns["machine"], columns["device"]) == (machine, device)
