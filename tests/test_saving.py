"""No measured row is lost: folders, locks and disks that refuse, and signals that end a run."""

import contextlib
import csv
import errno
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from signals import hear_signals
from test_sweep import ROOT, command, rows, run, script, statuses  # noqa: F401 - a fixture too

import harness.results
import harness.startup
import utils
from harness.results import UnreadableResults
from harness.startup import only_benchmark, require_saving
from harness.sweep import save
from harness.turns import Turn
from harness.turns import run as run_turn

FILE = "results_fake_cv/M_none_tiny_8_fake_results.csv"
TOOLS = [["check_results.py"], ["compare_results.py", "M", "N"]]


def ends_at_once_in_one_line(done, path):
    """Before anything was measured."""
    assert done.returncode != 0 and "samples/s" not in done.stdout
    (line,) = done.stderr.splitlines()
    assert str(path) in line


def test_a_file_where_the_folder_should_be(script, tmp_path):  # noqa: F811
    folder = tmp_path / "results" / "results_fake_cv"
    folder.parent.mkdir()
    folder.write_text("in the way")
    ends_at_once_in_one_line(run(script, tmp_path), folder)


def test_a_folder_named_like_the_file(script, tmp_path):  # noqa: F811
    path = tmp_path / "results" / FILE
    path.mkdir(parents=True)
    ends_at_once_in_one_line(run(script, tmp_path), path)


@pytest.mark.parametrize("tool", TOOLS)
def test_tools_name_a_folder_named_like_a_file(tool, tmp_path):
    path = tmp_path / "results_pytorch_cv" / "M_cifar100_resnet50_32_pytorch_results.csv"
    path.mkdir(parents=True)
    flag = [str(tmp_path)] if tool[0].startswith("check") else [f"--results_dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, ROOT / tool[0], *tool[1:], *flag], capture_output=True, text=True
    )
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert f"{path.name} cannot be read (Is a directory)" in done.stdout + done.stderr


def test_a_page_that_cannot_be_written_is_a_line(tmp_path):
    (tmp_path / "index.tmp").mkdir()
    page = [sys.executable, "-m", "reporting.page", tmp_path]
    done = subprocess.run(page, capture_output=True, text=True, cwd=ROOT)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and f"{tmp_path}/index.html cannot be written" in line


@contextlib.contextmanager
def as_nobody():
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(os.getuid() != 0, reason="takes two users")
def test_files_of_another_user_are_found_before_the_first_minute(tmp_path):
    for folder in (tmp_path, *list(tmp_path.parents)[:-2]):
        folder.chmod(0o755)
    path = tmp_path / "results_fake_cv" / "M.csv"
    require_saving(path)  # as root, which leaves folder and lock to root
    with as_nobody(), pytest.raises(utils.UsageError, match="--results_dir.*another user"):
        require_saving(path)
    path.parent.chmod(0o777)
    path.with_suffix(".lock").unlink()
    with as_nobody():
        require_saving(path)
    path.write_text("a\n1\n")
    path.chmod(0o600)
    with as_nobody(), pytest.raises(UnreadableResults, match="cannot be read .Permission denied"):
        require_saving(path)


def test_a_disk_that_refuses_locks_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(utils.UsageError, match="refuses locks.*local disk"):
        require_saving(tmp_path / "M.csv")


def test_a_lock_that_is_held_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(harness.startup, "LOCK_SECONDS", 0.1)
    with (
        harness.results.FileLock(tmp_path / "M.lock"),
        pytest.raises(utils.UsageError, match="another process holds"),
    ):
        require_saving(tmp_path / "M.csv")


def test_probing_leaves_a_file_as_it_is(tmp_path):
    path = tmp_path / "M.csv"
    path.write_text("batch_size\n1\n")
    require_saving(path)
    assert path.read_text() == "batch_size\n1\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["M.csv", "M.lock"]
    path.write_text("torn")
    with pytest.raises(UnreadableResults):
        require_saving(path)


FULL_DISK = """
mount -t tmpfs -o size=130m none {results}
EVENT=fill exec {command}
"""


