"""What is published is checked, shown and impersonal; what looks odd is said, never refused."""

import subprocess
import sys
import zipfile
from pathlib import Path

import result_files as files

from harness.columns import COLUMNS
from harness.results import append_row
from reporting.plausible import implausible
from reporting.share import bundle
from reporting.tables import load_results

ROOT = Path(__file__).parent.parent
MACHINE = files.MACHINES[0]


def share(results_dir, *flags):
    return subprocess.run(
        [sys.executable, ROOT / "run_all.py", "--share", f"--results_dir={results_dir}", *flags],
        capture_output=True, text=True,
    )  # fmt: skip


def test_a_bundle_has_the_machines_files_and_no_answers(tmp_path):
    files.write_machine(tmp_path, MACHINE, 1.0)
    files.write_machine(tmp_path, "Other", 1.0)
    files.write_selfcheck(tmp_path, MACHINE, 3.0)
    done = share(tmp_path, f"--machine_name={MACHINE}")
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / f"share_{MACHINE}.zip") as archive:
        names = archive.namelist()
        texts = {name: archive.read(name).decode() for name in names}
    assert len(names) == 9 and not any("Other" in name for name in names)
    assert all(name.startswith("results/") or name == "pull_request.md" for name in names)
    assert "Because, so." not in "".join(texts.values())
    for name in names:
        assert name == "pull_request.md" or f"`{name}`" in texts["pull_request.md"]
    # All that is published is shown.
    assert "framework: torch 2.15.0" in done.stdout and "question: How?; Why?" in done.stdout


def test_what_is_not_whole_is_not_bundled(tmp_path):
    files.write_machine(tmp_path, MACHINE, 1.0)
    path = files.training_path(tmp_path, "pytorch_cv", MACHINE, files.TRAINING[0][1])
    path.write_text(path.read_text().replace(",fp32,", ",fp31,", 1))
    done = share(tmp_path)
    assert done.returncode == 1 and "precision is 'fp31'" in done.stderr
    assert not list(tmp_path.glob("*.zip"))


def test_nothing_to_share(tmp_path):
    done = share(tmp_path)
    assert done.returncode == 1 and "no results there" in done.stderr


def rows(results_dir, *seconds, **changed):
    path = files.training_path(results_dir, "pytorch_cv", MACHINE, files.TRAINING[0][1])
    for value in seconds:
        append_row(path, files.training_row(MACHINE, 32, value, 50_000, **changed), COLUMNS)


def test_over_the_measured_peak_is_said_and_passes(tmp_path):
    rows(tmp_path, 100.0, tflops_per_second=9.0)
    files.write_selfcheck(tmp_path, MACHINE, fp32=6.0)
    done = subprocess.run(
        [sys.executable, ROOT / "check_results.py", tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "look at: " in done.stdout and "150 % of the peak" in done.stdout


def test_a_number_far_from_its_like_is_said(tmp_path):
    rows(tmp_path, 100.0, 110.0)
    assert implausible(load_results(tmp_path)) == []
    rows(tmp_path, 90.0, 1000.0)
    (line,) = implausible(load_results(tmp_path))
    assert "batch 32: 1000 s per epoch" in line


def test_numbers_of_disturbed_runs_only_are_said(tmp_path):
    rows(tmp_path, 100.0, other_load_percent=40.0)
    (line,) = implausible(load_results(tmp_path))
    assert "batch 32: others disturbed every run" in line
    bundle(tmp_path, MACHINE)
    with zipfile.ZipFile(tmp_path / f"share_{MACHINE}.zip") as archive:
        request = archive.read("pull_request.md").decode()
    assert "1 rows, 1 of them good, 1 of these disturbed" in request
    rows(tmp_path, 100.0)
    assert implausible(load_results(tmp_path)) == []


def test_more_bandwidth_than_there_is_is_said(tmp_path):
    files.write_machine(tmp_path, MACHINE, 1.0)
    results = load_results(tmp_path)
    odd = results._replace(generations=results.generations.assign(bandwidth_percent=140.0))
    (line,) = implausible(odd)
    assert "140 % of the memory bandwidth" in line
