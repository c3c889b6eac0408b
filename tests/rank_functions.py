"""What ranks run in the tests: a module that their fresh processes can import."""

import argparse
import os
import signal
import sys
import time
from datetime import timedelta

import harness.clock
from harness import torchrun
from harness.frameworks import ranks

STEPS, BATCH = 20, 8


def options(**changed):
    given = dict(num_devices=2, num_machines=1, machine_rank=0, main_address=None,
                 join_seconds=30.0, device="cpu", compile=False, precision="fp32",
                 channels_last=False, seed=1, thermal_protocol="cold", epochs=1,
                 max_seconds=0.5)  # fmt: skip
    return argparse.Namespace(**given | changed)


def weights_after_training(options) -> dict:
    """Plain gradient descent on fixed batches of 16, of which each rank has its part."""
    import torch

    torch.manual_seed(1)
    batches = torch.randn(STEPS, 2 * BATCH, 4)
    targets = batches.sum(-1, keepdim=True).tanh()
    torch.manual_seed(int(os.environ.get("RANK", 0)) + 5)  # unlike on every rank, until wrapped
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    network, mine = model, slice(None)
    if "RANK" in os.environ:
        network = ranks.wrap(model, torch.device("cpu"))
        first = int(os.environ["RANK"]) * BATCH
        mine = slice(first, first + BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch, target in zip(batches, targets, strict=True):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(network(batch[mine]), target[mine]).backward()
        optimizer.step()
    return {"weights": torch.cat([part.flatten() for part in model.parameters()]).tolist()}


def tiny_row(batch_size, options) -> dict:
    """A row of the protocol, of a network that trains in no time."""
    import torch
    from tiny_training import image_row

    from harness.frameworks import pytorch

    harness.clock.PROBE_SECONDS = 0.3
    device = pytorch.start(options)
    images = torch.zeros(64 * batch_size, 3, 8, 8, dtype=torch.uint8)
    data = torch.utils.data.TensorDataset(images, torch.zeros(len(images), dtype=torch.long))
    loader = torch.utils.data.DataLoader(data, batch_size, shuffle=True, drop_last=True)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 100))
    optimizer = torch.optim.Adam(model.parameters())
    return image_row(model, loader, optimizer, device, batch_size, options)


class Planted:
    """A function in whose ranks something is otherwise from the beginning on."""

    def __init__(self, function, name: str, value):
        self.parts = function, name, value

    def __setstate__(self, state):
        self.parts = function, name, value = state["parts"]
        setattr(ranks, name, value or str(os.getpid()))

    def __call__(self, *arguments):
        return self.parts[0](*arguments)


def second_rank_raises(options):
    if os.environ["RANK"] == "1":
        raise ValueError("the model is wrong")
    time.sleep(60)


def second_rank_is_killed(options):
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def second_rank_hangs(options):
    import torch.distributed as dist

    if os.environ["RANK"] == "1":
        time.sleep(60)
    dist.barrier()


def nothing(options):
    return {}


def tiny_row_of_an_hour(batch_size, options) -> dict:
    print("training", flush=True)
    return tiny_row(batch_size, options)


def machine(rank: str, address: str, seconds: str = "") -> None:
    """One of two machines, as a program of its own."""
    ours = options(num_devices=1, num_machines=2, machine_rank=int(rank), main_address=address,
                   join_seconds=15.0)  # fmt: skip
    measure = tiny_row
    if seconds:
        measure = Planted(tiny_row_of_an_hour, "STALLED", timedelta(seconds=8))
        ours.max_seconds, ours.epochs = float(seconds), 10**6
    try:
        print(torchrun.measure_on_ranks(measure, 4, ours).get("num_devices", "nothing to say"))
    except Exception as error:  # noqa: BLE001 - what a test wants to read
        print(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    machine(*sys.argv[1:])
