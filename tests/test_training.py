"""The one measured training, on a fake framework whose device lags behind the host."""

import argparse
import types

import pytest
from test_clock import FakeDevice

import harness.clock
from harness.clock import Clock
from harness.frameworks import training
from harness.frameworks.training import measure_training, row_of, run_epochs

OPTIONS = argparse.Namespace(epochs=1, max_seconds=None, thermal_protocol="cold")
BATCH, SAMPLES = 8, 1600


class Fake:
    """Trains in 0.05 s a step, of which 0.02 s are the host's; loading takes the host longer."""

    device = types.SimpleNamespace(type="mps", index=None)

    def __init__(self, device: FakeDevice, loading: float = 0.0):
        self.fake, self.loading = device, loading
        self.done, self.kept, self.firsts = [], [], 0
        self.synchronize = device.synchronize

    def batches(self):
        for number in range(SAMPLES // BATCH):
            self.fake.time += self.loading
            yield [number] * BATCH, [0] * BATCH

    def run(self, clock):
        losses = run_epochs(self, self.batches, clock)
        return sum(losses) / len(losses)

    def step(self, batch):
        self.fake.queue()
        self.done.append(batch[0][0])
        return 2.0

    def keep(self, batch):
        self.kept.append(batch)

    def after_first_step(self):
        self.firsts += 1

    def train_step(self):
        self.step(self.kept[0])
        return BATCH

    def flops_per_work(self):
        return 1e9

    def peak_memory_gb(self):
        return 3.0


@pytest.fixture
def device(monkeypatch):
    fake = FakeDevice()
    monkeypatch.setattr(harness.clock.time, "perf_counter", fake.now)
    return fake


def row(fake: Fake, **changed) -> dict:
    clock = Clock(BATCH, SAMPLES, changed.pop("epochs", 1), fake.synchronize, now=fake.fake.now)
    return row_of(fake, clock)


def test_a_row_has_what_the_framework_says_and_what_follows(device):
    found = row(fake := Fake(device))
    assert (found["train_loss"], found["peak_memory_gb"]) == (2.0, 3.0)
    assert found["samples_per_second"] == pytest.approx(BATCH / 0.05, rel=0.05)
    assert found["compute_samples_per_second"] == pytest.approx(BATCH / 0.05, rel=0.05)
    assert abs(found["input_bound_percent"]) < 5
    assert found["tflops_per_second"] == pytest.approx(1e9 * found["samples_per_second"] / 1e12)
    assert fake.firsts == 1 and [batch[0][0] for batch in fake.kept] == [0]


def test_a_slow_pipeline_is_in_the_run_and_not_in_the_probe(device):
    found = row(Fake(device, loading=0.08))
    assert found["input_bound_percent"] == pytest.approx(50, abs=3)


def test_a_probe_that_does_not_wait_is_caught(device, monkeypatch):
    """The planted error: without synchronization the probe says the host's queueing rate."""
    fake = Fake(device)
    fake.synchronize = lambda: None
    assert row(fake)["compute_samples_per_second"] == pytest.approx(BATCH / 0.02, rel=0.01)


def test_the_probe_waits_at_window_edges_only(device):
    fake = Fake(device)
    fake.keep(next(fake.batches()))
    rate = harness.clock.probe_device(fake.train_step, device.synchronize)
    assert rate == pytest.approx(BATCH / 0.05, rel=0.05)
    # After the first step, the warm-up, and each window of half a second in five.
    assert device.synchronizations <= 2 + 11


def test_every_epoch_is_trained_and_the_last_ones_losses_count(device):
    fake = Fake(device)
    row(fake, epochs=2)
    assert fake.done[: 2 * SAMPLES // BATCH] == list(range(SAMPLES // BATCH)) * 2


class Falling(Fake):
    """The loss of a step is the number of its epoch."""

    def step(self, batch):
        super().step(batch)
        return 1 + (len(self.done) - 1) // (SAMPLES // BATCH)


def test_the_loss_is_the_mean_of_the_last_epochs_steps(device):
    assert row(Falling(device), epochs=2)["train_loss"] == 2


def test_joules_are_read_where_one_device_trains(device, monkeypatch):
    asked = []
    monkeypatch.setattr(training, "energy_meter", lambda *place: asked.append(place))
    for devices in (2, 1):
        measure_training(Fake(device), SAMPLES, BATCH // devices, OPTIONS, devices=devices)
    assert asked == [("mps", 0)]


def test_a_batch_larger_than_the_data_is_refused(device):
    with pytest.raises(ValueError, match="larger than the 1600 training samples"):
        measure_training(Fake(device), SAMPLES, SAMPLES + 1, OPTIONS)
    with pytest.raises(ValueError, match="batch size 2000 is larger"):
        measure_training(Fake(device), SAMPLES, 1000, OPTIONS, devices=2)


def test_in_a_rank_all_are_measured_as_one(device, monkeypatch):
    monkeypatch.setattr(training, "several", lambda *arguments: arguments)
    fake = Fake(device)
    assert measure_training(fake, SAMPLES, 8, OPTIONS) == (fake, SAMPLES, 8, OPTIONS, 3)
