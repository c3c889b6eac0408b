"""What is read from llama.cpp's log: text of its format strings, and runs captured on Vulkan.

logs/vulkan_*.txt: llama.cpp of llama-cpp-python 0.3.36, built with Vulkan, on Mesa's llvmpipe. The
one of gemma has no output of its own: its table of tokens does not fit that driver's buffers.
logs/cuda_h200.txt: what the same version says of its cards when it is first asked anything.
"""

import sys
from argparse import Namespace
from pathlib import Path

import pytest

from harness.endings import is_out_of_memory
from harness.frameworks import llama, llama_log
from harness.twins.gguf import Architecture, ensure_twin

TINY = Architecture("tiny.Q4_0", 2, 256, 512, 4, 2, 4096, 2048, 1e-6)
LOGS = Path(__file__).parent / "logs"
VULKAN = (LOGS / "vulkan_llama.txt").read_text()
VULKAN_GEMMA = (LOGS / "vulkan_gemma.txt").read_text()

CPU_LOG = "load_tensors:   CPU_Mapped model buffer size =  3647.87 MiB\n"
METAL_LOG = """\
llama_prepare_model_devices: using device MTL0 (Apple M3 Pro) (unknown id) - 12287 MiB free
load_tensors: offloading output layer to GPU
load_tensors: offloading 31 repeating layers to GPU
load_tensors: offloaded 33/33 layers to GPU
"""
USING_CUDA0 = "using device CUDA0 (NVIDIA TITAN RTX) (0000:01:00.0) - 23900 MiB free\n"
USING_T4 = "using device CUDA1 (NVIDIA T4) (0000:02:00.0) - 15000 MiB free\n"
CUDA_LOG = """\
ggml_cuda_init: found 1 CUDA devices (Total VRAM: 24217 MiB):
  Device 0: NVIDIA TITAN RTX, compute capability 7.5, VMM: yes, VRAM: 24217 MiB
llama_prepare_model_devices: using device CUDA0 (NVIDIA TITAN RTX) (0000:01:00.0) - 23900 MiB free
load_tensors: offloaded {}/33 layers to GPU
"""


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (CPU_LOG, (0, None, "cpu", None, None, None)),
        (METAL_LOG, (33, 33, "metal", "Apple M3 Pro", None, 0)),
        (CUDA_LOG.format(33), (33, 33, "cuda", "NVIDIA TITAN RTX", 24217 * 2**20, 0)),
        (CUDA_LOG.format(10), (10, 33, "cuda", "NVIDIA TITAN RTX", 24217 * 2**20, 0)),
        (
            CUDA_LOG.format(33).replace(USING_CUDA0, USING_CUDA0 + USING_CUDA0.replace("A0", "A1")),
            (33, 33, "cuda", "2x NVIDIA TITAN RTX", 24217 * 2**20, None),
        ),
        (
            CUDA_LOG.format(33).replace(USING_CUDA0, USING_CUDA0 + USING_T4),
            (33, 33, "cuda", "NVIDIA TITAN RTX + NVIDIA T4", None, None),
        ),
        (VULKAN, (3, 3, "vulkan", "llvmpipe (LLVM 15.0.6, 256 bits)", None, 0)),
        # A GPU that is there and gets no layer is not where the model runs.
        (CUDA_LOG.format(0), (0, 33, "cpu", None, None, None)),
    ],
)
def test_offload_is_what_llama_cpp_reports(log, expected):
    assert llama_log.parse_offload(log) == expected


