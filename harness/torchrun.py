"""Several devices or machines at one training: starts ranks, one a device, on torchrun's engine.

A batch size's fresh process starts them; each trains on its own share of the samples, and rank 0
measures for all (`harness.frameworks.ranks`). Imports PyTorch only where ranks run.
"""

import functools
import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable

import psutil

from harness.cores import usable_cores
from harness.device import choose_several
from harness.process import UsageError, UserError, tell

LOOPBACK = "127.0.0.1"
SIGN_OF_LIFE = 60.0  # seconds between two, while ranks work: they talk to one another


def on_ranks(prepare: Callable, measure: Callable, options) -> tuple[Callable, Callable]:
    """Both functions of a script: themselves for one device, else for all that train together."""
    if options.num_devices == options.num_machines == 1:
        return prepare, measure
    require_address(options)
    return (
        functools.partial(prepare_ranks, prepare), functools.partial(measure_on_ranks, measure)
    )  # fmt: skip


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
    from harness.frameworks.pytorch import devices_seen

    seen = devices_seen() | {"cpu": usable_cores()}
    return choose_several(options.device, options.num_devices, seen).count


def prepare_ranks(prepare: Callable, options) -> dict:
    """The columns that all rows share, of all machines together: `4x_<machine>`."""
    devices = device_count(options) * options.num_machines
    facts = prepare(options) | {"num_devices": devices}
    if options.num_machines > 1:
        facts["machine"] = f"{options.num_machines}x_{facts['machine']}"
    return facts


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

    from harness.frameworks.ranks import run_rank

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
