"""Variables of the environment that change what is measured: taken out, or said and recorded.

No list of names is ever whole. Those known to make another number are taken out; all others of the
libraries that compute are in the column `environment` of every row.
"""

import os
import re
from fnmatch import fnmatchcase

from harness.private import without_names

# Each is in its library's documentation or source. A star stands for any end.
OVERRIDES = (
    # Another arithmetic
    "NVIDIA_TF32_OVERRIDE",  # beats every program's choice of float32 or TF32
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",  # float32 products computed in bf16 on processors
    "DNNL_DEFAULT_FPMATH_MODE",
    "TF_SET_ONEDNN_FPMATH_MODE",
    "PYTORCH_MPS_FAST_MATH",
    "JAX_ENABLE_X64",
    "JAX_DEFAULT_MATMUL_PRECISION",
    "GGML_CUDA_FORCE_CUBLAS_COMPUTE_*",
    # Another device, precision, compiler or number of steps per update, in Trainer
    "ACCELERATE_*",
    "PYTORCH_ENABLE_MPS_FALLBACK",  # what MPS lacks would run on the processor, unseen
    "GGML_CUDA_ENABLE_UNIFIED_MEMORY",  # what the card lacks would come from the host's memory
    # Not as many steps as asked for
    "KERAS_MAX_EPOCHS",
    "KERAS_MAX_STEPS_PER_EPOCH",
    # Compiled, or not, against what the row says
    "JAX_DISABLE_JIT",
    "JAX_DISABLE_MOST_OPTIMIZATIONS",
    "TF_XLA_FLAGS",
    "TORCH_COMPILE_DISABLE",
    "TORCH_COMPILE_OVERRIDE_BACKENDS",
    "TORCHDYNAMO_DISABLE",
    "TORCHDYNAMO_SUPPRESS_ERRORS",
    "TORCHINDUCTOR_MAX_AUTOTUNE*",
    "MLX_DISABLE_COMPILE",
    # Slower kernels than the machine has
    "TF_ENABLE_ONEDNN_OPTS",
    "TF_DETERMINISTIC_OPS",
    "TF_CUDNN_DETERMINISTIC",
    "TF_CUDNN_USE_AUTOTUNE",
    "ATEN_CPU_CAPABILITY",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_CBWR",
    "LLAMA_*DISABLE",
    # Checks and waits after every operation
    "CUDA_LAUNCH_BLOCKING",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
    "JAX_DEBUG_NANS",
    "JAX_DEBUG_INFS",
    "JAX_ENABLE_CHECKS",
    "MTL_DEBUG_LAYER",
    "MTL_SHADER_VALIDATION",
    # Fewer threads than the row says; who imports a library that is bound keeps one core
    "OMP_THREAD_LIMIT",
    "OMP_DYNAMIC",
    "OMP_MAX_ACTIVE_LEVELS",
    "OMP_PROC_BIND",
    "OMP_PLACES",
    "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY",
    "KMP_HW_SUBSET",
    "KMP_ALL_THREADS",
    "KMP_DEVICE_THREAD_LIMIT",
    "KMP_TEAMS_THREAD_LIMIT",
    "KMP_LIBRARY",
)
# A cluster sets them in every process: frameworks wait for ranks that nobody starts.
CLUSTER = (
    *("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK"),
    *("GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("PMI_SIZE", "PMI_RANK", "OMPI_COMM_WORLD_*", "MV2_COMM_WORLD_*", "TF_CONFIG"),
)
FAMILIES = re.compile(
    "(TF|XLA|JAX|KERAS|TORCH[A-Z]*|PYTORCH|TRITON|ATEN|OMP|GOMP|KMP|MKL|DNNL|ONEDNN|OPENBLAS"
    "|VECLIB|MLX|MTL|METAL|CUDA|CUDNN|CUBLAS|NCCL|GLOO|HIP|HSA|ROCR|MIOPEN|GGML|LLAMA|ORT)_"
)
# Where a library lies, not how it computes; and Terraform's, which begin as TensorFlow's do.
NO_MATTER = re.compile(
    "[A-Z]+_(HOME|PATH|ROOT|VERSION)"
    "|TF_(CLI|VAR|LOG|INPUT|WORKSPACE|DATA_DIR|PLUGIN|REGISTRY|IN_AUTOMATION).*"
)
# Set anew by the harness, whatever they were.
OURS = {
    *("CUDA_DEVICE_ORDER", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TF_CPP_MIN_LOG_LEVEL"),
    *("KERAS_BACKEND", "KERAS_HOME", "KERAS_TORCH_DEVICE", "MLX_ENABLE_TF32", "LLAMA_TRACE"),
}
# Nobody else's business: such variables are named without their value.
PRIVATE = re.compile("TOKEN|KEY|SECRET|PASSW|CREDENTIAL|ADDR|URL|ENDPOINT|HOSTFILE")


def settle_environment() -> str | None:
    """Take `OVERRIDES` and `CLUSTER` out of the environment, and say so; before a framework loads.

    Returns:
        The column `environment`: other variables of `FAMILIES`, sorted, such as `A_B=1; C_D=x`.
    """
    for name in sorted(os.environ):
        if any(fnmatchcase(name, pattern) for pattern in (*OVERRIDES, *CLUSTER)):
            del os.environ[name]
            print(f"Note: {name} is set, and not heeded: it would change what is measured")
    there = [name for name in sorted(os.environ) if is_recorded(name)]
    if there:
        print(f"Note: set in the environment, and recorded in every row: {', '.join(there)}")
    return "; ".join(map(told, there)) or None


def is_recorded(name: str) -> bool:
    """Whether a variable is of a library that computes, and may change how it does."""
    return bool(FAMILIES.match(name)) and not NO_MATTER.fullmatch(name) and name not in OURS


def told(name: str) -> str:
    """`name=value`, without personal data; the name alone where the value is private."""
    if PRIVATE.search(name):
        return name
    value = os.environ[name].encode(errors="replace").decode()  # bytes that are no text
    return f"{name}={without_names(value)}"
