"""The one PyTorch protocol: device, precision, training loop, device-only probe, memory, FLOPs."""

import contextlib
import functools
import math
import sys
import warnings

import torch
from torch.utils.flop_counter import FlopCounterMode

import harness.cores
from harness.data import choose_data
from harness.device import FINE, Device, choose, prove_precision
from harness.frameworks.training import run_epochs
from harness.process import UsageError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def start(options) -> torch.device:
    """Seed, choose the device, and make sure that it does the precision asked for.

    Raises:
        UsageError: the device is missing, or cannot compute in the precision.
    """
    device = choose_device(options.device)
    # PyTorch itself would take all of the affinity's cores, whatever a container's share is.
    torch.set_num_threads(min(torch.get_num_threads(), harness.cores.usable_cores()))
    torch.manual_seed(options.seed)
    forbid_tf32()
    require_precision(device, options.precision)
    torch.backends.cudnn.benchmark = True
    return device


def choose_device(name: str) -> torch.device:
    """The GPU, or else the CPU, for `auto`; else the device of that name."""
    chosen = choose(name, devices_seen(), f"PyTorch {torch.__version__}")
    if chosen.type != "cuda":
        return torch.device(chosen.type)
    torch.cuda.set_device(chosen.index)
    return torch.device("cuda", chosen.index)


def devices_seen() -> dict[str, int]:
    """How many devices of each kind there are: the processor, and a GPU's."""
    gpu = torch.accelerator.current_accelerator(check_available=True)
    return {"cpu": 1} | ({gpu.type: torch.accelerator.device_count()} if gpu else {})


def forbid_tf32() -> None:
    """`fp32` is true float32: NVIDIA cards otherwise use TF32 for convolutions, some for products.

    Both of PyTorch's interfaces are told. The newer one is missing before PyTorch 2.9; there and in
    a few later versions its general setting does not reach convolutions
    (github.com/pytorch/pytorch/issues/179445), and in none does it reach products where an
    environment variable allows TF32. With the newer one alone, reading the older one raises.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions call the older interface deprecated
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    if hasattr(torch.backends, "fp32_precision"):
        cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
        for part in (torch.backends, cuda.matmul, cudnn.conv, cudnn.rnn):
            part.fp32_precision = "ieee"


def require_precision(device: torch.device, precision: str) -> None:
    """Raises UsageError unless `device` really multiplies and convolves in `precision`."""
    products = functools.partial(fine_products, device, precision)
    prove_precision(described(device), precision, products, (RuntimeError,))


def fine_products(device: torch.device, precision: str) -> list[torch.Tensor]:
    """The products that `prove_precision` asks for; raises RuntimeError where it cannot do them."""
    matrix = torch.full((512, 512), FINE, device=device)
    images = torch.full((4, 64, 16, 16), FINE, device=device)
    kernel = torch.ones(64, 64, 3, 3, device=device)
    with warnings.catch_warnings(), autocast(device, precision):
        warnings.simplefilter("ignore")
        product = matrix @ torch.ones_like(matrix)
        convolved = torch.nn.functional.conv2d(images, kernel)
    if {product.dtype, convolved.dtype} != {DTYPES[precision]}:
        # Of an unsupported type PyTorch only warns.
        raise RuntimeError(f"computed in {product.dtype}")
    return [product / len(matrix), convolved / kernel[0].numel()]


def described(device: torch.device) -> Device:
    """The device as rows have it."""
    if device.type != "cuda":
        return Device(device.type)
    card = torch.cuda.get_device_properties(device)
    capability = None if torch.version.hip else (card.major, card.minor)
    return Device("cuda", device.index or 0, card.name, card.total_memory, capability)


def has_fused_adam(device: torch.device, precision: str) -> bool:
    """Whether Adam may update all tensors in one kernel there; one by one they keep MPS waiting.

    Before PyTorch 2.14 the kernel of MPS heeds neither the scale nor the infinities of fp16's
    GradScaler (github.com/pytorch/pytorch/pull/186360).
    """
    return not (device.type == "mps" and precision == "fp16")


def require_compiler(device: torch.device) -> None:
    """Raises UsageError unless a small function is really compiled for `device`."""
    try:
        torch.compile(torch.sin)(torch.ones(8, device=device))
        require_compiled()
    except RuntimeError as error:
        problem = str(error.__cause__ or error).strip().partition("\n")[0]
        install = "xcode-select --install" if sys.platform == "darwin" else "apt install g++"
        raise UsageError(
            f"--compile: PyTorch cannot compile here ({problem}); where the compiler is missing: "
            f"{install}"
        ) from None


def require_compiled() -> None:
    """Raises RuntimeError unless this process has compiled something, as PyTorch itself counts."""
    from torch._dynamo.utils import counters

    if not (counters["stats"]["unique_graphs"] and counters["frames"]["ok"]):
        raise RuntimeError("--compile: torch.compile has compiled nothing")


def autocast(device: torch.device, precision: str):
    """The context in which forward passes and losses are computed."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, DTYPES[precision])


