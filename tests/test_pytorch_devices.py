"""What PyTorch is told and asked on devices that are not here: stand-ins, and the CPU."""

import argparse
import json
import math
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from result_files import training_row

import harness.environment
import harness.frameworks.trainer
import pytorch_test_computer_vision_cifar100 as cifar100
import pytorch_test_computer_vision_food101 as food101
import utils
from harness.clock import Clock
from harness.columns import COLUMNS
from harness.frameworks import pytorch, training
from harness.results import append_row, read_rows
from harness.terminal import is_nonsense, verdicts
from reporting.check import check_loss
from reporting.speeds import is_good, speeds
from reporting.tables import load_results

ROOT = Path(__file__).parent.parent
CPU, CUDA, MPS = map(torch.device, ("cpu", "cuda", "mps"))
OPTIONS = argparse.Namespace(
    device="cpu", precision="fp32", compile=False, channels_last=False, seed=1, epochs=1,
    max_seconds=None, thermal_protocol="cold",
)  # fmt: skip


# Precision


FLAGS = """
import json, torch
from harness.frameworks import pytorch
pytorch.forbid_tf32()
backends, read = torch.backends, torch._C._get_fp32_precision_getter
print(json.dumps([*(read("cuda", part) for part in ("matmul", "conv", "rnn")),
                  backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32]))
"""


@pytest.mark.parametrize("allowed", [{}, {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}])
def test_tf32_is_off_in_both_interfaces_whatever_the_environment_says(allowed):
    done = subprocess.run(
        [sys.executable, "-c", FLAGS], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **allowed},
    )  # fmt: skip
    assert json.loads(done.stdout) == ["ieee", "ieee", "ieee", False, False]
    assert done.stderr == ""


def test_tf32_is_off_before_pytorch_2_9(monkeypatch):
    older = types.SimpleNamespace(
        cuda=types.SimpleNamespace(matmul=types.SimpleNamespace(allow_tf32=True)),
        cudnn=types.SimpleNamespace(allow_tf32=True),
    )
    monkeypatch.setattr(pytorch.torch, "backends", older)
    pytorch.forbid_tf32()
    assert (older.cuda.matmul.allow_tf32, older.cudnn.allow_tf32) == (False, False)


def test_variables_that_change_what_is_measured_are_not_heeded(monkeypatch, capsys):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    monkeypatch.delenv("KERAS_MAX_EPOCHS", raising=False)
    harness.environment.settle_environment()
    assert not set(harness.environment.OVERRIDES) & set(os.environ)
    said = capsys.readouterr().out
    assert "NVIDIA_TF32_OVERRIDE is set" in said and "PYTORCH_ENABLE_MPS_FALLBACK is set" in said
    assert "KERAS_MAX_EPOCHS" not in said


# Floating-point operations


@pytest.mark.parametrize(("wanted", "products"), [((True, True, True), 2), ((False, True, True), 1),
                                                  ((True, False, False), 1)])  # fmt: skip
def test_linear_backward_of_mps_is_counted(wanted, products):
    inputs = torch.empty(4, 5, 6, device="meta")
    gradient, weight = torch.empty(4, 5, 7, device="meta"), torch.empty(7, 6, device="meta")
    counted = pytorch.count_flops(
        lambda: torch.ops.aten.linear_backward(inputs, gradient, weight, wanted)
    )
    assert counted == products * 2 * (4 * 5) * 6 * 7


# The same step in the run and in the probe


def test_trainers_probe_copies_from_the_host_too(monkeypatch):
    sent = []
    monkeypatch.setattr(
        harness.frameworks.trainer, "send_to_device",
        lambda batch, device, non_blocking: sent.append((device, non_blocking)) or batch,
    )  # fmt: skip
    trainer = types.SimpleNamespace(
        optimizer=types.SimpleNamespace(param_groups=[], step=lambda: None),
        args=types.SimpleNamespace(
            device=MPS, max_grad_norm=1,
            accelerator_config=types.SimpleNamespace(non_blocking=False),
        ),
        accelerator=types.SimpleNamespace(clip_grad_norm_=lambda *_: None),
        model=torch.nn.Linear(1, 1), model_wrapped=torch.nn.Linear(1, 1), tokens_of_step=7,
        training_step=lambda *_: None,
    )  # fmt: skip
    step = harness.frameworks.trainer.make_train_step(trainer, [{}, {}])
    assert [step(), step()] == [7, 7] and sent == [(MPS, False)] * 2


