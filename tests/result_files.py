"""Results of machines that do not exist, in our format and in every older one, for the tests."""

import csv
import json
from pathlib import Path

from harness import PROJECT_VERSION
from harness.columns import COLUMNS
from harness.llm.experiment import COLUMNS as LLM_COLUMNS
from harness.results import append_row

# folder, rest of the file name, batch sizes, seconds per epoch at speed 1 and the first of them
TRAINING = [
    ("pytorch_cv", "cifar100_resnet50_32_pytorch", [16, 32, 64, 128, 256, 512, 1024], 380, 50_000),
    ("pytorch_cv", "food101_resnet50_224_pytorch", [32, 64, 128], 2400, 75_750),
    ("pytorch_nlp", "imdb_distilbert_512_pytorch", [16, 32, 64, 128, 256, 512], 2100, 25_000),
    ("tensorflow_cv", "cifar100_resnet50_32_tensorflow", [16, 32, 64, 128, 256], 420, 50_000),
    ("tensorflow_cv", "food101_resnet50_224_tensorflow", [32, 64, 128], 2900, 75_750),
    ("tensorflow_nlp", "imdb_smalltransformer_200_tensorflow", [16, 32, 64, 128], 60, 25_000),
]
MACHINES = [
    *("Apple_M1_Pro_32GB_16_GPU_Cores", "Apple_M3_8GB_10_GPU_Cores"),
    *("Apple_M3_Pro_18GB_14_GPU_Cores", "Apple_M3_Max_36GB_30_GPU_Cores"),
    *("NVIDIA_TITAN_RTX_24GB", "Tesla_V100-SXM2-16GB", "NVIDIA_H100_80GB_HBM3"),
    *("AMD_EPYC_2_Cores_24GB", "Apple_M4_Max_128GB_40_GPU_Cores"),
    *("Apple_M5_Pro_48GB_20_GPU_Cores", "NVIDIA_GeForce_RTX_4090_24GB"),
    *("Intel_Xeon_Platinum_8481C_8_Cores_32GB",),
]


def training_row(machine: str, size: int, seconds: float, samples: int, **changed) -> dict:
    rate = samples / seconds
    row = dict.fromkeys(COLUMNS) | {
        "batch_size": size, "avg_time_per_epoch": seconds,
        "avg_time_per_epoch_ci95": 0.02 * seconds, "extrapolated": False,
        "samples_per_second": rate, "samples_per_second_ci95": 0.02 * rate,
        "first_step_seconds": 1.0, "compute_samples_per_second": 1.15 * rate,
        "input_bound_percent": 15.0, "sustained_ratio": 1.0, "tflops_per_second": rate / 500,
        "peak_memory_gb": 3.0, "swap_written_gb": 0.0, "train_loss": 0.6, "status": "ok",
        "epochs": 3, "steps_timed": 100, "steps_per_epoch": samples // size, "data": "real",
        "precision": "fp32", "compile": False, "channels_last": False, "device": "mps",
        "machine": machine, "chip": "Chip", "cpu_cores": 8, "memory_gb": 18.0,
        "other_load_percent": 1.0, "other_benchmark_running": False, "os": "macOS-26",
        "python": "3.11.7", "framework": "torch 2.15.0", "project_version": PROJECT_VERSION,
        "started_at": "2026-11-24T12:00:00+00:00",
    }  # fmt: skip
    return row | changed


def failed_row(machine: str, size: int, status: str = "out_of_memory", **changed) -> dict:
    measured = {
        name: None
        for name in COLUMNS[1 : COLUMNS.index("status")]
        if name not in ("extrapolated", "swap_written_gb")
    }
    measured |= {"status": status, "error": "MPS backend out of memory", "extrapolated": None}
    return training_row(machine, size, 1.0, 1, **measured) | changed


def training_path(results_dir: Path, folder: str, machine: str, name: str) -> Path:
    return results_dir / f"results_{folder}" / f"{machine}_{name}_results.csv"


