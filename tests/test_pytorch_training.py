"""PyTorch's training on a device that is not the host: what is copied to it, and scaled for it."""

import argparse

import pytest
import torch

from harness.frameworks import pytorch, trainer

OPTIONS = argparse.Namespace(precision="fp32", compile=False, epochs=1, seed=1)


def training(device="cpu", **changed) -> pytorch.Training:
    """Of one weight, which is 0 and is pulled to the mean of its batch."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    adam = torch.optim.Adam(model.parameters(), lr=0.1)
    options = argparse.Namespace(**{**vars(OPTIONS), **changed})

    def loss(model, features):
        return -(model(torch.ones(1, 1)).float() * features.mean()).sum()

    return pytorch.Training(model, [], loss, adam, torch.device(device), options)


def test_the_card_of_the_number_asked_for_is_chosen(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert pytorch.choose_device("cuda:1") == torch.device("cuda", 1)
    assert chosen == [1]


def test_a_start_asks_for_the_proof_of_precision(monkeypatch):
    asked = []
    monkeypatch.setattr(pytorch, "require_precision", lambda *words: asked.append(words))
    options = argparse.Namespace(device="cpu", precision="bf16", seed=1)
    assert asked == [(pytorch.start(options), "bf16")]


def test_the_kept_batch_lies_in_the_hosts_memory_and_is_the_probes_own():
    """Else a step of the probe would copy nothing, or what the loader has put there since."""
    one = training("meta")
    one.keep([loaded := torch.ones(4)])
    loaded.zero_()
    assert one.batch[0].tolist() == [1] * 4


@pytest.mark.parametrize(("kind", "asynchronous"), [("cpu", False), ("mps", False), ("cuda", True)])
def test_only_cuda_copies_while_the_host_goes_on(monkeypatch, tmp_path, kind, asynchronous):
    """On MPS such a copy may read memory that is already reused."""
    copies, asked = [], {}
    one = training()
    one.device = argparse.Namespace(type=kind)

    class Part:
        def to(self, device, non_blocking):
            copies.append(non_blocking)
            return torch.ones(4)

    one.loss(one.model, [Part()])
    assert copies == [asynchronous]
    monkeypatch.setattr(trainer, "TrainingArguments", lambda **given: asked.update(given))
    trainer.training_arguments(8, OPTIONS, one.device, str(tmp_path))
    assert asked["accelerator_config"] == {"non_blocking": asynchronous}
    assert asked["dataloader_pin_memory"] is asynchronous


def test_a_step_of_fp16_that_overflows_is_left_out_and_the_scale_lowered():
    one = training(precision="fp16")
    one.step([torch.full((4,), 1e36)])  # finite, but not times the scale
    assert one.model.weight.item() == 0
    scale = one.scaler.get_scale()
    assert scale < 2**16
    for _ in range(8):
        one.step([torch.full((4,), 1.0)])
    assert one.model.weight.item() > 0 and one.scaler.get_scale() == scale


def test_the_loss_of_fp16_is_scaled():
    """Gradients that are too small for float16 would be lost."""
    one, gradients = training(precision="fp16"), []
    one.model.weight.register_hook(lambda gradient: gradients.append(gradient.item()))
    one.step([torch.full((4,), 0.5)])
    assert gradients == [-(2.0**15)]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_pass_is_in_the_precision_and_the_weights_stay_float32(precision):
    seen, one = [], training(precision=precision)
    one.model.register_forward_hook(lambda model, given, result: seen.append(result.dtype))
    one.step([torch.ones(4)])
    assert seen == [pytorch.DTYPES[precision]]
    assert one.model.weight.dtype == torch.float32


@pytest.mark.parametrize("kind", [pytorch.Training, trainer.Training])
def test_trials_of_the_first_step_are_forgotten(monkeypatch, kind):
    forgotten = []
    module = pytorch if kind is pytorch.Training else trainer
    monkeypatch.setattr(module, "reset_peak_memory", forgotten.append)
    one = argparse.Namespace(device="here", options=OPTIONS)
    kind.after_first_step(one)
    assert forgotten == ["here"]
