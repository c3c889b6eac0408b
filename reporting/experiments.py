"""The experiments, found by themselves: every top-level `*_test*.py` says what it measures.

The scripts import no framework, so importing them is cheap. No list of them is kept anywhere.
"""

import importlib
import re
from pathlib import Path

from harness.experiment import Experiment, batch_sizes

ROOT = Path(__file__).resolve().parent.parent

# A file of rows that had to be saved beside an unreadable one carries a number at its end.
_END = r"(_[a-z0-9]+)?_results(_\d+)?"
_ANY_NAME = re.compile(
    r"(?P<machine>.+)_(?P<dataset>[^_]+)_(?P<model>[^_]+)_(?P<size>\d+)_(?P<backend>[a-z0-9]+)"
    r"_results(_\d+)?"
)
# As browsers, Finder, Explorer and file syncing name it.
_COPY = re.compile(r" \(\d+\)$| copy( \d+)?$| - Copy|conflicted copy", re.IGNORECASE)
_LLM_NAME = re.compile(r"(?P<machine>.+?)_(?P<model>[^_]*llama.*)_results", re.IGNORECASE)


def script_names() -> list[str]:
    """The names of all scripts that hold an experiment."""
    return sorted(path.name for path in ROOT.glob("*_test*.py"))


def find_experiments() -> list[Experiment]:
    """What every script describes: by title, language models last."""
    modules = [importlib.import_module(Path(name).stem) for name in script_names()]
    experiments = [module.EXPERIMENT for module in modules]
    return sorted(experiments, key=lambda e: (e.generations, e.title))


def script_of(experiment: Experiment) -> str:
    """The name of the script that describes an experiment."""
    found = {name: importlib.import_module(Path(name).stem).EXPERIMENT for name in script_names()}
    return next(name for name, described in found.items() if described is experiment)


def results_files(results_dir: Path) -> list[Path]:
    """Every CSV file in a folder of results, without what systems and editors leave beside them.

    macOS puts a `._x.csv` beside each file on other disks, Jupyter a copy into .ipynb_checkpoints.
    """
    files = sorted(results_dir.rglob("*.csv"))
    return [
        path
        for path in files
        if not any(part.startswith(".") for part in path.relative_to(results_dir).parts)
    ]


def why_unknown(path: Path) -> str | None:
    """What is wrong with a file's name that is one of a copy, such as `x (1).csv`; else None."""
    if not _COPY.search(path.stem):
        return None
    return "a copy of another file by its name: delete it, or add its rows to that one"


def of_file(path: Path, experiments: list[Experiment]) -> tuple[Experiment, str] | None:
    """The experiment that a results file belongs to, and the machine in its name.

    Takes the older names too (`Tesla V100-SXM2-16GB_IMDB_SmallTransformer_200_results.csv`), and
    those of experiments whose script is gone. The machine is empty where only the rows tell it.
    """
    if why_unknown(path):
        return None
    for experiment in experiments:
        if experiment.results_folder != path.parent.name:
            continue
        if experiment.generations:
            return experiment, ""
        name = rf"(?P<machine>.+?)_{experiment.dataset}_[^_]+_\d+{_END}"
        if found := re.fullmatch(name, path.stem, re.IGNORECASE):
            return experiment, tag(found["machine"])
    found = _ANY_NAME.fullmatch(path.stem)
    task = path.parent.name.removeprefix("results_").partition("_")[2]
    if found and task and path.parent.name == f"results_{found['backend']}_{task}":
        return gone(task, **found.groupdict()), tag(found["machine"])
    return None


def gone(task: str, machine: str, dataset: str, model: str, size: str, backend: str) -> Experiment:
    """What a file's name tells of a training experiment whose script is no longer there."""
    return Experiment(
        title=f"{backend}, {model}, {dataset}",
        chart="_".join([backend, task, model, dataset]),
        description="",
        backend=backend,
        task=task,
        dataset=dataset,
        model=model,
        input_size=int(size),
        samples=0,
        varied=batch_sizes("1"),
    )


def of_older_llm_file(path: Path) -> tuple[str, str]:
    """The model and the machine in the name of an older file of generations.

    Raises:
        ValueError: the name has no Llama model.
    """
    found = _LLM_NAME.fullmatch(path.stem)
    if not found:
        raise ValueError("neither the file's name nor the row tells the model")
    return found["model"], tag(found["machine"])


def tag(machine: str) -> str:
    """A machine's name as our files have it; some older ones have spaces."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", machine).strip("_")
