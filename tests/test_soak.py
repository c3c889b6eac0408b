"""Machines that slow as they warm: what is measured after a soak, and that rows say so."""

import argparse
import math
import random
import sys
import types

import pytest
import torch
from test_tables import best, row, write_rows
from tiny_training import image_row

import harness.soak
import utils
from harness.clock import Clock
from harness.frameworks import pytorch
from harness.observer import Observer
from harness.soak import COLD, SUSTAINED, Soak

STEP_SECONDS, BATCH = 0.1, 8


class Fanless:
    """Two thirds of its first speed in the end, as heat builds up; a run of it is a device's."""

    def __init__(self, minutes: float = 1.5, lost: float = 1 / 3, noise: float = 0.0):
        self.time, self.minutes, self.lost, self.noise = 0.0, minutes, lost, noise
        self.chance = random.Random(1)

    def now(self) -> float:
        return self.time

    def speed(self) -> float:
        held = 1 - self.lost * (1 - math.exp(-self.time / 60 / self.minutes))
        return held * self.chance.gauss(1, self.noise)

    def train(self, clock: Clock) -> dict:
        clock.start()
        for _ in range(clock.epochs_to_train * clock.samples_per_epoch // BATCH):
            self.time += STEP_SECONDS / self.speed()
            if clock.step(BATCH):
                break
        clock.stop()
        return clock.measurement()


def clock_of(device: Fanless, samples: int = 8_000, soak=None, **arguments) -> Clock:
    return Clock(BATCH, samples, 2, lambda: None, now=device.now, observer=Observer(soak=soak),
                 **arguments)  # fmt: skip


@pytest.mark.parametrize("limit", [None, 30.0])
def test_a_soaked_run_says_what_the_machine_sustains(limit):
    sustained = BATCH / STEP_SECONDS * 2 / 3
    device = Fanless()
    cold = device.train(clock_of(device, max_seconds=30.0))
    assert cold["samples_per_second"] > 1.3 * sustained
    device = Fanless()
    soaked = device.train(clock_of(device, soak=Soak(), max_seconds=limit))
    assert soaked["samples_per_second"] == pytest.approx(sustained, rel=0.02)
    assert soaked["avg_time_per_epoch"] == pytest.approx(8_000 / sustained, rel=0.02)
    assert 240 < soaked["soak_seconds"] < 600
    assert soaked["disturbance"] is None
    assert soaked["extrapolated"] == (limit is not None)


def test_as_many_epochs_are_steady_as_were_asked_for():
    device = Fanless()
    clock = clock_of(device, soak=Soak())
    row = device.train(clock)
    assert sum(window.samples for window in clock.windows) == pytest.approx(16_000, abs=100)
    assert row["steps_timed"] * BATCH == pytest.approx(16_000, abs=100)


def test_a_machine_that_keeps_slowing_is_measured_after_ten_minutes_and_said_to_be():
    device = Fanless(minutes=30, lost=0.9)
    row = device.train(clock_of(device, soak=Soak(), max_seconds=10.0))
    assert row["soak_seconds"] == pytest.approx(600, abs=2)
    assert row["disturbance"] == f"still changing speed after {row['soak_seconds']:.0f} s"


def test_noise_is_no_trend():
    device = Fanless(lost=0.0, noise=0.1)
    row = device.train(clock_of(device, soak=Soak(), max_seconds=10.0))
    assert row["soak_seconds"] < 200


def test_a_speed_that_jumps_about_is_not_called_steady():
    soak = Soak()
    for number in range(1200):
        over = soak.over(number / 2, 100.0 if number % 7 < 4 else 300.0)
        assert not (over and soak.steady)
    assert soak.over(600.0, 100.0) and soak.columns()["disturbance"]


def test_a_pause_is_no_change_of_speed():
    device, soak = Fanless(lost=0.0), Soak()
    clock = clock_of(device, soak=soak, max_seconds=10.0)
    clock.pauses = types.SimpleNamespace(since_last=lambda: 100 < device.time < 150)
    clock.start()
    while not clock.step(BATCH):
        device.time += 45 if 99.5 < device.time < 100 else STEP_SECONDS
    assert [s for _, s in soak.speeds] == pytest.approx([BATCH / STEP_SECONDS] * len(soak.speeds))
    assert soak.steady


def test_without_it_nothing_is_waited_for():
    device = Fanless()
    clock = clock_of(device, max_seconds=5.0)
    assert clock.epochs_to_train == 2
    assert "soak_seconds" not in device.train(clock)


def test_a_real_training_goes_on_beyond_its_epochs(monkeypatch):
    monkeypatch.setattr(harness.soak, "SPAN", 0.5)
    monkeypatch.setattr(harness.soak, "LONGEST", 1.0)
    monkeypatch.setattr("harness.clock.WINDOW_SECONDS", 0.05)
    options = argparse.Namespace(
        device="cpu", precision="fp32", compile=False, channels_last=False, seed=1, epochs=2,
        thermal_protocol=SUSTAINED, max_seconds=None,
    )  # fmt: skip
    device = pytorch.start(options)
    images = torch.zeros(64, 3, 4, 4, dtype=torch.uint8)
    data = torch.utils.data.TensorDataset(images, torch.arange(64) % 2)
    loader = torch.utils.data.DataLoader(data, 8, drop_last=True)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2))
    adam = torch.optim.Adam(model.parameters())
    monkeypatch.setattr("harness.clock.PROBE_SECONDS", 0.1)
    found = image_row(model, loader, adam, device, 8, options)
    assert 0.5 <= found["soak_seconds"] < 2
    assert found["samples_per_second"] > 0 and not found["extrapolated"]


# The command line and the tables


def test_flag(monkeypatch):
    experiment = utils.Experiment(
        "A", "a", "", "fake", "cv", "m", varied=utils.batch_sizes("1"), epochs=1
    )
    for flags, protocol in ((["--soak"], SUSTAINED), ([], COLD)):
        monkeypatch.setattr(sys, "argv", ["a", *flags])
        assert utils.parse_arguments(experiment).thermal_protocol == protocol


def test_cold_and_sustained_rows_are_never_one(tmp_path):
    write_rows(tmp_path, row(1.0, thermal_protocol=COLD), row(2.0, thermal_protocol=SUSTAINED))
    found = best(tmp_path).set_index("configuration")["speed"].to_dict()
    assert found == {"": 1.0, "sustained": 2.0}


def test_rows_of_before_were_cold(tmp_path):
    write_rows(tmp_path, row(1.0))
    [settings] = best(tmp_path)["settings"]
    assert settings["thermal_protocol"] == COLD
