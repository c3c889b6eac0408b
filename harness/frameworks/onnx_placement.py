"""Where a network's nodes really ran: from ONNX Runtime's own profile, and Core ML's compute plan.

ONNX Runtime gives nodes that a provider does not take to the CPU, in silence (issues 16934, 25396
and 28022 of github.com/microsoft/onnxruntime). Its profile says for each node that ran on which
provider, with the shapes of its inputs and outputs. Core ML's part of a graph is a single node
there, so what Core ML did is the whole (the same file on the CPU alone) without what the CPU did.
Both are profiled after the basic graph optimizations, which come before the graph is divided
(https://onnxruntime.ai/docs/performance/model-optimizations/graph-optimizations.html).

That Core ML took a node does not say which unit ran it: that says Core ML's own compute plan,
through coremltools on macOS 14.4 or newer (https://apple.github.io/coremltools/source/
coremltools.models.html#module-coremltools.models.compute_plan).
"""

import importlib.util
import itertools
import json
import math
import platform
from pathlib import Path
from typing import NamedTuple

CPU = "CPUExecutionProvider"
ENOUGH = 90.0  # percent of the floating-point operations that the asked unit must do
PARTLY, UNPROVEN = "partly on CPU", "unit not proven"
# The position of the weights among the inputs of each kind of convolution.
WEIGHTS = {"Conv": 1, "ConvTranspose": 1, "ConvInteger": 1, "QLinearConv": 3}
PRODUCTS = {"MatMul", "MatMulInteger", "QLinearMatMul"}
# What Core ML's compute plan calls the device of each of ONNX Runtime's MLComputeUnits.
CORE_ML_DEVICES = {
    "CPUOnly": ("CPU_ONLY", "MLCPUComputeDevice"),
    "CPUAndGPU": ("CPU_AND_GPU", "MLGPUComputeDevice"),
    "CPUAndNeuralEngine": ("CPU_AND_NE", "MLNeuralEngineComputeDevice"),
}


class Node(NamedTuple):
    """A node that ran."""

    kind: str  # such as `Conv`
    provider: str
    flop: int


def read_profile(path: Path) -> list[Node]:
    """The nodes of a profile of one run, in the order in which they ran."""
    events = json.loads(path.read_text(encoding="utf-8"))
    ran = [e for e in events if e["cat"] == "Node" and e["name"].endswith("_kernel_time")]
    ran.sort(key=lambda event: event["ts"])
    return [
        Node(event["args"]["op_name"], event["args"]["provider"], flop(event["args"]))
        for event in ran
    ]


def flop(ran: dict) -> int:
    """Floating-point operations of a node: convolutions and matrix products, two per product."""
    kind = ran["op_name"]
    inputs, outputs = shapes(ran["input_type_shape"]), shapes(ran["output_type_shape"])
    if kind in WEIGHTS:
        filters = inputs[WEIGHTS[kind]]
        points = inputs[0] if kind == "ConvTranspose" else outputs[0]
        return 2 * math.prod(points) * math.prod(filters[1:])
    if kind in PRODUCTS:
        return 2 * math.prod(outputs[0]) * inputs[0][-1]
    if kind == "Gemm":
        return 2 * math.prod(outputs[0]) * math.prod(inputs[0]) // outputs[0][0]
    return 0


def shapes(described: list[dict[str, list[int]]]) -> list[list[int]]:
    """`[1, 3, 224, 224]` of each `{"float": [1, 3, 224, 224]}`."""
    return [shape for tensor in described for shape in tensor.values()]


def columns(placed: list[Node], on_cpu: list[Node], unit, folder: Path) -> dict:
    """The placement columns of a row.

    Args:
        placed: the nodes of a run on the unit.
        on_cpu: those of the same file on the CPU alone.
        folder: where Core ML left what it compiled.
    """
    nodes = flops = 100.0
    cost = None
    if unit.provider != CPU:
        left = [node for node in placed if node.provider != unit.provider]
        nodes = 100 * (1 - len(left) / len(on_cpu))
        flops = 100 * (1 - total(left) / total(on_cpu))
    if unit.is_core_ml:
        cost = core_ml_cost_percent(folder, unit.options["MLComputeUnits"])
    return {
        "provider_nodes_percent": nodes,
        "provider_flops_percent": flops,
        "partitions": partitions(placed, unit),
        "unit_cost_percent": cost,
        "placement": verdict(flops, cost, unit),
    }


def total(nodes: list[Node]) -> int:
    return sum(node.flop for node in nodes)


def partitions(placed: list[Node], unit) -> int:
    """Into how many pieces of the graph the unit's nodes are cut."""
    if unit.is_core_ml:
        return sum(node.provider == unit.provider for node in placed)
    groups = itertools.groupby(placed, key=lambda node: node.provider)
    return sum(provider == unit.provider for provider, _ in groups)


def verdict(flops: float, cost: float | None, unit) -> str:
    """What a reader must know of where it ran; empty where it ran as asked."""
    if flops < ENOUGH or (cost is not None and cost < ENOUGH):
        return PARTLY
    asked_for_more = unit.is_core_ml and unit.options["MLComputeUnits"] != "CPUOnly"
    return UNPROVEN if asked_for_more and cost is None else ""


def core_ml_cost_percent(folder: Path, units: str) -> float | None:
    """Percent of the cost that Core ML expects on the asked unit; None where it cannot be asked.

    Args:
        folder: ModelCacheDirectory of the session; holds the compiled `.mlmodelc`.
        units: of MLComputeUnits.
    """
    release = tuple(int(part) for part in platform.mac_ver()[0].split(".")[:2] if part)
    if release < (14, 4) or importlib.util.find_spec("coremltools") is None:
        return None
    from coremltools import ComputeUnit
    from coremltools.models.compute_plan import MLComputePlan

    asked, device = CORE_ML_DEVICES[units]
    there = whole = 0.0
    for path in folder.rglob("*.mlmodelc"):
        plan = MLComputePlan.load_from_path(str(path), compute_units=ComputeUnit[asked])
        for operation in plan.model_structure.program.functions["main"].block.operations:
            cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
            usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
            if cost is None or usage is None:  # of constants
                continue
            whole += cost.weight
            if type(usage.preferred_compute_device).__name__ == device:
                there += cost.weight
    return 100 * there / whole if whole else None
