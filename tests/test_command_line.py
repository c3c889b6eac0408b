"""What people type is read as they mean it, or answered in one line that names the near flag."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import llama2_test
import pytorch_test_computer_vision_cifar100 as cifar100
import utils
from harness.arguments import CommandLine, path_name
from reporting.experiments import find_experiments, of_file

ROOT = Path(__file__).parent.parent


def parse(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["script.py", *words])
    return utils.parse_arguments(cifar100.EXPERIMENT)


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--batch_sizes=32, 64"], "batch_sizes", [32, 64]),
        (["--batch_sizes", "32", "64", "--compile"], "batch_sizes", [32, 64]),
        (["--batch_sizes=32", "64"], "batch_sizes", [32, 64]),
        (["--batch_sizes=32,64,"], "batch_sizes", [32, 64]),
        (["--batch-sizes=32"], "batch_sizes", [32]),
        (["--batch_size=32"], "batch_sizes", [32]),
        (["--batch_sizes=“32,", "64”"], "batch_sizes", [32, 64]),  # as a shell splits it
        (["—batch_sizes=32"], "batch_sizes", [32]),
        (["–epochs", "2"], "epochs", 2),
        (["--use_fp16"], "precision", "fp16"),
        (["--data=‘real’"], "data", "real"),
        (["--results_dir=~/x"], "results_dir", Path.home() / "x"),
        (["--data-dir", "~/x"], "data_dir", Path.home() / "x"),
        (["--results_dir=/a b/it’s"], "results_dir", Path("/a b/it’s")),
        (["--seed=0"], "seed", 0),
    ],
)
def test_what_is_plain_is_taken(monkeypatch, words, name, value):
    assert getattr(parse(monkeypatch, *words), name) == value


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--batchsizes=32"], "there is no --batchsizes=32; did you mean --batch_sizes?"),
        (["--num_workers=4"], "--num_workers is not needed"),
        (["--num-workers", "4"], "--num_workers is not needed"),
        (["--compile", "True"], "there is no True"),
        (["--epochs", "1", "2"], "'1 2' is not a whole number"),
        (["--batch_sizes=32,,64"], "is not a list of whole numbers"),
        (["--batch_sizes=,"], "is not a list of whole numbers"),
        (["--seed=-1"], "--seed: '-1' is not a whole number from 0"),
        (["--seed", str(2**31)], "is not a whole number from 0 to 2147483647"),
        (["--data_dir="], "--data_dir: it is empty"),
        (["--data_dir=~nobody-here/x"], "names no user's home folder"),
        (["--machine_name=.mac"], "--machine_name: '.mac' is not a name of letters, digits"),
        (["--machine_name=-mac"], "--machine_name: '-mac' is not a name of"),
        (["--machine_name=_mac"], "beginning with a letter or a digit"),
        (["--machine_name=mac_"], "single '_'"),
        (["--machine_name=my__mac"], "single '_'"),
        (["--machine_name=my mac"], "--machine_name: 'my mac' is not a name of"),
    ],
)
def test_what_is_not_ends_in_one_line(monkeypatch, capsys, words, said):
    with pytest.raises(SystemExit) as ended:
        parse(monkeypatch, *words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", ["mac", "M3.Pro-14", "a_b.-c", "9"])
def test_a_machine_is_read_back_under_the_name_it_was_given(monkeypatch, name):
    given = parse(monkeypatch, f"--machine_name={name}").machine_name
    path = cifar100.EXPERIMENT.results_path(Path("results"), given)
    assert of_file(path, find_experiments()) == (cifar100.EXPERIMENT, name)


def test_paths_with_blanks_and_negative_numbers_of_the_llm(monkeypatch):
    words = ["--path_to_gguf_model=“~/my", "models/x.gguf”", "--n_gpu_layers", "-1", "--n-ctx=9"]
    monkeypatch.setattr(sys, "argv", ["llama2_test.py", *words])
    options = utils.parse_arguments(llama2_test.EXPERIMENT)
    assert options.model == "~/my models/x.gguf"  # a name on the Hub or a path, told apart later
    assert (options.n_gpu_layers, options.n_ctx) == (-1, 9)


def test_every_path_flag_of_every_program_knows_the_home_folder(monkeypatch):
    """A flag that takes a plain Path would make a folder called `~`."""
    for script in [*ROOT.glob("*.py"), *ROOT.glob("selfchecks/*.py"), *ROOT.glob("reporting/*.py")]:
        assert "type=Path" not in script.read_text(), script.name
    parser = CommandLine("")
    parser.add_argument("folder", type=path_name)
    assert parser.parse_args(["~/x"]).folder == Path.home() / "x"


SCRIPT = """
import utils
EXPERIMENT = utils.Experiment(
    title="Fake", chart="fake", description="", backend="fake", task="cv", dataset="none",
    model="tiny", input_size=8, epochs=1, varied=utils.batch_sizes("1"), samples=9,
)
def prepare(options):
    return {"machine": "M", "device": "cpu", "framework": "fake \u00e9\u4e2d", "data": "synthetic"}
def measure(batch_size, options):
    print("\u4e2d")
    return {"avg_time_per_epoch": 1.0, "samples_per_second": 2.0, "extrapolated": False}
if __name__ == "__main__":
    utils.sweep(EXPERIMENT, prepare, measure)
"""


def start(tmp_path, *command, **changed):
    (tmp_path / "fake_test.py").write_text(SCRIPT, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **changed}
    return subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True,
        input=SCRIPT, encoding="utf-8", errors="replace",
    )  # fmt: skip


NOTEBOOK = "get_ipython().run_line_magic('run', 'fake_test.py')"


@pytest.mark.parametrize(
    "command",
    [["-"], ["-c", "exec(open('fake_test.py').read())"], ["-m", "IPython", "-c", NOTEBOOK]],
)
def test_a_start_that_cannot_work_says_which_can(tmp_path, command):
    done = start(tmp_path, *command)
    said = [line for line in (done.stdout + done.stderr).splitlines() if "error: every" in line]
    assert len(said) == 1 and "start it as python" in said[0] and "!python" in said[0]
    assert "Traceback" not in done.stderr and not list(tmp_path.rglob("*.csv"))


def test_a_terminal_without_utf_8_costs_no_row(tmp_path):
    done = start(tmp_path, "fake_test.py", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.rglob("*_results.csv")
    text = path.read_text(encoding="utf-8")
    assert ",ok," in text and "fake \u00e9\u4e2d" in text
    assert "fake ??" in done.stdout