def test_whole_and_extrapolated_epochs_agree_where_batches_do_not_divide_the_data():
    """Of 100 samples 96 are trained on; both kinds of row say what 100 take."""
    rows = []
    for max_seconds in (None, 3):
        now = [0.0]
        clock = Clock(32, 100, 3, lambda: None, max_seconds, now=lambda now=now: now[0])
        clock.start()
        for _ in range(9):
            now[0] += 0.8
            if clock.step(32):
                break
        clock.stop()
        rows.append(clock.measurement())
    whole, part = rows
    assert (whole["extrapolated"], part["extrapolated"]) == (False, True)
    assert whole["avg_time_per_epoch"] == pytest.approx(2.5) == part["avg_time_per_epoch"]
    assert whole["steps_per_epoch"] == part["steps_per_epoch"] == 3


def test_compile_that_compiles_nothing_is_bad_usage(monkeypatch):
    from torch._dynamo.utils import counters

    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    counters.clear()
    with pytest.raises(utils.UsageError, match="--compile: .*compiled nothing"):
        pytorch.require_compiler(CPU)


def test_a_gpu_is_waited_for():
    assert pytorch.synchronize(CUDA) is pytorch.synchronize(MPS) is torch.accelerator.synchronize


# Adam


@pytest.mark.parametrize(
    ("device", "precision", "fused"),
    [(CPU, "fp32", True), (CUDA, "fp16", True), (MPS, "fp32", True), (MPS, "bf16", True),
     (MPS, "fp16", False)],
)  # fmt: skip
def test_adam_is_fused_where_that_is_right(tmp_path, monkeypatch, device, precision, fused):
    assert pytorch.has_fused_adam(device, precision) is fused
    asked = {}
    monkeypatch.setattr(
        harness.frameworks.trainer, "TrainingArguments", lambda **given: asked.update(given)
    )
    options = argparse.Namespace(**{**vars(OPTIONS), "precision": precision})
    harness.frameworks.trainer.training_arguments(8, options, device, str(tmp_path))
    assert asked["optim"] == ("adamw_torch_fused" if fused else "adamw_torch")


class EmptyLoader(list):
    num_workers = prefetch_factor = 1


@pytest.mark.parametrize("script", [cifar100, food101])
def test_the_scripts_ask_for_it(monkeypatch, script):
    given = []
    monkeypatch.setattr("torchvision.models.resnet50", lambda num_classes: torch.nn.Linear(1, 1))
    monkeypatch.setattr(training, "measure_training", lambda one, *_, **__: given.append(one) or {})
    data = getattr(script, "food101", script)  # where the script's data and loader come from
    monkeypatch.setattr(data, "load_data", lambda options: [])
    monkeypatch.setattr(data, "make_loader", lambda *_, **__: EmptyLoader())
    script.measure(8, OPTIONS)
    (made,) = given
    assert made.optimizer.defaults["fused"] is True


# A loss that is nonsense


@pytest.mark.parametrize(
    ("loss", "classes", "nonsense"),
    [(math.nan, 0, True), (math.inf, 100, True), (1e4, 100, True), (3.0, 2, True),
     (8.54, 100, False), (0.83, 2, False), (1e4, 0, False), (None, 100, False)],
)  # fmt: skip
def test_nonsense_is_told_from_a_bad_start(loss, classes, nonsense):
    assert is_nonsense(loss, classes) is nonsense


@pytest.mark.parametrize(("loss", "cell"), [(math.nan, "nan"), (math.inf, "inf"), (1e5, "100000")])
def test_nonsense_is_said_everywhere(tmp_path, loss, cell):
    path = tmp_path / "results_pytorch_cv" / "M_cifar100_resnet50_32_pytorch_results.csv"
    row = training_row("M", 32, 1.0, 100, train_loss=loss)
    append_row(path, row, COLUMNS)
    append_row(path, training_row("M", 64, 1.0, 100), COLUMNS)
    _, (cells, good) = read_rows(path)
    assert (cells["status"], cells["train_loss"]) == ("ok", cell)
    assert "nonsense" in verdicts(row, 100)[0]
    experiment = load_results(tmp_path).experiments["pytorch_cv_resnet50_cifar100"]
    assert "device computed nonsense" in check_loss(cells, experiment)[0]
    assert check_loss(good, experiment) == []
    table = speeds(load_results(tmp_path))
    assert list(table["status"]) == ["nonsense", "ok"]  # a chart draws a gap with that word
    assert list(is_good(table)) == [False, True]


def test_unknown_numbers_stay_empty_cells(tmp_path):
    path = tmp_path / "a.csv"
    row = {"batch_size": 1, "train_loss": None, "samples_per_second_ci95": math.nan}
    append_row(path, row, [])
    _, (cells,) = read_rows(path)
    assert list(cells.values()) == ["1", "", ""]
