"""Selfcheck must notice what makes numbers wrong: each fault is planted, and found."""

import json
import sys

import numpy as np
import pytest
import torch
from planted_checks import crash, fine, missed
from test_clock import FakeDevice

import harness.clock
import harness.windows
import pytorch_test_computer_vision_cifar100 as cifar100
import selfcheck
import selfchecks.ceilings
import selfchecks.checks
import selfchecks.pytorch
from harness.windows import Window


def run_main(monkeypatch, tmp_path, checks):
    monkeypatch.setattr(selfcheck, "CHECKS", checks)
    monkeypatch.setattr(
        sys, "argv", ["selfcheck.py", f"--results_dir={tmp_path}", "--machine_name=M"]
    )
    with pytest.raises(SystemExit) as ended:
        selfcheck.main()
    return ended.value.code, json.loads((tmp_path / "selfcheck" / "M.json").read_text())


def test_all_held(monkeypatch, tmp_path, capsys):
    code, report = run_main(monkeypatch, tmp_path, [fine])
    assert code == 0 and report["findings"][0]["verdict"] == "ok"
    assert report["peak_tflops_measured"] == {"fp32": 2.5, "bf16": None}
    assert "MISSED" not in capsys.readouterr().out


def test_a_missed_target_and_a_broken_check_are_said(monkeypatch, tmp_path, capsys):
    code, report = run_main(monkeypatch, tmp_path, [missed, crash, fine])
    assert code == 1
    assert [f["verdict"] for f in report["findings"]] == ["MISSED", "ok", "", ""]
    assert report["not_checked"] == ["crash: ValueError: no such thing"]
    assert "MISSED" in capsys.readouterr().out


@pytest.fixture
def one_thread():
    """Two threads that wait for each other are slowed manyfold by any third program."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_slow_loop_is_noticed(monkeypatch, one_thread):
    step = harness.clock.Clock.step

    def slow_step(*arguments):
        harness.clock.time.sleep(0.5)
        return step(*arguments)

    monkeypatch.setattr(harness.clock.Clock, "step", slow_step)
    ratios = selfchecks.pytorch.loop_ratios(batch_size=4, steps=1, pairs=6)
    assert selfchecks.checks.median_at_least("loop", ratios, 0.98).verdict == "MISSED"


def test_noise_is_told_from_a_slow_loop():
    noisy = [0.9, 0.97, 0.95, 1.02, 1.05, 0.96]
    slow = [0.9, 0.91, 0.95, 0.92, 0.89, 0.9]
    assert selfchecks.checks.median_at_least("loop", noisy, 0.98).verdict == "unsure"
    assert selfchecks.checks.median_at_least("loop", slow, 0.98).verdict == "MISSED"
    assert selfchecks.checks.median_at_least("loop", [1.0] * 6, 0.98).verdict == "ok"


def test_missing_synchronization_is_noticed():
    def verdict(synchronize):
        return selfchecks.checks.judge_clock(
            selfchecks.checks.reported_over_true(
                device.queue, synchronize, device.synchronize, seconds=30, now=device.now
            )
        ).verdict

    device = FakeDevice()
    assert verdict(device.synchronize) == "ok"
    assert verdict(lambda: None) == "MISSED"


def windows(rates):
    return [Window(5, 5 * 8, 5 * 8, 5 * 8 / rate, True) for rate in rates]


def test_too_narrow_interval_is_noticed(monkeypatch):
    quiet = windows(np.random.default_rng(0).normal(80, 2, size=200))
    assert [f.verdict for f in selfchecks.checks.judge_slices(quiet)] == ["ok", "", "ok"]
    honest = harness.windows.steady_rate

    def too_narrow(windows):
        rate, half_width = honest(windows)
        return rate, half_width / 10

    monkeypatch.setattr(selfchecks.checks, "steady_rate", too_narrow)
    assert selfchecks.checks.judge_slices(quiet)[2].verdict == "MISSED"


def test_drift_makes_short_estimates_wrong():
    drifting = windows(np.linspace(100, 60, 200))
    assert selfchecks.checks.judge_slices(drifting)[0].verdict == "MISSED"


def test_appetite_is_that_of_the_best_batch_size(monkeypatch):
    tried = []

    def step_seconds(train_step, synchronize):
        tried.append(train_step)
        return {8: 0.1, 16: 0.125, 32: 1.5}[train_step]

    monkeypatch.setattr(selfchecks.checks, "step_seconds", step_seconds)
    assert selfchecks.checks.appetite(lambda batch_size: (batch_size, None, None)) == 16 / 0.125
    assert tried == [8, 16, 32]


def test_starved_loader_is_noticed(monkeypatch):
    class Starved:
        def __init__(self, dataset):
            self.dataset = dataset

        def __iter__(self):
            for start in range(0, 96, 32):
                harness.clock.time.sleep(2)
                yield self.dataset.__getitems__(list(range(start, start + 32)))

    monkeypatch.setattr(cifar100, "make_loader", lambda data, *rest: Starved(data))
    monkeypatch.setattr(selfchecks.checks, "appetite", lambda make_step: 50.0)
    assert selfchecks.checks.pipeline_cifar100(quick=True)[1].verdict == "MISSED"


def test_noisy_machine_is_noticed():
    quiet, noisy = [100.0, 101.0, 99.0, 100.0, 100.5, 99.5], [100.0, 120.0, 90.0, 80.0, 110.0, 90.0]
    assert selfchecks.checks.judge_blocks(quiet)[1].verdict == "ok"
    assert selfchecks.checks.judge_blocks(noisy)[1].verdict == "MISSED"


def test_a_product_has_the_operations_that_are_counted():
    multiply, operations = selfchecks.ceilings.matrix_product("fp32", 64)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        multiply()
    assert counter.get_total_flops() == operations