@pytest.mark.skipif(os.getuid() != 0, reason="mounts a small disk")
def test_a_disk_that_fills_up_costs_no_row(script, tmp_path):  # noqa: F811
    """A real small disk, filled before the second row: it goes to where there is room."""
    results, elsewhere = tmp_path / "results", tmp_path / "elsewhere"
    results.mkdir()
    elsewhere.mkdir()
    text = script.read_text().replace(
        'if event == "crashed":',
        'if event == "fill":\n        fill(options.results_dir)\n    if event == "crashed":',
    )
    script.write_text(text.replace("def prepare", FILL + "\ndef prepare"))
    words = " ".join(f"'{word}'" for word in command(script, tmp_path))
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", FULL_DISK.format(results=results, command=words)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(elsewhere)},
        capture_output=True, text=True,
    )  # fmt: skip
    saved = elsewhere / Path(FILE).name
    assert done.returncode == 1, done.stderr
    assert f"No space left on device); the row is in {saved}" in done.stderr
    assert done.stdout.splitlines()[-1] == f"Results: {results / FILE}, {saved}"
    with saved.open(newline="") as file:
        assert [row["batch_size"] for row in csv.DictReader(file)] == ["2", "3"]


FILL = """
def fill(folder):
    with (folder / "filling").open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                pass
"""


def test_a_row_that_no_disk_takes_is_on_the_terminal(tmp_path, monkeypatch, capsys):
    def full(path, *_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("harness.sweep.append_row", full)
    assert save(tmp_path / "M.csv", {"batch_size": 16, "samples_per_second": 5.5}, []) is None
    assert "'samples_per_second': 5.5" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="takes a user of a number")