def write_machine(results_dir: Path, machine: str, speed: float, fits: int = 10**6, **changed):
    """Every experiment of one machine; batch sizes above `fits` ran out of memory."""
    for folder, name, sizes, seconds, samples in TRAINING:
        framework = "torch 2.15.0" if "pytorch" in folder else "tensorflow 2.21.0"
        for position, size in enumerate(sizes):
            took = seconds / speed / (1 + 0.5 * position)
            if size > fits:
                row = failed_row(machine, size, framework=framework)
            else:
                row = training_row(machine, size, took, samples, framework=framework)
                row |= changed
            append_row(training_path(results_dir, folder, machine, name), row, COLUMNS)
    path = results_dir / "results_llama2" / f"{machine}_llama-2-7b-chat.Q4_0_results.csv"
    for question, iteration in [(q, i) for q in ("Why?", "How?", "pp512", "tg128") for i in (1, 2)]:
        row = dict.fromkeys(LLM_COLUMNS) | {
            "question": question, "question_iter": iteration, "total_time": 20.0,
            "answer": "Because, so.", "answer_char_len": 12, "answer_token_len": 500,
            "tokens_per_second": 12 * speed + iteration / 10, "prompt_token_len": 40,
            "prompt_tokens_per_second": 150 * speed + iteration, "time_to_first_token": 0.3,
            "status": "ok", "data": changed.get("data", "real"), "machine": machine,
            "model": "llama-2-7b-chat.Q4_0", "max_tokens": 500, "n_gpu_layers": -1,
            "framework": "llama-cpp-python 0.3.36", "project_version": PROJECT_VERSION,
            "started_at": "2026-11-24T13:00:00+00:00",
        }  # fmt: skip
        if question == "pp512":
            row["tokens_per_second"] = None
        if question == "tg128":
            row["prompt_tokens_per_second"] = None
        append_row(path, row, LLM_COLUMNS)


def write_selfcheck(results_dir: Path, machine: str, fp32: float) -> None:
    path = results_dir / "selfcheck" / f"{machine}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine, "peak_tflops_measured": {"fp32": fp32, "bf16": None}}
    path.write_text(json.dumps(report))


OLDER_MACHINES = {
    "Apple_M1_Pro": 1.0,
    "Apple_M3": 0.9,
    "Apple_M3_Pro": 1.2,
    "Apple_M3_Max": 2.0,
    "NVIDIA_TITAN_RTX": 6.5,
    "Tesla V100-SXM2-16GB": 5.0,  # spaces are in some of the published names
}


def write_older(results_dir: Path, machines: dict[str, float] = OLDER_MACHINES) -> None:
    """Every older format: two columns; the Trainer's metrics; the LLM's eight; FAILED cells."""
    for machine, speed in machines.items():
        for folder, name, sizes, seconds, _ in TRAINING:
            if machine == "NVIDIA_TITAN_RTX" and name.startswith("food101"):
                continue  # a machine that misses an experiment
            name = name.replace("cifar100", "CIFAR100").replace("food101", "FOOD101")
            name = name.replace("imdb_distilbert", "IMDB_distilbert-base-uncased")
            name = name.replace("imdb_smalltransformer_200_tensorflow", "IMDB_SmallTransformer_200")
            lines = [
                older_line(folder, size, seconds / speed / (1 + 0.5 * position), speed)
                for position, size in enumerate(sizes)
            ]
            header = "batch_size,avg_time_per_epoch"
            if folder == "pytorch_nlp":
                header = (
                    "train_runtime,train_samples_per_second,train_steps_per_second,"
                    "train_loss,epoch,batch_size,total_flos"
                )
            path = training_path(results_dir, folder, machine, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join([header, *lines]) + "\n")
        path = results_dir / "results_llama2" / f"{machine}_llama-2-7b-chat.Q4_0.gguf_results.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(LLM_COLUMNS[:8])
            for iteration in range(3):
                answer = 'Step 1,\n"first"\u2028then.'
                rate = 10 * speed + iteration / 10
                writer.writerow(["Why?", iteration, 20.0, answer, 2000, 4 * rate, 500.0, rate])


def older_line(folder: str, size: int, seconds: float, speed: float) -> str:
    too_large = size > 40 * speed and folder.startswith("pytorch")
    if folder == "pytorch_nlp":
        if too_large:
            return f"FAILED,FAILED,FAILED,FAILED,FAILED,{size},FAILED"
        return f"{3 * seconds},{25000 / seconds:.3f},0.734,0.26,3.0,{size},"
    return f"{size},{'FAILED' if too_large and size < 512 and size > 128 else seconds}"


GEEKBENCH = """\
machine,cpu_cores,cpu_score,cpu_link,gpu_cores,gpu_score,gpu_link,neural_engine_score,neural_engine_link
"MacBook Pro M1 Pro 14 inch, 2021",10,1809,https://x/1,16,5192,https://x/2,6462,https://x/3
"MacBook Pro M3 14 inch, 2023",8,2356,https://x/4,10,5747,https://x/5,8399,https://x/6
"Linux box",8,1000,https://x/7,,,,,
"""


def write_geekbench(results_dir: Path) -> None:
    path = results_dir / "results_geekbench_ml" / "geekbench_ml_0.6.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(GEEKBENCH)


def write_twelve(results_dir: Path) -> None:
    """Twelve machines: some fail at large sizes, some rows are extrapolated or synthetic."""
    for number, machine in enumerate(MACHINES):
        changed = {"extrapolated": number % 4 == 1, "data": ["real", "synthetic"][number % 5 == 2]}
        fits = [10**6, 64, 256][number % 3]
        write_machine(results_dir, machine, 0.3 * 1.35**number, fits, **changed)
        write_selfcheck(results_dir, machine, 3.0 * 1.35**number)
