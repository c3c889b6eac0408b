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
from tiny_training import image_loss, image_row

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


def as_tf32(result: torch.Tensor) -> torch.Tensor:
    """With 10 bits after the point, as an operand that TF32 has rounded makes it."""
    return (result * 2**10).round() / 2**10


@pytest.mark.parametrize("operation", ["matmul", "conv2d"])
def test_a_device_that_rounds_as_tf32_does_is_refused(monkeypatch, operation):
    pytorch.require_precision(CPU, "fp32")
    owner = {"matmul": torch.Tensor, "conv2d": torch.nn.functional}[operation]
    name = {"matmul": "__matmul__", "conv2d": "conv2d"}[operation]
    exact = getattr(owner, name)

    def rounded(a, b):
        return exact(as_tf32(a), b)

    monkeypatch.setattr(owner, name, rounded)
    with pytest.raises(utils.UsageError, match="--precision=fp32: .*TF32.*NVIDIA_TF32_OVERRIDE"):
        pytorch.require_precision(CPU, "fp32")


@pytest.mark.parametrize(
    ("capability", "precision", "refused"),
    [((7, 5), "bf16", True), ((7, 0), "bf16", True), ((7, 5), "fp16", False),
     ((8, 0), "bf16", False)],
)  # fmt: skip
def test_bf16_by_emulation_is_refused(monkeypatch, capability, precision, refused):
    major, minor = capability
    card = types.SimpleNamespace(name="Tesla T4", total_memory=0, major=major, minor=minor)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    answers = [torch.ones(2, dtype=pytorch.DTYPES[precision])]
    monkeypatch.setattr(pytorch, "fine_products", lambda *_: answers)
    if not refused:
        pytorch.require_precision(CUDA, precision)
        return
    with pytest.raises(utils.UsageError, match="--precision=bf16: Tesla T4 has no bf16"):
        pytorch.require_precision(CUDA, precision)


def test_variables_that_change_what_is_measured_are_not_heeded(monkeypatch, capsys):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    monkeypatch.delenv("KERAS_MAX_EPOCHS", raising=False)
    harness.environment.settle_environment()
    assert not set(harness.environment.OVERRIDES) & set(os.environ)
    said = capsys.readouterr().out
    assert "NVIDIA_TF32_OVERRIDE is set" in said and "PYTORCH_ENABLE_MPS_FALLBACK is set" in said
    assert "KERAS_MAX_EPOCHS" not in said


# Memory


def test_peak_memory_is_counted_anew_after_the_first_step(monkeypatch):
    events = []
    monkeypatch.setattr(pytorch, "reset_peak_memory", lambda device: events.append(device))
    clock = Clock(2, 8, 1, lambda: None)
    batch = torch.zeros(2, 3, 1, 1), torch.zeros(2, dtype=torch.long)

    def loss(model, images, labels):
        events.append("step")
        return image_loss(model, images, labels)

    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 2))
    adam = torch.optim.Adam(model.parameters())
    pytorch.Training(model, [batch] * 4, loss, adam, CPU, OPTIONS).run(clock)
    assert events == ["step", CPU, "step", "step", "step"]


def test_trials_are_forgotten_on_cuda_only(monkeypatch):
    forgotten = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", forgotten.append)
    for device in (CPU, MPS, CUDA):
        pytorch.reset_peak_memory(device)
    assert forgotten == [CUDA]


@pytest.mark.parametrize("error", [RuntimeError, AttributeError])
def test_memory_that_pytorch_does_not_count_is_empty_and_costs_no_row(monkeypatch, error):
    def missing():
        raise error("Allocator for mps is not a DeviceAllocator")

    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", missing)
    assert pytorch.peak_memory_gb(MPS) is None


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


def tiny_row(monkeypatch, to=None, **changed):
    monkeypatch.setattr("harness.clock.PROBE_SECONDS", 0.1)
    options = argparse.Namespace(**{**vars(OPTIONS), **changed})
    device = pytorch.start(options)
    labels = torch.arange(264) % 2
    images = (labels * 200).byte().view(-1, 1, 1, 1).repeat(1, 3, 8, 8)
    data = torch.utils.data.TensorDataset(images, labels)
    loader = torch.utils.data.DataLoader(data, 32, shuffle=True, drop_last=True)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    fused = pytorch.has_fused_adam(device, options.precision)
    adam = torch.optim.Adam(model.parameters(), lr=1e-2, fused=fused)
    return image_row(model, loader, adam, device, 32, options)


def test_the_probes_steps_copy_from_the_host_as_the_runs_do(monkeypatch):
    copied = []
    exact = torch.Tensor.to

    def counted(part, *arguments, **keywords):
        if arguments == (CPU,):
            copied.append(keywords)
        return exact(part, *arguments, **keywords)

    monkeypatch.setattr(torch.Tensor, "to", counted)
    steps = []
    probe = training.probe_device

    def probe_and_count(*arguments):
        before = len(copied)
        train_step = arguments[0]
        speed = probe(lambda: steps.append(1) or train_step(), *arguments[1:])
        assert len(copied) - before == 2 * len(steps)  # images and labels, every time
        return speed

    monkeypatch.setattr(training, "probe_device", probe_and_count)
    tiny_row(monkeypatch)
    assert steps and all(keywords == copied[0] for keywords in copied)


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


def test_no_second_shape_is_compiled(monkeypatch):
    shapes = set()
    step = pytorch.Training.step

    def watched(one, batch):
        shapes.add(batch[0].shape)
        return step(one, batch)

    monkeypatch.setattr(pytorch.Training, "step", watched)
    row = tiny_row(monkeypatch, epochs=2)  # of 264 samples
    assert shapes == {(32, 3, 8, 8)} and not row["extrapolated"]


def test_compile_that_compiles_nothing_is_an_error(monkeypatch):
    from torch._dynamo.utils import counters

    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    counters.clear()
    with pytest.raises(RuntimeError, match="--compile: torch.compile has compiled nothing"):
        tiny_row(monkeypatch, compile=True, max_seconds=1)
    with pytest.raises(utils.UsageError, match="--compile: .*compiled nothing"):
        pytorch.require_compiler(CPU)


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


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_fused_adam_learns(monkeypatch, precision):
    assert tiny_row(monkeypatch, precision=precision, epochs=10)["train_loss"] < 0.1


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