def test_a_user_without_name_and_home_costs_no_row(script, tmp_path):  # noqa: F811
    """As containers run: each error names homes, which are to be taken out of the row."""
    home = 'raise ValueError(os.path.expanduser("~"))'
    script.write_text(script.read_text().replace('raise ValueError("the model is wrong")', home))
    gone = {"HOME", "USER", "LOGNAME", "LNAME", "USERNAME"}
    environment = {name: value for name, value in os.environ.items() if name not in gone}
    done = subprocess.run(
        ["unshare", "--user", "--map-user=54321", *command(script, tmp_path)],
        env={**environment, "PYTHONPATH": str(ROOT), "EVENT": "error"},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert [status for _, status in statuses(tmp_path)] == ["ok", "error", "ok"], done.stderr
    # Libraries would make a folder called `~`.
    assert rows(tmp_path)[1]["error"] == f"ValueError: {tempfile.gettempdir()}"
    assert done.returncode == 1


def test_a_row_finds_a_folder_where_there_is_neither_a_temporary_nor_a_home(tmp_path, monkeypatch):
    def none_there():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(tempfile, "gettempdir", none_there)
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.chdir(tmp_path)
    assert save(Path("/proc/nowhere/M.csv"), {"batch_size": 16}, []) == tmp_path / "M.csv"


@pytest.mark.parametrize("asked", ["tempfile.gettempdir", "fcntl.flock"])
def test_without_a_temporary_folder_a_line_names_the_variable(monkeypatch, asked):
    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(asked, refuse)
    with pytest.raises(utils.UsageError, match="Read-only.*TMPDIR"), only_benchmark():
        pass


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "M.csv"
    harness.results.append_row(path, {"batch_size": 1}, [])
    monkeypatch.setattr(harness.results.os, "fsync", full)
    with pytest.raises(OSError):
        harness.results.append_row(path, {"batch_size": 2}, [])
    assert path.read_text() == "batch_size\n1\n" and not (tmp_path / "M.tmp").exists()


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_streams_that_the_starter_closed_cost_no_row(script, tmp_path, closed):  # noqa: F811
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *command(script, tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0 and len(rows(tmp_path)) == 3


def test_a_reader_that_ends_costs_no_row(script, tmp_path):  # noqa: F811
    process = subprocess.Popen(
        command(script, tmp_path), env={**os.environ, "PYTHONPATH": str(ROOT), "EVENT": "error"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.readline()
    process.stdout.close()
    process.stderr.close()
    assert process.wait(60) == 1  # of the row that failed
    assert [status for _, status in statuses(tmp_path)] == ["ok", "error", "ok"]


def test_a_terminal_that_goes_away_costs_no_row(script, tmp_path):  # noqa: F811
    """As that of a disowned job does; bars are drawn until then."""
    terminal, end = os.openpty()
    process = subprocess.Popen(
        command(script, tmp_path), env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=end, stdout=end, stderr=end, start_new_session=True,
    )  # fmt: skip
    os.close(end)
    said = b""
    while b"samples/s" not in said:
        said += os.read(terminal, 1 << 16)
    os.close(terminal)
    assert process.wait(60) == 0 and len(rows(tmp_path)) == 3


def test_a_full_disk_takes_words_and_no_row(script, tmp_path):  # noqa: F811
    """nohup's file on a disk that is full; that words are missing is said by the exit code."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command(script, tmp_path), env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert done.returncode == 1 and len(rows(tmp_path)) == 3
    (line,) = done.stderr.splitlines()
    assert "not all there (No space left on device)" in line


SEMAPHORE = """
    if event == "wait":
        import multiprocessing
        lock = multiprocessing.get_context("spawn").Lock()
        print("waiting", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_like_ctrl_c(script, tmp_path, number):  # noqa: F811
    """Rows kept, no orphan, and no word about semaphores that the killed process had."""
    text = script.read_text()
    waits = '\n    if event == "wait":\n        print("waiting", flush=True)\n'
    assert waits in text
    script.write_text(text.replace(waits, SEMAPHORE))
    process = subprocess.Popen(
        command(script, tmp_path), env={**os.environ, "PYTHONPATH": str(ROOT), "EVENT": "wait"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=hear_signals,
    )  # fmt: skip
    next(line for line in process.stdout if "waiting" in line)
    os.kill(process.pid, number)  # this process alone, as `kill` and a service manager do
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert errors.strip() == f"Interrupted: 1 rows of this run are saved under {tmp_path}/results."
    assert statuses(tmp_path) == [("1", "ok")]
    deadline = time.monotonic() + 5
    while session(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def session(number: int) -> list[psutil.Process]:
    """The living processes of a session."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == number and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_nohup_and_a_background_job_are_heard(script, tmp_path, number):  # noqa: F811
    previous = signal.signal(number, signal.SIG_IGN)
    try:
        process = subprocess.Popen(
            command(script, tmp_path), env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        next(line for line in process.stdout if "samples/s" in line)
        os.killpg(process.pid, number)
        process.communicate(timeout=60)
    finally:
        signal.signal(number, previous)
    assert process.returncode == 0 and len(rows(tmp_path)) == 3


WAITING_SCRIPT = """
import signal, sys, time
from pathlib import Path
def end(*_):
    Path(sys.argv[0]).with_suffix(".saved").write_text("a row")
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
Path(sys.argv[0]).with_suffix(".started").touch()
time.sleep(60)
"""


def test_a_signal_to_run_all_reaches_the_script_that_it_runs(tmp_path):
    """Unlike Ctrl-C in a terminal, which both hear."""
    waiting = tmp_path / "waiting.py"
    waiting.write_text(WAITING_SCRIPT)
    turn = Turn(waiting, None, {})
    started = waiting.with_suffix(".started")

    def end_once_started():
        while not started.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    previous = signal.signal(signal.SIGTERM, harness.startup.end_like_ctrl_c)
    thread = threading.Thread(target=end_once_started)
    thread.start()
    try:
        with pytest.raises(harness.startup.Ended):
            run_turn(turn, 1.0, {}, tmp_path / "log")
    finally:
        thread.join()
        signal.signal(signal.SIGTERM, previous)
    assert waiting.with_suffix(".saved").read_text() == "a row"


def test_a_number_that_is_none_is_an_empty_cell(tmp_path):
    """But for a loss, by which a row is known as nonsense."""
    path = tmp_path / "results.csv"
    for number in (math.inf, -math.inf, math.nan, np.float32("inf")):
        row = {"samples_per_second": number, "train_loss": number, "status": "ok"}
        harness.results.append_row(path, row, [])
    _, saved = harness.results.read_rows(path)
    assert [row["samples_per_second"] for row in saved] == [""] * 4
    assert [row["train_loss"] for row in saved] == ["inf", "-inf", "nan", "inf"]
