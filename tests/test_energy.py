"""What is read out of zeus' measurements; zeus itself is optional and stands in by its shape."""

import sys
import types

import pytest

import harness.energy


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
