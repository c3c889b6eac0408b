"""What happens in a rank: it meets the others, trains on its share, and rank 0 measures for all.

`harness.torchrun` starts the ranks. Gradients are averaged by DistributedDataParallel.
"""

import os
import sys
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

import harness.frameworks.training
from harness import PROJECT_VERSION
from harness.clock import Clock, Team, probe_device
from harness.cores import usable_cores
from harness.disturbance import Watch
from harness.frameworks.training import require_batch, row_of
from harness.observer import Observer
from harness.process import UsageError
from harness.soak import soak_for
from harness.streams import open_streams

# A rank that is not heard of for so long ends the training; a first step may compile for minutes.
STALLED, STALLED_COMPILING = timedelta(seconds=50), timedelta(seconds=900)


def run_rank(measure: Callable, *arguments) -> dict | None:
    """What every rank runs; only rank 0 has something to say."""
    open_streams()
    if int(os.environ["RANK"]):
        # One bar is enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    row = joined(measure, *arguments)
    leave()
    return row if os.environ["RANK"] == "0" else None


@record
def joined(measure: Callable, *arguments) -> dict:
    """What a rank measures once it has met the others; what it raises is known to its parent."""
    join(arguments[-1])
    harness.frameworks.training.several = measure_training
    return measure(*arguments)


def join(options) -> None:
    """Meet the other ranks, on this rank's own device.

    Raises:
        UsageError: the ranks run different versions.
    """
    local = int(os.environ["LOCAL_RANK"])
    on_cuda = options.device in ("auto", "cuda") and torch.cuda.is_available()
    if on_cuda:
        options.device = f"cuda:{local}"
        torch.cuda.set_device(local)
    else:
        options.device = "cpu"
        threads = max(1, usable_cores() // int(os.environ["LOCAL_WORLD_SIZE"]))
        os.environ["OMP_NUM_THREADS"] = str(threads)  # accelerate would choose, and say so
        torch.set_num_threads(threads)
    patience = STALLED_COMPILING if options.compile else STALLED
    dist.init_process_group("nccl" if on_cuda else "gloo", timeout=patience)
    mine = f"torch {torch.__version__}, project {PROJECT_VERSION}"
    versions = [None] * dist.get_world_size()
    dist.all_gather_object(versions, mine)
    if len(set(versions)) > 1:
        leave()
        raise UsageError(f"the machines differ: {' / '.join(dict.fromkeys(versions))}")


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def measure_training(training, samples: int, batch_size: int, options, warmup_steps: int) -> dict:
    """As `harness.frameworks.training.measure_training`, with all ranks as one machine."""
    device = training.device
    ranks = team(device)
    require_batch(batch_size * ranks.size, samples)
    training.spread(lambda network: wrap(network, device), share)
    # Other ranks are no disturbance, and the joules of one are not all.
    watch = Watch(device.type, device.index or 0, with_siblings=True)
    clock = Clock(batch_size, samples, options.epochs, together(training.synchronize),
                  options.max_seconds, warmup_steps, Observer(watch, soak=soak_for(options)),
                  ranks)  # fmt: skip
    row = row_of(training, clock)
    with training.network.no_sync():
        longest = clock.steady_seconds or 0
        alone = probe_device(training.train_step, clock.synchronize, ranks, longest)
    return columns(row, training.network, alone * clock.samples / clock.work)


def team(device) -> Team:
    """The ranks as a clock sees them: what rank 0 decides holds for all."""

    def agree(number: float) -> float:
        said = torch.tensor([float(number)], dtype=torch.float64, device=device)
        dist.broadcast(said, 0)
        return said.item()

    return Team(dist.get_world_size(), dist.get_rank(), agree)


def together(synchronize: Callable[[], None]) -> Callable[[], None]:
    """A function that waits until the devices of all ranks have done all their work."""

    def wait():
        synchronize()
        dist.barrier()

    return wait


def wrap(model, device):
    """A model that averages its gradients over all ranks."""
    on_cuda = device.type == "cuda"
    return DistributedDataParallel(model, device_ids=[device.index] if on_cuda else None)


def share(loader) -> None:
    """Let a loader draw from this rank's share of the samples."""
    batches = loader.batch_sampler or loader.sampler  # the second where it fetches whole batches
    batches.sampler = DistributedSampler(loader.dataset, drop_last=True)


def columns(row: dict, model, speed_alone: float) -> dict:
    """A row of all ranks: the largest peak of memory, and what communication took.

    Args:
        row: the measured columns of this rank.
        model: whose gradients are averaged.
        speed_alone: samples per second of the device-only probe without averaging gradients.
    """
    peaks = [None] * dist.get_world_size()
    dist.all_gather_object(peaks, row["peak_memory_gb"])
    known = [peak for peak in peaks if peak is not None]
    gradients = [p for p in model.parameters() if p.requires_grad]
    sent = sum(p.numel() * torch.finfo(p.dtype).bits // 8 for p in gradients)
    share = 100 * (1 - row["compute_samples_per_second"] / speed_alone)
    return row | {
        "num_devices": dist.get_world_size(),
        "peak_memory_gb": max(known, default=None),
        "gradient_gb": sent / 1e9,
        "communication_percent": share,
    }
