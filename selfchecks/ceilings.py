"""What the device can do at best, which speeds can be read against: products, memory."""

import argparse

from harness.process import UsageError
from selfchecks.findings import Finding, figure
from selfchecks.pairs import shortest_seconds

MATRIX_PRODUCT = "matrix product, "  # before the precision, in the name of a finding


def ceilings(quick: bool) -> list[Finding]:
    found = []
    for precision in ("fp32", "bf16", "fp16"):
        try:
            tflops = peak_tflops(precision)
        except UsageError:
            tflops = None  # this device does not compute in that precision
        found.append(figure(MATRIX_PRODUCT + precision, tflops, "TFLOP/s"))
    triad, moved, where = stream_triad()
    bandwidth = moved / shortest_seconds(triad) / 1e9
    return [*found, figure(f"memory bandwidth, STREAM triad, {where}", bandwidth, "GB/s")]


def peak_tflops(precision: str, seconds: float = 0.1) -> float:
    """The best rate of matrix products, doubled in size until one takes longer than `seconds`."""
    best, size, took = 0.0, 256, 0.0
    while took < seconds and size <= 16384:
        multiply, operations = matrix_product(precision, size)
        took = shortest_seconds(multiply)
        best = max(best, operations / took / 1e12)
        size *= 2
    return best


def matrix_product(precision: str, size: int):
    """A square matrix product on the device that waits until it is done, and its operations."""
    import torch

    from harness.frameworks import pytorch

    options = argparse.Namespace(device="auto", seed=1, precision=precision)
    device = pytorch.start(options)
    a, b = torch.randn(2, size, size, device=device).to(pytorch.DTYPES[precision])
    synchronize = pytorch.synchronize(device)

    def multiply():
        torch.mm(a, b)
        synchronize()

    return multiply, 2 * size**3


def stream_triad(elements: int = 2**27):
    """a = b + 3 c over arrays far larger than any cache, as STREAM counts it (J. McCalpin, 1995).

    Returns:
        The triad, which waits until it is done; the bytes that it reads and writes; and by what:
        all cores that PyTorch uses, or the GPU.
    """
    import torch

    from harness.frameworks import pytorch

    device = pytorch.choose_device("auto")
    a, b, c = torch.ones(3, elements, device=device)
    synchronize = pytorch.synchronize(device)
    where = f"{torch.get_num_threads()} threads" if device.type == "cpu" else device.type
    moved = 3 * a.element_size() * elements
    return lambda: (torch.add(b, c, alpha=3, out=a), synchronize()), moved, where
