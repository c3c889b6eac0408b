"""What is read out of zeus' measurements, and that it never costs a row."""

import multiprocessing
import sys
import time
import types

import pytest

import harness.energy
from harness.process import run_in_fresh_process


def measurement(gpu=None, cpu=None, dram=None, soc=None):
    return types.SimpleNamespace(
        gpu_energy=gpu or {}, cpu_energy=cpu, dram_energy=dram, soc_energy=soc
    )


APPLE = types.SimpleNamespace(
    cpu_total_mj=2000, efficiency_cores_mj=[300], gpu_mj=5000, gpu_sram_mj=None, ane_mj=0,
    dram_mj=1000,
)  # fmt: skip


@pytest.mark.parametrize(
    ("measured", "joules"),
    [
        (measurement(soc=APPLE), 8.0),
        (measurement(cpu={0: 30.0, 1: 20.0}, dram={0: 5.0}), 55.0),
        (measurement(cpu={0: 30.0}), 30.0),
        (measurement(), None),
    ],
)
def test_joules_of_a_chip(measured, joules):
    assert harness.energy.processor_joules(measured) == joules


def test_card_is_counted_alone(monkeypatch):
    asked = {}

    class ZeusMonitor:
        def __init__(self, **arguments):
            asked.update(arguments)

        def begin_window(self, key, sync_execution):
            pass

        def end_window(self, key, sync_execution):
            return measurement(gpu={1: 500.0}, cpu={0: 99.0})

    monkeypatch.setitem(sys.modules, "zeus.monitor", types.SimpleNamespace(ZeusMonitor=ZeusMonitor))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "zeus")
    meter = harness.energy.energy_meter("cuda", 1)
    meter.begin()
    assert meter.end() == 500.0
    assert asked == {"gpu_indices": [1], "cpu_indices": []}


def test_without_zeus_there_is_no_meter(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert harness.energy.energy_meter("cpu") is None


# zeus itself, on counters that are files


@pytest.fixture
def rapl(tmp_path, monkeypatch):
    """A stand-in for /sys/class/powercap/intel-rapl with one package, which zeus reads."""
    zone = tmp_path / "intel-rapl" / "intel-rapl:0"
    zone.mkdir(parents=True)
    files = {"name": "package-0", "energy_uj": "1000000", "max_energy_range_uj": "262143328850"}
    for name, text in files.items():
        (zone / name).write_text(f"{text}\n")
    return zone


def count_five_joules(zone):
    """In a measuring process: a window in which the counter advances by 5 J."""
    import zeus.device.cpu.rapl

    zeus.device.cpu.rapl.RAPL_DIR = str(zone.parent)
    meter = harness.energy.energy_meter("cpu")
    meter.begin()
    polling = len(multiprocessing.active_children())
    (zone / "energy_uj").write_text("6000000\n")
    return meter.end(), polling


def test_endless_helpers_of_zeus_do_not_hang_the_sweep(rapl):
    """The process in which zeus polls RAPL is joined at exit, and never ends by itself."""
    started = time.monotonic()
    outcome = run_in_fresh_process(count_five_joules, rapl)
    assert outcome == {"status": "ok", "value": (5.0, 1)}
    assert time.monotonic() - started < 25


def lose_the_counter(zone, when):
    import zeus.device.cpu.rapl

    zeus.device.cpu.rapl.RAPL_DIR = str(zone.parent)
    if when == "start":
        (zone / "energy_uj").write_text("not a number\n")
    meter = harness.energy.energy_meter("cpu")
    if meter is None:
        return "no meter"
    if when == "begin":
        (zone / "energy_uj").unlink()
    meter.begin()
    if when == "end":
        (zone / "energy_uj").unlink()
    return meter.end()


@pytest.mark.parametrize(("when", "value"), [("start", "no meter"), ("begin", None), ("end", None)])
def test_a_counter_that_cannot_be_read_costs_a_line_not_the_row(rapl, capfd, when, value):
    assert run_in_fresh_process(lose_the_counter, rapl, when) == {"status": "ok", "value": value}
    (line,) = [line for line in capfd.readouterr().out.splitlines() if line]
    assert line.startswith("energy is not measured, zeus fails: ")


@pytest.mark.parametrize("visible", ["GPU-5ebe9e2b-0c0a", "MIG-5ebe9e2b/1/0", ""])
def test_cards_that_zeus_does_not_know_cost_a_line_not_the_row(visible, monkeypatch, capsys):
    """As UUIDs, and slices of a card, in CUDA_VISIBLE_DEVICES; NVML itself stands in."""
    import zeus.device.gpu
    import zeus.device.gpu.nvidia as nvidia

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(nvidia.pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(nvidia.pynvml, "nvmlDeviceGetCount", lambda: 1)
    monkeypatch.setattr(zeus.device.gpu, "nvml_is_available", lambda: True)
    monkeypatch.setattr(zeus.device.gpu, "_gpus", None)
    assert harness.energy.energy_meter("cuda", 0) is None
    assert "energy is not measured, zeus fails" in capsys.readouterr().out
