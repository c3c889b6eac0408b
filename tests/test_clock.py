"""The clock on a fake asynchronous device: steps are queued and only run at `synchronize`."""

import numpy as np
import pytest

import harness.clock
from harness.clock import Clock
from harness.observer import Observer
from harness.windows import Run, Window, steady_rate, sustained_ratio, timing_columns

STEP_SECONDS = 0.05  # on the device
QUEUE_SECONDS = 0.02  # on the host


class FakeDevice:
    """A host clock and a device that lags behind it."""

    def __init__(self):
        self.time = 0.0
        self.done_at = 0.0
        self.synchronizations = 0

    def now(self):
        return self.time

    def queue(self, seconds=STEP_SECONDS):
        self.time += QUEUE_SECONDS
        self.done_at = max(self.done_at, self.time) + seconds

    def synchronize(self):
        self.synchronizations += 1
        self.time = max(self.time, self.done_at)


def run(device, clock, batches, step_seconds=STEP_SECONDS):
    clock.start()
    for samples in batches:
        device.queue(step_seconds)
        if clock.step(samples):
            break
    clock.stop()
    return clock.measurement()


def test_rate_is_the_devices_not_the_hosts():
    device = FakeDevice()
    row = run(device, Clock(8, 1600, 1, device.synchronize, now=device.now), [8] * 200)
    # The host alone could queue 400 samples a second.
    assert row["samples_per_second"] == pytest.approx(8 / STEP_SECONDS, rel=0.05)
    assert row["avg_time_per_epoch"] == pytest.approx(200 * STEP_SECONDS, rel=0.05)
    assert row["first_step_seconds"] == pytest.approx(QUEUE_SECONDS + STEP_SECONDS)


def test_no_synchronization_at_all_is_noticed():
    """The planted error: without synchronization the clock reports the host's queueing rate."""
    device = FakeDevice()
    row = run(device, Clock(8, 1600, 1, lambda: None, now=device.now), [8] * 200)
    assert row["samples_per_second"] == pytest.approx(8 / QUEUE_SECONDS, rel=0.01)


def test_device_is_not_synchronized_every_step():
    device = FakeDevice()
    clock = Clock(8, 1600, 1, device.synchronize, now=device.now)
    run(device, clock, [8] * 200)
    # Start, first step, end of warm-up, stop; and one at the end of each window.
    assert device.synchronizations == 4 + len(clock.windows)
    assert len(clock.windows) <= 200 / 10


def test_max_seconds_extrapolates_to_the_whole_epoch():
    whole, part = FakeDevice(), FakeDevice()
    full = run(whole, Clock(8, 8000, 1, whole.synchronize, now=whole.now), [8] * 1000)
    clock = Clock(8, 8000, 1, part.synchronize, max_seconds=5, now=part.now)
    estimate = run(part, clock, [8] * 1000)
    assert estimate["extrapolated"] and not full["extrapolated"]
    assert part.time < 8
    assert estimate["avg_time_per_epoch"] == pytest.approx(full["avg_time_per_epoch"], rel=0.03)


def test_smaller_last_batch_is_left_out_of_the_rate():
    device = FakeDevice()
    clock = Clock(8, 8 * 99 + 1, 2, device.synchronize, now=device.now)
    batches = ([8] * 99 + [1]) * 2
    row = run(device, clock, batches)
    assert any(not window.whole for window in clock.windows)
    whole = [w.samples / w.seconds for w in clock.windows if w.whole]
    assert min(whole) <= row["samples_per_second"] <= max(whole)


def test_run_too_short_for_a_steady_rate_has_none():
    device = FakeDevice()
    row = run(device, Clock(8, 16, 1, device.synchronize, now=device.now), [8, 8])
    assert row["samples_per_second"] is None
    assert row["avg_time_per_epoch"] > 0


def window(samples):
    return Window(1, samples, samples, 1.0, True)


def test_interval_and_sustained_ratio_by_hand():
    windows = [window(samples) for samples in (10, 12, 14)]
    rate, half_width = steady_rate(windows)
    assert rate == 12
    assert half_width == pytest.approx(4.303 * 2, rel=1e-3)
    assert sustained_ratio(windows) == pytest.approx(1.4)


def test_time_of_an_epoch_by_hand():
    """Two epochs of 50 samples in batches of 8: 96 are trained in 20 s, at 5 a second."""
    run = Run([window(5)] * 4, 8, 50, 2, 96, 20.0, first_samples=8, first_step_seconds=3.0,
              paused=False)  # fmt: skip
    whole = timing_columns(run)
    assert (whole["extrapolated"], whole["steps_per_epoch"]) == (False, 6)
    assert whole["avg_time_per_epoch"] == pytest.approx(20 * 100 / 96 / 2)
    from_the_rate = (3 + (100 - 8) / 5) / 2
    for cut in (run._replace(samples=88), run._replace(paused=True)):
        row = timing_columns(cut)
        assert row["extrapolated"] and row["avg_time_per_epoch"] == pytest.approx(from_the_rate)
    paused_at_once = timing_columns(run._replace(first_step_seconds=None, paused=True))
    assert paused_at_once["avg_time_per_epoch"] == pytest.approx((8 / 5 + 92 / 5) / 2)


