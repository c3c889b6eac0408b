"""Several devices or machines at one training: ranks on the engine of torchrun, one device each.

A batch size's fresh process starts them; each trains on its own share of the samples with
DistributedDataParallel, and rank 0 measures for all. Imports PyTorch only where ranks run.
"""

import functools
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import psutil

import harness.frameworks.training
from harness import PROJECT_VERSION
from harness.clock import Clock, Team, probe_device
from harness.device import choose_several
from harness.disturbance import Watch
from harness.frameworks.training import require_batch, row_of
from harness.machine import usable_cores
from harness.observer import Observer
from harness.process import UsageError, UserError, tell
from harness.soak import soak_for
from harness.streams import open_streams

# A rank that is not heard of for so long ends the training; a first step may compile for minutes.
STALLED, STALLED_COMPILING = timedelta(seconds=50), timedelta(seconds=900)
LOOPBACK = "127.0.0.1"
SIGN_OF_LIFE = 60.0  # seconds between two, while ranks work: they talk to one another


def several(options) -> bool:
    """Whether the command line asks for more than one device."""
    return options.num_devices != 1 or options.num_machines > 1


def on_ranks(measure: Callable, options) -> Callable:
    """`measure` itself for one device; else a function that runs it on every rank."""
    return functools.partial(measure_on_ranks, measure) if several(options) else measure


def require_address(options) -> None:
    """Raises UsageError where several machines could not find one another."""
    if options.num_machines == 1:
        return
    if not re.fullmatch(r"\S+:\d+", options.main_address or ""):
        raise UsageError("--nnodes: --master_addr must name machine 0, and --master_port its port")
    if not 0 <= options.machine_rank < options.num_machines:
        raise UsageError(
            f"--node_rank={options.machine_rank}: from 0 to {options.num_machines - 1}"
        )


def device_count(options) -> int:
    """Devices of this machine to train on.

    Raises:
        UsageError: there are not that many, or the kind has only one.
    """
    import torch

    gpu = torch.accelerator.current_accelerator(check_available=True)
    seen = {gpu.type: torch.accelerator.device_count()} if gpu else {}
    seen |= {"cpu": usable_cores()}
    return choose_several(options.device, options.num_devices, seen).count


def total(options) -> int:
    """Devices that train together, of all machines."""
    return device_count(options) * options.num_machines if several(options) else 1


def tag(machine: str, options) -> str:
    """`4x_<machine>` where so many machines train together."""
    return f"{options.num_machines}x_{machine}" if options.num_machines > 1 else machine


# In the fresh process: start the ranks, and say how they ended


def measure_on_ranks(measure: Callable, *arguments) -> dict:
    """Run `measure` on every rank; returns the columns of rank 0, empty on other machines.

    Raises:
        RuntimeError: a rank failed; the first one that did, and its reason, are named.
        UserError: a machine did not join.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    *point, options = arguments
    for name in ("torch.distributed", "torch.distributed.elastic", "torch.multiprocessing.spawn"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what they say is in the row
    devices = device_count(options)
    config = LaunchConfig(
        min_nodes=options.num_machines,
        max_nodes=options.num_machines,
        nproc_per_node=devices,
        run_id="_".join(map(str, ["speed", *point])),
        rdzv_backend="c10d",
        rdzv_endpoint=options.main_address or f"{LOOPBACK}:0",
        rdzv_configs={
            "timeout": options.join_seconds,
            "join_timeout": options.join_seconds,
            "last_call_timeout": 1,
            "is_host": options.machine_rank == 0,
        },
        max_restarts=0,
        local_addr=own_address(options.main_address),
    )
    # Both choose by the host's name otherwise, which may be that of no network.
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = interface(
        config.local_addr
    )
    threading.Thread(target=show_life, daemon=True).start()
    try:
        rows = elastic_launch(config, run_rank)(measure, *arguments)
    except ChildFailedError as error:
        raise RuntimeError(reason(*error.get_first_failure())) from None
    except (RendezvousError, TimeoutError) as error:
        who = f"--nnodes={options.num_machines}: not all machines"
        if options.num_machines == 1:
            who = f"--num_devices={options.num_devices}: this machine's own ranks have not"
        raise UserError(
            f"{who} joined at {config.rdzv_endpoint} within {options.join_seconds:.0f} s ({error})"
        ) from None
    return rows.get(0) or {}


def own_address(main_address: str | None) -> str:
    """This machine's address as machine 0 sees it; of one machine, where no name resolves."""
    if main_address is None:
        return LOOPBACK
    host, _, port = main_address.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # connecting sends nothing
        try:
            probe.connect((host, int(port)))
        except OSError as error:
            raise UserError(f"--master_addr={host}: {error.strerror}") from None
        return probe.getsockname()[0]


