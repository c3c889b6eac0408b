"""The contract that every framework is held to: devices, precision, clock, memory, operations.

What only one framework has is in a file of its own.
"""

import argparse
import time

import numpy as np
import pytest
from frameworks import CARD, FRAMEWORKS, HERE, raising

import utils
from harness.clock import Clock
from harness.device import Device
from harness.frameworks import training as training_module
from harness.frameworks.training import measure_training

MEASURED = {
    "avg_time_per_epoch", "avg_time_per_epoch_ci95", "extrapolated", "samples_per_second",
    "samples_per_second_ci95", "first_step_seconds", "sustained_ratio", "steps_timed",
    "steps_per_epoch", "train_loss", "compute_samples_per_second", "peak_memory_gb",
    "input_bound_percent", "tflops_per_second",
}  # fmt: skip
# What watched the machine knows, and leaves out where it knows nothing.
WATCHED = {
    "other_load_percent", "thermal_state", "gpu_power_limit_watts", "disturbance",
    "energy_joules_per_sample", "average_power_watts",
}  # fmt: skip
POSITIVE = {"samples_per_second", "compute_samples_per_second", "tflops_per_second",
            "peak_memory_gb", "first_step_seconds"}  # fmt: skip
BATCH, SAMPLES = 32, 256
# Multiplications and additions, of one image: 6 x 6 x 4 results of 3 x 3 x 3 taps; 3 x 3 x 5 of
# 2 x 2 x 4; 2 of 45. Twice as many backward as forward, but the images need no gradient.
FLOPS = 2 * (2 * 6 * 6 * 4 * 27 + 3 * (3 * 3 * 5 * 16 + 2 * 45))


@pytest.fixture(scope="module", params=HERE)
def framework(request):
    return FRAMEWORKS[request.param]()


@pytest.fixture(scope="module", autouse=True)
def short_probe():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.clock.PROBE_SECONDS", 0.1)
        yield


def options_of(**changed) -> argparse.Namespace:
    return argparse.Namespace(
        **{"device": "cpu", "precision": "fp32", "compile": False, "channels_last": False,
           "seed": 1, "epochs": 1, "max_seconds": None, "thermal_protocol": "cold"} | changed
    )  # fmt: skip


def build(framework, batch_size=BATCH, samples=SAMPLES, size=8, **changed):
    """The training of the tiny network on images whose brightness is their class."""
    options = options_of(**changed)
    device = framework.start(options)
    labels = np.arange(samples) % 2
    images = np.repeat((labels * 200).astype(np.uint8), size * size * 3)
    images = images.reshape(-1, size, size, 3)
    return framework.training(images, labels, batch_size, device, options)


def measure(framework, **changed) -> dict:
    training = build(framework, **changed)
    return measure_training(training, SAMPLES, BATCH, options_of(**changed))


@pytest.fixture(scope="module")
def row(framework):
    """Of ten epochs in fp32."""
    return measure(framework, epochs=10)


# Devices and precision


def test_missing_device_is_bad_usage(framework):
    there = str(framework.start(options_of(device="auto"))).partition(":")[0]
    for name in {"cuda", "mps", "cuda:99"} - {there}:
        with pytest.raises(utils.UsageError, match=f"--device={name}: .* sees no such device"):
            framework.start(options_of(device=name))


def test_the_card_of_the_number_asked_for_is_chosen(framework, monkeypatch):
    if not hasattr(framework, "second_of_two_cards"):
        pytest.skip("test_pytorch_training.py has it")
    card = framework.second_of_two_cards(monkeypatch)
    assert (str(card), card.name) == ("cuda:1", "card 1")


@pytest.mark.parametrize("operation", ["product", "convolution"])
def test_a_device_that_rounds_as_tf32_does_is_refused(framework, monkeypatch, operation):
    framework.start(options_of())
    owner, name = framework.operations[operation]
    exact = getattr(owner, name)

    def rounded(operand, *others, **keywords):
        # Of the sum, a float32 has no more than 10 bits left after the point.
        return exact((operand + 2.0**13) - 2.0**13, *others, **keywords)

    monkeypatch.setattr(owner, name, rounded)
    with pytest.raises(utils.UsageError, match="--precision=fp32: .*TF32.*NVIDIA_TF32_OVERRIDE"):
        framework.start(options_of())


