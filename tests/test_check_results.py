"""Every fault that a results file can have is found and said in one line."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import result_files as files

from harness import PROJECT_VERSION
from harness.columns import COLUMNS
from harness.results import append_row
from reporting.check import check_folder

ROOT = Path(__file__).parent.parent
MACHINE = "Apple_M3_Pro_18GB_14_GPU_Cores"


@pytest.fixture
def results_dir(tmp_path):
    files.write_machine(tmp_path, MACHINE, 1.0, fits=256)
    files.write_older(tmp_path, {"Apple_M3": 1.0, "Tesla V100-SXM2-16GB": 5.0})
    files.write_geekbench(tmp_path)
    files.write_selfcheck(tmp_path, MACHINE, 3.0)
    return tmp_path


def cifar100(results_dir):
    return files.training_path(results_dir, "pytorch_cv", MACHINE, files.TRAINING[0][1])


def llama(results_dir):
    return results_dir / "results_llama2" / f"{MACHINE}_llama-2-7b-chat.Q4_0_results.csv"


def run(results_dir):
    return subprocess.run(
        [sys.executable, ROOT / "check_results.py", results_dir], capture_output=True, text=True
    )


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_whole_files_of_every_format_pass(results_dir):
    done = run(results_dir)
    assert done.returncode == 0, done.stdout
    assert done.stdout == "23 files, 0 problems\n"


def test_no_results_pass(tmp_path):
    assert run(tmp_path).stdout == "0 files, 0 problems\n"


def test_a_problem_is_one_line_and_exit_code_1(results_dir):
    edit(cifar100(results_dir), ",fp32,", ",fp31,")
    done = run(results_dir)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"{cifar100(results_dir)}: row 2: precision is 'fp31'",
        "23 files, 1 problems",
    ]


def test_a_folder_that_is_not_there(tmp_path):
    done = run(tmp_path / "none")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("batch_size,", "batch,", "unknown column 'batch'"),
        ("batch_size,", "batch,", "column 'batch_size' is missing"),
        ("\n16,", "\nsixteen,", "batch_size is 'sixteen', not a number"),
        ("\n16,", "\n0,", "batch_size is 0, not in 1 to"),
        ("\n16,", "\n,", "batch_size is empty"),
        ("\n16,380,", "\n16,-380,", "avg_time_per_epoch is -380"),
        ("\n16,380,", "\n16,,", "status is 'ok', avg_time_per_epoch ''"),
        ("\n16,380,", "\n16,inf,", "avg_time_per_epoch is inf"),
        ("\n16,380,", "\n16,nan,", "row 2: avg_time_per_epoch is nan, which is no number"),
        (",18,", ",-inf,", "row 2: memory_gb is -inf, which is no number"),
        (",False,", ",no,", "extrapolated is 'no', not True or False"),
        (",ok,", ",fine,", "status is 'fine'"),
        (",real,", ",true,", "data is 'true'"),
        (f",{MACHINE},", ",Other,", f"of 'Other', the file's name says '{MACHINE}'"),
        ("2026-11-24T12:00:00+00:00", "yesterday", "started_at is 'yesterday'"),
        ("2026-11-24T12:00:00+00:00", "2026-11-24T12:00:00", "without a time zone"),
        (f",{PROJECT_VERSION},", ",one,", "project_version is 'one'"),
        ("MPS backend out of memory", "", "status is 'out_of_memory', but error is empty"),
    ],
)
def test_faults_of_a_training_file(results_dir, old, new, said):
    edit(cifar100(results_dir), old, new)
    _, problems = check_folder(results_dir)
    assert any(said in problem for problem in problems), problems
    assert all(str(cifar100(results_dir)) in problem for problem in problems)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (",12.1,", ",quick,", "tokens_per_second is 'quick', not a number"),
        (",12.1,40,151,", ",,40,,", "there are no tokens per second"),
        (",llama-2-7b-chat.Q4_0,", ",other,", "the file's name says"),
        (",-1,", ",-7,", "n_gpu_layers is -7"),
        (",12.1,", ",Infinity,", "row 2: tokens_per_second is Infinity, which is no number"),
        ("question,", "asked,", "column 'question' is missing"),
    ],
)
def test_faults_of_a_file_of_generations(results_dir, old, new, said):
    edit(llama(results_dir), old, new)
    _, problems = check_folder(results_dir)
    assert any(said in problem for problem in problems), problems


def test_a_duplicate_row(results_dir):
    path = cifar100(results_dir)
    path.write_text(path.read_text() + path.read_text().splitlines()[1] + "\n")
    _, problems = check_folder(results_dir)
    assert re.fullmatch(r".*: row \d+: the same as row 2", *problems)


def test_a_torn_file(results_dir):
    path = cifar100(results_dir)
    path.write_text(path.read_text()[:-9])
    _, (problem,) = check_folder(results_dir)
    assert str(path) in problem and problem.count(str(path)) == 1


def test_a_file_that_is_none_of_ours(results_dir):
    path = results_dir / "results_pytorch_cv" / "notes.csv"
    path.write_text("a\n1\n")
    _, (problem,) = check_folder(results_dir)
    assert problem == f"{path}: neither folder and name of an experiment's results"


def test_flags_and_extra_columns_of_an_experiment_are_known(tmp_path):
    path = files.training_path(tmp_path, "tensorflow_nlp", MACHINE, files.TRAINING[5][1])
    row = files.training_row(MACHINE, 16, 9.0, 25_000)
    append_row(path, row | {"embed_dim": 64}, COLUMNS)
    assert check_folder(tmp_path) == (1, [])
    nlp = files.training_path(tmp_path, "pytorch_nlp", MACHINE, files.TRAINING[2][1])
    append_row(nlp, row | {"test_accuracy": 0.9, "weights": "random"}, COLUMNS)
    assert check_folder(tmp_path) == (2, [])
    append_row(path, row | {"colour": "red"}, COLUMNS)
    _, (problem,) = check_folder(tmp_path)
    assert "unknown column 'colour'" in problem


def test_faults_of_older_files(results_dir):
    path = (
        results_dir / "results_tensorflow_cv/Apple_M3_CIFAR100_resnet50_32_tensorflow_results.csv"
    )
    edit(path, "\n16,", "\nmany,")
    _, (problem,) = check_folder(results_dir)
    assert problem == f"{path}: row 2: batch_size is 'many', not a number"
    edit(path, "\nmany,420.0", "\n16,inf")
    _, (problem,) = check_folder(results_dir)
    assert "row 2: avg_time_per_epoch is inf, which is no number" in problem


def test_a_loss_that_is_no_number_is_said_once_and_as_what_it_is(results_dir):
    for loss in ("nan", "inf"):
        text = cifar100(results_dir).read_text()
        edit(cifar100(results_dir), ",0.6,ok,", f",{loss},ok,")
        _, (problem,) = check_folder(results_dir)
        assert f"train_loss is {loss}: the device computed nonsense" in problem
        cifar100(results_dir).write_text(text)


def test_faults_of_the_geekbench_table(results_dir):
    path = results_dir / "results_geekbench_ml" / "geekbench_ml_0.6.csv"
    edit(path, ",1809,", ",-1809,")
    edit(path, "M3 14 inch, 2023", "M1 Pro 14 inch, 2021")
    _, problems = check_folder(results_dir)
    assert len(problems) == 2
    assert "is there twice" in problems[0] and "is not above 0" in problems[1]
    edit(path, ",5747,", ",inf,")
    _, problems = check_folder(results_dir)
    assert len(problems) == 3 and "row 3: gpu_score is inf, which is no number" in problems[0]


def test_a_report_of_selfcheck_under_another_name(results_dir):
    path = results_dir / "selfcheck" / f"{MACHINE}.json"
    path.rename(path.with_name("Other.json"))
    _, (problem,) = check_folder(results_dir)
    assert "Other.json" in problem and MACHINE in problem