def interface(address: str) -> str:
    """The network interface that has an address.

    Raises:
        UserError: there is none.
    """
    for name, found in psutil.net_if_addrs().items():
        if address in [one.address for one in found]:
            return name
    raise UserError(
        f"--num_devices: no network interface here has the address {address}: is it up?"
    )


def show_life() -> None:
    while True:
        tell("ranks at work")
        time.sleep(SIGN_OF_LIFE)


def reason(rank: int, failure) -> str:
    """Which rank failed first, and why, in one line."""
    if failure.exitcode < 0 and not isinstance(failure.message, dict):
        name = signal.Signals(-failure.exitcode).name
        memory = " (often: out of memory)" if name == "SIGKILL" else ""
        return f"rank {rank}: ended by {name}{memory}"
    # What a rank raised comes as a record of which this is the last line of the traceback.
    said = failure.message["message"] if isinstance(failure.message, dict) else failure.message
    return f"rank {rank}: {' '.join(said.split())}"


def run_rank(measure: Callable, *arguments) -> dict | None:
    """What every rank runs; only rank 0 has something to say."""
    from torch.distributed.elastic.multiprocessing.errors import record

    open_streams()
    if int(os.environ["RANK"]):
        # One bar is enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    row = record(measure)(*arguments)
    leave()
    return row if os.environ["RANK"] == "0" else None


# In a rank


def size() -> int:
    """How many ranks train together; 1 where this process was not started as one of several."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def join(options) -> None:
    """Meet the other ranks, on this rank's own device; nothing with one device.

    Raises:
        UsageError: the ranks run different versions.
    """
    import torch
    import torch.distributed as dist

    if size() == 1 or dist.is_initialized():
        return
    harness.frameworks.training.several = measure_training
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
    versions = [None] * size()
    dist.all_gather_object(versions, mine)
    if len(set(versions)) > 1:
        leave()
        raise UsageError(f"the machines differ: {' / '.join(dict.fromkeys(versions))}")


def leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def measure_training(training, samples: int, batch_size: int, options, warmup_steps: int) -> dict:
    """As `harness.frameworks.training.measure_training`, with all ranks as one machine."""
    device = training.device
    ranks = team(device)
    require_batch(batch_size * ranks.size, samples)
    training.spread(lambda network: wrap(network, device))
    # Other ranks are no disturbance, and the joules of one are not all.
    watch = Watch(device.type, device.index or 0, with_siblings=True)
    clock = Clock(batch_size, samples, options.epochs, together(training.synchronize),
                  options.max_seconds, warmup_steps, Observer(watch, soak=soak_for(options)),
                  ranks)  # fmt: skip
    row = row_of(training, clock)
    with training.network.no_sync():
        alone = probe_device(training.train_step, clock.synchronize, ranks)
    return columns(row, training.network, alone * clock.samples / clock.work)


def team(device) -> Team:
    """The ranks as a clock sees them: what rank 0 decides holds for all."""
    import torch
    import torch.distributed as dist

    def agree(number: float) -> float:
        said = torch.tensor([float(number)], dtype=torch.float64, device=device)
        dist.broadcast(said, 0)
        return said.item()

    return Team(size(), dist.get_rank(), agree)


def together(synchronize: Callable[[], None]) -> Callable[[], None]:
    """A function that waits until the devices of all ranks have done all their work."""
    import torch.distributed as dist

    def wait():
        synchronize()
        dist.barrier()

    return wait


def sampler(dataset):
    """Shuffled indices of a data set, of this rank's share where there are several."""
    from torch.utils.data import DistributedSampler, RandomSampler

    return RandomSampler(dataset) if size() == 1 else DistributedSampler(dataset, drop_last=True)


def wrap(model, device):
    """The model itself, or one that averages its gradients over all ranks."""
    from torch.nn.parallel import DistributedDataParallel

    if size() == 1:
        return model
    return DistributedDataParallel(
        model, device_ids=[device.index] if device.type == "cuda" else None
    )


def columns(row: dict, model, speed_alone: float) -> dict:
    """A row of all ranks: the largest peak of memory, and what communication took.

    Args:
        row: the measured columns of this rank.
        model: whose gradients are averaged.
        speed_alone: samples per second of the device-only probe without averaging gradients.
    """
    import torch
    import torch.distributed as dist

    peaks = [None] * size()
    dist.all_gather_object(peaks, row["peak_memory_gb"])
    known = [peak for peak in peaks if peak is not None]
    gradients = [p for p in model.parameters() if p.requires_grad]
    sent = sum(p.numel() * torch.finfo(p.dtype).bits // 8 for p in gradients)
    share = 100 * (1 - row["compute_samples_per_second"] / speed_alone)
    return row | {
        "num_devices": size(),
        "peak_memory_gb": max(known, default=None),
        "gradient_gb": sent / 1e9,
        "communication_percent": share,
    }
