"""How fast the device reads and writes memory: the limit that a language model runs into."""


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
