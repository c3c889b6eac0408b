"""ONNX files of the networks, with random weights: exported once, kept with version and check sum.

Speed does not depend on the weights' values. A file appears under its name only when it is whole,
and its stamp (`<file>.json`) after it: what an interrupted run left is made anew, as is a file of
another version. The batch size stays a free dimension named `batch`, which a session fixes when it
loads the file (`add_free_dimension_override_by_name`): one file serves every batch size, and Core
ML, which is slower with dynamic shapes and may refuse them (RequireStaticInputShapes, in
https://onnxruntime.ai/docs/execution-providers/CoreML-ExecutionProvider.html), sees fixed ones.

fp16: ONNX Runtime's own converter; inputs and outputs stay fp32, so that all are given the same.
int8: ONNX Runtime's quantization. Convolutional networks statically (fixed scales from random
inputs, QDQ form, 7-bit weights per channel, which do not saturate on processors without VNNI), the
others dynamically, their matrix products only, as its documentation advises.
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

import hashlib
import json
import logging
import warnings
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from harness.models.networks import NETWORKS
from harness.process import UserError

VERSION = 1  # raise it when a network or how it is exported changes
PRECISIONS = ("fp32", "fp16", "int8")


def ensure_files(names: list[str], precisions: list[str], data_dir: Path) -> None:
    """Make what is missing, damaged or of another version under `data_dir`/onnx.

    Raises:
        UserError: the disk has no room, or refuses a file.
    """
    # Everything is made from the fp32 file, which is the reference of answers too.
    wanted = [(n, p) for n in names for p in dict.fromkeys(["fp32", *precisions])]
    folder = data_dir / "onnx"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "onnx.lock"):  # two runs at once make them once
            for name, precision in tqdm(wanted, desc="networks", unit=" files", disable=None):
                if not is_whole(file_path(data_dir, name, precision)):
                    tqdm.write(f"exporting {name}, {precision} (once, into {folder})")
                    make_file(name, precision, data_dir)
    except OSError as error:
        raise UserError(
            f"--data_dir={data_dir}: a network cannot be written there ({error.strerror})"
        ) from None


def file_path(data_dir: Path, name: str, precision: str) -> Path:
    return data_dir / "onnx" / f"{name}-{precision}.onnx"


def stamp_path(path: Path) -> Path:
    return path.with_suffix(".json")


def read_stamp(path: Path) -> dict:
    """Version, check sum and exporter of a file; empty where there is no such stamp."""
    try:
        return json.loads(stamp_path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def is_whole(path: Path) -> bool:
    """Whether the file is there, of this version, and as its check sum says."""
    stamp = read_stamp(path)
    return path.exists() and stamp.get("version") == VERSION and stamp["sha256"] == sha256(path)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_file(name: str, precision: str, data_dir: Path) -> None:
    """Write a file and its stamp; neither is there under its name before it is whole."""
    path = file_path(data_dir, name, precision)
    partial = path.with_suffix(".part")
    # Another fp32 file makes what was made from the one before useless.
    for made in PRECISIONS if precision == "fp32" else [precision]:
        stamp_path(file_path(data_dir, name, made)).unlink(missing_ok=True)
    try:
        if precision == "fp32":
            exporter = export(name, partial)
        else:
            source = file_path(data_dir, name, "fp32")
            exporter = read_stamp(source)["exporter"]
            convert = {"fp16": to_half, "int8": to_int8}[precision]
            convert(name, source, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    stamp = {"version": VERSION, "sha256": sha256(path), "exporter": exporter}
    unfinished = stamp_path(path).with_suffix(".json.part")
    unfinished.write_text(json.dumps(stamp), encoding="utf-8")
    unfinished.replace(stamp_path(path))


def export(name: str, path: Path) -> str:
    """Write a network as ONNX with torch.export; returns which exporter it was."""
    import torch

    from harness.models.torch_networks import example, random_network

    inputs = NETWORKS[name].inputs
    model = random_network(name)
    batch = torch.export.Dim("batch")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's own future
        torch.onnx.export(
            model,
            example(inputs, 2),
            path,
            dynamo=True,
            input_names=list(inputs),
            dynamic_shapes=(({0: batch},) * len(inputs),),  # of `*inputs`
            external_data=False,
            verbose=False,
        )
    return f"torch {torch.__version__}"


def to_half(name: str, source: Path, path: Path) -> None:
    """Write the fp16 version of a file."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), path)


def to_int8(name: str, source: Path, path: Path) -> None:
    """Write the int8 version of a file."""
    from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static

    logging.getLogger().setLevel(logging.ERROR)  # it recommends what the exporter has done
    if not NETWORKS[name].convolutional:
        return quantize_dynamic(
            source, path, ["MatMul", "Gemm"], per_channel=True, reduce_range=True
        )
    return quantize_static(
        source,
        path,
        Calibration(name),
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


class Calibration:
    """A few random inputs, one at a time, as `quantize_static` asks for them (None: no more)."""

    def __init__(self, name: str, samples: int = 4):
        self.inputs = (random_inputs(name, 1, seed) for seed in range(samples))

    def get_next(self) -> dict | None:
        return next(self.inputs, None)


def random_inputs(name: str, batch_size: int, seed: int) -> dict:
    """A numpy array for each input of a network."""
    import numpy as np

    random = np.random.default_rng(seed)
    return {
        key: random.integers(tokens, size=(batch_size, *shape), dtype=np.int64)
        if tokens
        else random.standard_normal((batch_size, *shape), dtype=np.float32)
        for key, (shape, tokens) in NETWORKS[name].inputs.items()
    }