@pytest.mark.parametrize("operation", ["product", "convolution"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_precision_that_the_device_lacks_is_bad_usage(framework, monkeypatch, precision, operation):
    if precision not in framework.lacks:
        framework.start(options_of(precision=precision))
        monkeypatch.setattr(*framework.operations[operation], raising(framework.no_kernel))
    with pytest.raises(utils.UsageError, match=f"--precision={precision}: .*cpu.*use fp32"):
        framework.start(options_of(precision=precision))


@pytest.mark.parametrize(
    ("capability", "precision", "refused"),
    [((7, 5), "bf16", True), ((7, 0), "bf16", True), ((7, 5), "fp16", False),
     ((8, 0), "bf16", False)],
)  # fmt: skip
def test_bf16_by_emulation_is_refused(framework, monkeypatch, capability, precision, refused):
    card = framework.card(monkeypatch, capability)
    if not refused:
        framework.module.require_precision(card, precision)
        return
    with pytest.raises(utils.UsageError, match=f"--precision=bf16: {CARD} has no bf16"):
        framework.module.require_precision(card, precision)


# The clock


def waits_of_run(framework, monkeypatch, every_step: bool) -> tuple[int, int, int]:
    """How often a run waits for the device, how often it should, and the number of its steps."""
    waits = []
    with monkeypatch.context() as patch:
        framework.count_waits(patch, waits)
        training = build(framework, batch_size=1, samples=400)
        clock = Clock(1, 400, 1, training.synchronize)
        start, step, stop = clock.start, clock.step, clock.stop
        patch.setattr(clock, "start", lambda: waits.clear() or start())
        patch.setattr(clock, "stop", lambda: stop() or waits_until_stop.extend(waits))
        if every_step:
            patch.setattr(clock, "step", lambda samples: framework.wait() or step(samples))
        waits_until_stop = []
        training.run(clock)
    # At the start, after the first step, after the warm-up, at every window's end and at the stop.
    return len(waits_until_stop), 4 + len(clock.windows), clock.steps


def test_device_is_waited_for_at_window_edges_only(framework, monkeypatch):
    waited, edges, steps = waits_of_run(framework, monkeypatch, every_step=False)
    assert waited == edges < steps == 400
    waited, edges, steps = waits_of_run(framework, monkeypatch, every_step=True)
    assert waited == edges + steps


def reported_over_true(training, synchronize) -> float:
    """The clock's rate of a few heavy steps, over that of a stopwatch which really waits."""
    clock = Clock(128, 128 * 10, 1, synchronize)
    training.run(clock)
    training.synchronize()
    start = time.perf_counter()
    for _ in range(6):
        training.train_step()
    training.synchronize()
    return clock.measurement()["samples_per_second"] / (6 * 128 / (time.perf_counter() - start))


def test_the_clock_waits_for_work_that_goes_on(framework, monkeypatch):
    training = build(framework, batch_size=128, samples=128 * 10, size=64)
    assert 0.5 < reported_over_true(training, training.synchronize) < 2
    if framework.is_lazy_here:
        # The planted error: nobody waits for what a step has only asked for.
        framework.make_steps_lazier(monkeypatch)
        training = build(framework, batch_size=128, samples=128 * 10, size=64)
        assert reported_over_true(training, lambda: None) > 2


def test_max_seconds_ends_within_an_epoch(framework):
    training = build(framework, batch_size=1, samples=50_000)
    clock = Clock(1, 50_000, 1, training.synchronize, max_seconds=0.5)
    loss = training.run(clock)
    row = clock.measurement()
    assert row["extrapolated"] and 0 < row["steps_timed"] < clock.steps < 49_000
    assert row["steps_per_epoch"] == 50_000 and loss < 1


def test_smaller_last_batch_is_left_out_and_its_time_is_counted(framework):
    training = build(framework, samples=70)
    clock = Clock(BATCH, 70, 2, training.synchronize)
    training.run(clock)
    row = clock.measurement()
    assert (clock.steps, clock.samples, row["steps_per_epoch"]) == (4, 128, 2)
    assert not row["extrapolated"]
    assert row["avg_time_per_epoch"] == pytest.approx(clock.total_seconds / 128 * 70)


def test_the_probes_steps_copy_from_the_host_as_the_runs_do(framework, monkeypatch):
    if not hasattr(framework, "watch_copies"):
        pytest.skip("no copy of it can be seen")
    copies, in_run, steps = [], [], []
    probe = training_module.probe_device

    def watched_probe(train_step, *others):
        in_run.extend(copies)
        copies.clear()
        return probe(lambda: steps.append(1) or train_step(), *others)

    monkeypatch.setattr(training_module, "probe_device", watched_probe)
    training = build(framework)
    framework.watch_copies(monkeypatch, training, copies)
    training.flops_per_work = lambda: 0.0  # is no step
    measure_training(training, SAMPLES, BATCH, options_of())
    assert in_run and in_run[0] and set(in_run) == set(copies) == {in_run[0]}
    assert len(copies) / len(steps) == len(in_run) / (SAMPLES // BATCH)


# Training


def test_loss_falls_on_learnable_data(framework, row):
    assert row["train_loss"] < 0.1
    assert row["train_loss"] < measure(framework)["train_loss"] / 2


@pytest.mark.parametrize("changed", [{"precision": "bf16"}, {"precision": "fp16"},
                                     {"compile": True}], ids=str)  # fmt: skip
def test_loss_falls_in_mixed_precision_and_compiled(framework, changed):
    if changed.get("precision") in framework.lacks:
        pytest.skip("its processor cannot do it")
    assert measure(framework, epochs=10, **changed)["train_loss"] < 0.1


def test_compile_that_compiles_nothing_is_an_error(framework, monkeypatch):
    failure = pytest.raises(RuntimeError, match="--compile: ")
    with framework.broken_compiler(monkeypatch), failure:
        measure(framework, compile=True)


def test_batch_larger_than_the_data_is_an_error_that_says_so(framework):
    training = build(framework)
    with pytest.raises(ValueError, match="batch size 512 is larger than the 256"):
        measure_training(training, SAMPLES, 512, options_of())


def test_full_batches_hold_every_sample_at_most_once(framework):
    if not hasattr(framework, "batches"):
        pytest.skip("Keras makes its batches")
    features, labels = np.arange(70, dtype=np.int32).reshape(70, 1), np.arange(70)
    batches = [list(map(np.array, part)) for part in framework.batches(features, labels, 32)]
    assert [len(labels) for _, labels in batches] == [32, 32]
    seen = np.concatenate([labels for _, labels in batches]).tolist()
    assert len(set(seen)) == 64 and set(seen) <= set(range(70)) and seen != sorted(seen)
    assert all(np.array_equal(features[:, 0], labels) for features, labels in batches)


# The row


def test_columns_are_the_same_whatever_framework(framework, row):
    assert MEASURED <= set(row) <= MEASURED | WATCHED
    assert all(row[name] > 0 for name in POSITIVE)
    device = framework.start(options_of())
    threads = {"threads"} if framework.counts_threads else set()
    assert set(framework.facts(device)) == set(Device("cpu").columns("")) | threads
    # Nothing was unusual, no card computed, and the run was short.
    may_be_empty = {"sustained_ratio", "disturbance", "thermal_state", "gpu_power_limit_watts"}
    empty = {name for name, value in row.items() if value is None and "ci95" not in name}
    assert empty <= may_be_empty


def test_operations_are_those_of_the_network(row):
    assert row["tflops_per_second"] == pytest.approx(FLOPS * row["samples_per_second"] / 1e12)


def test_peak_memory_is_counted_anew_after_the_first_step_on_cuda_only(framework, monkeypatch):
    events = []
    training = build(framework, samples=4 * BATCH)
    clock = Clock(BATCH, 4 * BATCH, 1, training.synchronize)
    forget, step = training.after_first_step, clock.step
    monkeypatch.setattr(training, "after_first_step", lambda: events.append("anew") or forget())
    monkeypatch.setattr(clock, "step", lambda samples: events.append("step") or step(samples))
    training.run(clock)
    assert events == ["step", "anew", "step", "step", "step"]
    if hasattr(framework, "watch_resets"):
        resets = []
        framework.watch_resets(monkeypatch, resets)
        for kind in ("cpu", "mps", "cuda"):
            training.device = framework.device(kind)
            forget()
        assert resets == [framework.device("cuda")]


def test_memory_that_the_framework_does_not_tell_is_an_empty_cell(framework, monkeypatch):
    if not hasattr(framework, "hide_memory"):
        pytest.skip("it always tells")
    training = build(framework)
    for device in framework.hide_memory(monkeypatch):
        training.device = device
        assert training.peak_memory_gb() is None
