# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = [
#   "onnxruntime>=1.30", "onnx", "onnxscript", "torch>=2.11", "torchvision", "transformers>=5,<6",
#   "filelock", "nvidia-ml-py>=12.535", "packaging", "pandas", "psutil", "py-cpuinfo", "scipy",
#   "tqdm",
# ]
# ///
"""How fast does this machine answer, on its CPU, its GPU and its Neural Engine?

Eleven networks of ten domains in ONNX Runtime, in the domains of Geekbench ML's closed table:
photographs, segmentation, detection, pose, depth, style transfer, text, translation, speech. They
have the published architectures and random weights, and are exported once, with PyTorch.
Inside the clock: an inference, from inputs that lie where the unit reads them to outputs there.
Inputs are random, of four different ones in turn. Outside: export, loading, the first inference
(which compiles; it has a column of its own) and a warm-up. latency: of a whole batch, median and
percentiles; inferences per second: samples per second.
Afterwards the answer is compared with the CPU's fp32 one (a wrong one is an error, however fast),
and ONNX Runtime's profile says which part of the work the asked provider did: under 90 % of the
floating-point operations, the row is labelled `partly on CPU`. Whether Core ML used the GPU or the
Neural Engine, only its compute plan says: install coremltools, else it is `unit not proven`.

    python onnx_test_inference.py --models="mobilenetv3" --batch_sizes="1"
"""

import utils
from harness.models.networks import NETWORKS

PROVIDERS = ("auto", "cpu", "cuda", "coreml_cpu", "coreml_gpu", "coreml_neural_engine")
EXPERIMENT = utils.Experiment(
    title="ONNX Runtime, inference of eleven networks",
    place=140,
    chart="onnx_inference",
    description=__doc__,
    backend="onnx",
    task="inference",
    dataset="random-inputs",
    model="networks",
    varied=(
        utils.Varied(
            "network", "models", ", ".join(NETWORKS), "{}", "network", choices=tuple(NETWORKS)
        ),
        utils.Varied(
            "provider", "providers", "auto", "{}", "provider", choices=PROVIDERS, in_label=True
        ),
        utils.Varied(
            "precision", "precisions", "fp32, fp16, int8", "{}", "precision",
            choices=("fp32", "fp16", "int8"), in_label=True,
        ),
        *utils.batch_sizes("1, 8"),
    ),
    whole_set="network",
    remarks=("placement",),
    speeds=(
        utils.Speed(
            "inferences_per_second", "inferences/s", "inferences per second",
            "inferences per second", higher_is_better=True,
        ),
        utils.Speed(
            "latency_ms", "ms", "milliseconds per batch", "median latency", name="latency"
        ),
    ),
    quick={"models": "mobilenetv3", "precisions": "fp32", "batch_sizes": "1"},
    columns=utils.columns_of("IM"),
)  # fmt: skip


def prepare(options) -> dict:
    """Find the providers and export the networks once; returns the columns that all rows share."""
    from harness.frameworks import onnx

    return onnx.prepare(options)


def measure(network: str, provider: str, precision: str, batch_size: int, options) -> dict:
    """Time a network's inference on a provider; returns the measured columns of its row."""
    from harness.frameworks import onnx

    return onnx.measure(network, provider, precision, batch_size, options)


if __name__ == "__main__":
    utils.sweep(EXPERIMENT, prepare, measure)