def prepare(options, fetch) -> dict:
    """Settle device and data once per sweep; returns the columns that all rows share.

    Args:
        fetch: `fetch(options)` brings the real data; raises DataUnreachable where it cannot.
    """
    device = start(options)
    if options.compile:
        require_compiler(device)
    data = choose_data(options.data, lambda: fetch(options))
    return facts(device) | {"data": data}


def facts(device: torch.device) -> dict:
    """The machine columns of a row, of the device that is really used."""
    threads = harness.cores.openmp_threads(torch.get_num_threads())
    return described(device).columns(f"torch {torch.__version__}") | {"threads": threads}


def synchronize(device: torch.device):
    """A function that waits until `device` has done all its work."""
    return torch.accelerator.synchronize if device.type != "cpu" else lambda: None


class Training:
    """A model in PyTorch's plain loop; see `harness.frameworks.training`.

    Args:
        loader: yields batches on the host, tuples of tensors of which each has as many samples in
            its rows.
        loss_function: `loss_function(model, *batch)`, a scalar, of a batch on the device.
    """

    def __init__(self, model, loader, loss_function, optimizer, device, options):
        self.model = self.network = self.forward = model.train()
        self.loader, self.loss_function, self.optimizer = loader, loss_function, optimizer
        self.device, self.options = device, options
        self.synchronize = synchronize(device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "fp16")

    def spread(self, wrap, share) -> None:
        """Train a part of the samples, in a wrapper that averages gradients with other devices."""
        self.network = self.forward = wrap(self.network)
        share(self.loader)

    def run(self, clock) -> float:
        if self.options.compile:
            # All batches have one shape, for which the kernels are compiled.
            self.forward = torch.compile(self.network, dynamic=False)
        losses = run_epochs(self, lambda: self.loader, clock)
        return torch.stack(losses).mean().item()

    def loss(self, model, batch) -> torch.Tensor:
        # From pinned memory on CUDA only: on MPS such a copy may read memory that is already
        # reused (github.com/pytorch/pytorch/issues/189690).
        asynchronous = self.device.type == "cuda"
        batch = [part.to(self.device, non_blocking=asynchronous) for part in batch]
        with autocast(self.device, self.options.precision):
            return self.loss_function(model, *batch)

    def step(self, batch) -> torch.Tensor:
        self.optimizer.zero_grad()
        loss = self.loss(self.forward, batch)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def keep(self, batch) -> None:
        # Copies, because a loader may use a batch's memory again.
        self.batch = [host_copy(part, self.device) for part in batch]

    def after_first_step(self) -> None:
        reset_peak_memory(self.device)
        if self.options.compile:
            require_compiled()

    def train_step(self) -> int:
        self.step(self.batch)
        return len(self.batch[0])

    def flops_per_work(self) -> float:
        # Two samples are enough: the work of a step grows with the batch.
        few = [part[:2] for part in self.batch]
        return count_flops(lambda: self.loss(self.model, few).backward()) / len(few[0])

    def peak_memory_gb(self) -> float | None:
        return peak_memory_gb(self.device)


def host_copy(part: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy in the host's memory, which is pinned where loaders pin their batches: on CUDA."""
    copy = torch.empty_like(part, device="cpu", pin_memory=device.type == "cuda")
    return copy.copy_(part)


def reset_peak_memory(device: torch.device) -> None:
    """Count the peak of memory anew after the first step, in which cuDNN tries its algorithms.

    What they need for that may be several times what the chosen ones do.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def count_flops(step) -> int:
    """Floating-point operations of `step`: matrix products and convolutions, both passes."""
    unknown_to_it = {torch.ops.aten.linear_backward: linear_backward_flops}
    with FlopCounterMode(display=False, custom_mapping=unknown_to_it) as counter:
        step()
    return counter.get_total_flops()


def linear_backward_flops(_, gradient_shape, weight_shape, wanted, **__) -> int:
    """Of `aten.linear_backward`, one operation on MPS, where other devices have matrix products.

    Args:
        gradient_shape: of the result's gradient, (..., out).
        weight_shape: (out, in).
        wanted: which gradients: of the input, the weight, the bias. The last one is a sum.
    """
    return 2 * math.prod(gradient_shape) * weight_shape[1] * sum(wanted[:2])


def peak_memory_gb(device: torch.device) -> float | None:
    """Peak allocation in 1e9 bytes; None where PyTorch counts none, as on MPS before 2.14."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        return torch.accelerator.max_memory_allocated() / 1e9
    except (AttributeError, RuntimeError):
        return None