def test_interval_by_hand_of_twentieths():
    # Parts of three windows, of 10 and 13 samples per second in turn; the first two are left over.
    windows = [window(10 + 3 * (i // 3 % 2) + i % 3 - 1) for i in range(60)]
    left_over = [window(99)] * 2
    rate, half_width = steady_rate(left_over + windows)
    assert half_width / rate == pytest.approx(2.093 * 1.5 * (20 / 19) ** 0.5 / 11.5, 1e-3)


def coverage(half_width, wander_windows, count=20, runs=300):
    """How often that half-width of a 10 s run's interval held the rate of a run of 120 s.

    The speed varies by 2 % from window to window, and wanders by 1.5 % over `wander_windows`.
    """
    random = np.random.default_rng(0)
    alike = np.exp(-1 / wander_windows)
    hits = 0
    for _ in range(runs):
        wander = [0.0]
        for jolt in random.normal(size=240):
            wander.append(alike * wander[-1] + (1 - alike**2) ** 0.5 * jolt)
        rates = 100 + 2 * random.normal(size=240) + 1.5 * np.array(wander[1:])
        windows = [window(rate) for rate in rates]
        start = random.integers(240 - count)
        slice_ = windows[start : start + count]
        hits += abs(steady_rate(slice_)[0] - rates.mean()) <= half_width(slice_)
    return hits / runs


@pytest.mark.parametrize("wander_windows", [10, 40])
def test_interval_of_a_short_run_holds_though_the_speed_wanders(wander_windows):
    def naive(windows):
        rates = [window.rate for window in windows]
        return 2.09 * np.std(rates, ddof=1) / len(rates) ** 0.5

    assert coverage(naive, wander_windows) < 0.8  # the planted error: independent windows
    assert coverage(lambda windows: steady_rate(windows)[1], wander_windows) > 0.9


def text_run(random, steps, wander):
    """Windows of one step each on 4 texts; a step's time follows its padded tokens."""
    tokens = 4 * random.integers(150, 513, size=steps)
    seconds = tokens / 2000 * (1 + wander * random.normal(size=steps))
    return [Window(1, 4, n, s, True) for n, s in zip(tokens, seconds, strict=True)]


def test_interval_of_texts_is_that_of_the_speed_and_of_the_sample():
    """A short run of texts is unsure by what its sample holds, not by how its texts differ."""
    random = np.random.default_rng(0)
    truth = 2000 / np.arange(150, 513).mean()
    hits, widths = [], []
    for _ in range(300):
        rate, half_width = steady_rate(text_run(random, 40, wander=0.01))
        hits.append(abs(rate - truth) <= half_width)
        widths.append(half_width / rate)
    assert np.mean(hits) > 0.9
    assert np.median(widths) < 0.2  # of samples per second it would be half the rate


def test_long_texts_at_the_end_are_no_throttling():
    short_then_long = [Window(1, 4, tokens, tokens / 1000, True) for tokens in (600, 900, 2000)]
    assert sustained_ratio(short_then_long) == pytest.approx(1)


class FakeMeter:
    """100 W, read off the fake device's clock."""

    def __init__(self, device):
        self.device = device

    def begin(self):
        self.begun = self.device.time

    def end(self):
        return 100 * (self.device.time - self.begun)


def test_energy_is_that_of_the_steady_samples():
    device = FakeDevice()
    clock = Clock(8, 1600, 1, device.synchronize, observer=Observer(energy=FakeMeter(device)),
                  now=device.now)  # fmt: skip
    row = run(device, clock, [8] * 200)
    assert row["average_power_watts"] == pytest.approx(100)
    assert row["energy_joules_per_sample"] == pytest.approx(100 * STEP_SECONDS / 8, rel=0.03)


class SlowToBegin:
    """A watch that takes two seconds to begin, such as a driver's tool that has to be started."""

    def __init__(self, device):
        self.device = device

    def begin(self):
        self.device.time += 2

    def end(self):
        self.device.time += 2

    def columns(self):
        return {}


def test_what_watching_costs_is_in_no_epoch():
    device, other = FakeDevice(), FakeDevice()
    observer = Observer(watch=SlowToBegin(device))
    watched = Clock(8, 1600, 1, device.synchronize, observer=observer, now=device.now)
    plain = Clock(8, 1600, 1, other.synchronize, now=other.now)
    seconds = [
        run(*device_and_clock, [8] * 200)["avg_time_per_epoch"]
        for device_and_clock in ((device, watched), (other, plain))
    ]
    assert seconds[0] == pytest.approx(seconds[1], rel=0.005)


def test_probe_trains_at_least_two_windows(monkeypatch):
    monkeypatch.setattr(harness.clock, "PROBE_SECONDS", 0.1)
    steps = []

    def step():
        harness.clock.time.sleep(0.2)
        steps.append(1)
        return 4

    rate = harness.clock.probe_device(step, lambda: None)
    assert rate == pytest.approx(20, rel=0.2)
    assert len(steps) >= 1 + harness.clock.WARMUP_STEPS + 4