@pytest.mark.parametrize(
    ("log", "machine", "device"),
    [
        (METAL_LOG, "Apple_M3_Pro_18GB_14_GPU_Cores", "metal (Apple M3 Pro)"),
        (CPU_LOG, "Apple_M3_Pro_18GB_11_CPU_Cores", "cpu"),
        (CUDA_LOG.format(33), "NVIDIA_TITAN_RTX_24GB", "cuda (NVIDIA TITAN RTX)"),
        (
            VULKAN,
            "llvmpipe_LLVM_15.0.6_256_bits",
            "vulkan (llvmpipe (LLVM 15.0.6, 256 bits))",
        ),
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
    columns = llama.machine_columns(llama_log.parse_offload(log))
    assert (columns["machine"], columns["device"]) == (machine, device)


AUTO = "llama_context: flash_attn            = auto\n"


@pytest.mark.parametrize(
    ("log", "used"),
    [
        (VULKAN, "on"),
        (AUTO + "resolve_fused_ops: Flash Attention enabled\n", "on"),
        (AUTO + "resolve_fused_ops: Flash Attention not supported, set to disabled\n", "off"),
        (AUTO + "llama_context: Flash Attention was auto, set to enabled\n", "on"),
        ("llama_context: flash_attn            = enabled\n", "on"),
        # What another context decided before is not this one's.
        (AUTO + "x: Flash Attention enabled\nllama_context: flash_attn = disabled\n", "off"),
        ("", None),
    ],
)
def test_flash_attention_is_what_llama_cpp_chose(log, used):
    assert llama_log.flash_attention(log) == used


def first_context(log):
    return log.split("llama_context: constructing")[1]


def test_memory_is_on_the_gpu_or_beside_it():
    assert llama_log.buffers(VULKAN, "model", on_gpu=True) == pytest.approx(4.19 * 2**20)
    assert llama_log.buffers(VULKAN, "model", on_gpu=False) == pytest.approx(1.12 * 2**20)
    log = first_context(VULKAN)
    assert llama_log.buffers(log, "KV", on_gpu=True) == 0.5 * 2**20
    assert llama_log.buffers(log, "compute", on_gpu=True) == 10 * 2**20
    assert llama_log.buffers(log, "compute", on_gpu=False) == pytest.approx(2.51 * 2**20)
    assert llama_log.buffers(log, "output", on_gpu=True) == 0
    # The layers are "offloaded 19/19" here, and yet most of the weights are not on the GPU.
    assert llama_log.parse_offload(VULKAN_GEMMA).layers_on_gpu == 19
    assert llama_log.buffers(VULKAN_GEMMA, "model", on_gpu=True) / 2**20 == pytest.approx(65.16)


def test_kv_caches():
    (cache,) = llama_log.kv_caches(first_context(VULKAN))
    # Keys and values of 2 layers, 2 heads of 64, two bytes each.
    assert cache == (2 * 2 * 2 * 64 * 2, 512)
    whole, window = llama_log.kv_caches(
        "size =   24.00 MiB (  2048 cells,   3 layers,  4/4 seqs), K (f16):   12.00 MiB\n"
        "size =   60.00 MiB (  1024 cells,  15 layers,  4/4 seqs), K (f16):   30.00 MiB\n"
    )
    assert whole == (3 * 2 * 256 * 2, 2048) and window == (15 * 2 * 256 * 2, 1024)


def test_weights_of_a_token():
    mib = 2**20
    # With an output of its own the table of tokens is looked up, without one it is multiplied.
    assert llama_log.weights_per_token(VULKAN, 10 * mib, 0, 0) == pytest.approx(8.88 * mib)
    assert llama_log.weights_per_token(VULKAN_GEMMA, 10 * mib, 0, 0) == 10 * mib
    line = (
        "llama_model_loader: - tensor split  0: blk.0.ffn_up_exps.weight q4_K [ 2, 3, 8, 1 ] {} MiB"
    )
    assert llama_log.weights_per_token(line.format("4.00"), 10 * mib, 8, 2) == 7 * mib


METAL_MEMORY = """\
ggml_metal_synchronize: error: command buffer 0 failed with status 5
error: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)
graph_compute: ggml_backend_sched_graph_compute_async failed with error -1
"""


@pytest.mark.parametrize(
    ("log", "memory", "reason"),
    [
        (METAL_MEMORY, True, "Insufficient Memory"),
        ("ggml_vulkan: Device memory allocation of size 1 failed.\n"
         "failed to allocate compute pp buffers\n", True, "failed to allocate compute pp"),
        ("decode: n_tokens == 0\n", False, "llama_decode returned -3"),
    ],
)  # fmt: skip
def test_failure_names_its_reason_and_whether_it_is_memory(log, memory, reason):
    error = llama.failure("llama_decode returned -3", log)
    assert is_out_of_memory(error) == memory and reason in str(error)


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (
            "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 409600\n"
            "llama_init_from_model: failed to initialize the context: failed to allocate buffer\n",
            "failed to allocate buffer of size 409600",
        ),
        (
            "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 3647.87 MiB on device 0: "
            "cudaMalloc failed: out of memory\n"
            "llama_model_load: error loading model: unable to allocate CUDA0 buffer\n",
            "unable to allocate CUDA0 buffer",
        ),
        ("llama_context: n_ctx = 1024\n", None),
    ],
)
def test_reason_is_llama_cpps_own(log, reason):
    assert llama_log.reason_of_failure(log) == reason


CUDA_H200 = (LOGS / "cuda_h200.txt").read_text()
ON_H200 = """\
llama_prepare_model_devices: using device CUDA0 (NVIDIA H200) (0000:04:00.0) - 142600 MiB free
load_tensors: offloaded 3/3 layers to GPU
"""


@pytest.fixture
def options(tmp_path):
    path = ensure_twin(TINY, "How does a key open the lock?", tmp_path)
    return Namespace(
        model_path=path,
        verbose=False,
        device="auto",
        n_gpu_layers=-1,
        split_mode="layer",
        tensor_split="",
    )


def test_log_is_captured_before_anything_else_is_asked_of_llama_cpp(options, monkeypatch):
    import llama_cpp

    called = []

    class Library:
        def __getattr__(self, name):
            value = getattr(llama_cpp, name)
            if name.startswith("llama_") and not isinstance(value, type):
                called.append(name)
            return value

    monkeypatch.setitem(sys.modules, "llama_cpp", Library())
    llama.load(options)
    assert called[0] == "llama_log_set" and "llama_supports_gpu_offload" in called


def test_cards_that_llama_cpp_lists_at_the_first_call_are_in_the_log(options, monkeypatch, capfd):
    import llama_cpp

    monkeypatch.setattr(llama, "LOG", [])
    # As in a fresh process: the log goes to the terminal until someone takes it.
    say = [lambda level, text, data: print(text.decode(), end="", file=sys.stderr)]
    real_set, real_load = llama_cpp.llama_log_set, llama_cpp.llama_model_load_from_file

    def log_set(callback, data):
        say.append(callback)
        real_set(callback, data)

    def supports_gpu_offload():
        for line in CUDA_H200.splitlines(keepends=True):
            say[-1](2, line.encode(), None)
        return True

    def load_from_file(*arguments):
        say[-1](2, ON_H200.encode(), None)
        return real_load(*arguments)

    monkeypatch.setattr(llama_cpp, "llama_log_set", log_set)
    monkeypatch.setattr(llama_cpp, "llama_supports_gpu_offload", supports_gpu_offload)
    monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", load_from_file)
    columns = llama.machine_columns(llama_log.parse_offload(llama.load(options).log))
    # PyTorch calls this card the same.
    assert columns["machine"] == "NVIDIA_H200_141GB"
    assert "".join(capfd.readouterr()) == ""
