"""The experiments as whoever reads results needs them: what they are called and where they lie."""

import re
from pathlib import Path
from typing import NamedTuple


class ListedExperiment(NamedTuple):
    """One experiment whose rows lie in `results_<backend>_<task>/*_<dataset>_*_results.csv`."""

    title: str
    backend: str
    task: str
    dataset: str
    chart: str  # its chart is <chart>.png; also its name in tables
    # Flags that shape the model, with their defaults: other values are another configuration.
    model_flags: dict[str, float] = {}


TRAINING = [
    ListedExperiment(
        "PyTorch, ResNet50, CIFAR100", "pytorch", "cv", "cifar100", "pytorch_cv_resnet50_cifar100"
    ),
    ListedExperiment(
        "PyTorch, ResNet50, Food101", "pytorch", "cv", "food101", "pytorch_cv_resnet50_food101"
    ),
    ListedExperiment(
        "PyTorch, DistilBERT, IMDB", "pytorch", "nlp", "imdb", "pytorch_nlp_distilbert_imdb"
    ),
    ListedExperiment(
        "TensorFlow, ResNet50, CIFAR100",
        "tensorflow",
        "cv",
        "cifar100",
        "tensorflow_cv_resnet50_cifar100",
    ),
    ListedExperiment(
        "TensorFlow, ResNet50, Food101",
        "tensorflow",
        "cv",
        "food101",
        "tensorflow_cv_resnet50_food101",
    ),
    ListedExperiment(
        "TensorFlow, small transformer, IMDB",
        "tensorflow",
        "nlp",
        "imdb",
        "tensorflow_nlp_imdb",
        {
            "embed_dim": 128,
            "num_heads": 8,
            "ff_dim": 128,
            "num_transformer_blocks": 1,
            "dropout_rate": 0.1,
            "maxlen": 200,
            "vocab_size": 20000,
        },
    ),
]
BY_CHART = {experiment.chart: experiment for experiment in TRAINING}

LLM_TITLE = "Llama 2 7B, text generation"
LLM_CHART = "llamacpp_2_7b_chat_q4_0_gguf_tokens_per_second"
LLM_MODEL = "llama-2-7b-chat.Q4_0"
LLM_FLAGS = {"max_tokens": 500, "n_gpu_layers": -1}

# Columns that some experiments have beyond those that all share.
EXTRA_COLUMNS = ["weights", "transformers", "test_accuracy"]

# A file of rows that had to be saved beside an unreadable one carries a number at its end.
_FILE_NAME = re.compile(
    r"(?P<machine>.+?)_(?P<dataset>cifar100|food101|imdb)_(?P<model>[^_]+)_(?P<size>\d+)"
    r"(_[a-z]+)?_results(_\d+)?",
    re.IGNORECASE,
)
_LLM_FILE_NAME = re.compile(r"(?P<machine>.+?)_(?P<model>[^_]*llama.*)_results", re.IGNORECASE)


def of_file(path: Path) -> tuple[ListedExperiment, str] | None:
    """The training experiment that a results file belongs to, and the machine in its name.

    Takes the older names too (`Tesla V100-SXM2-16GB_IMDB_SmallTransformer_200_results.csv`).
    """
    found = _FILE_NAME.fullmatch(path.stem)
    for experiment in TRAINING if found else []:
        folder = f"results_{experiment.backend}_{experiment.task}"
        if (folder, experiment.dataset) == (path.parent.name, found["dataset"].lower()):
            return experiment, tag(found["machine"])
    return None


def of_older_llm_file(path: Path) -> tuple[str, str]:
    """The model and the machine in the name of an older file of generations.

    Raises:
        ValueError: the name has no Llama model.
    """
    found = _LLM_FILE_NAME.fullmatch(path.stem)
    if not found:
        raise ValueError("neither the file's name nor the row tells the model")
    return found["model"], tag(found["machine"])


def tag(machine: str) -> str:
    """A machine's name as our files have it; some older ones have spaces."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", machine).strip("_")
