"""How a measuring process ends, in its last words: recorded texts, and real processes that die."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

import harness.machine
from harness import process
from harness.endings import is_out_of_memory, outcome_of_exit_code
from harness.process import run_in_fresh_process, tell

OMP = """OMP: Error #15: Initializing libomp.dylib, but found libiomp5.dylib already initialized.
OMP: Hint This means that multiple copies of the OpenMP runtime have been linked into the program.
"""
METAL = """/AppleInternal/.../MPSCommandBuffer.mm:86: failed assertion
Error: command buffer exited with error status.
    The Metal Performance Shaders operations encoded on it may not have completed.
    Error: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)
"""
BAD_ALLOC = """terminate called after throwing an instance of 'std::bad_alloc'
  what():  std::bad_alloc
"""
AVX = (
    "The TensorFlow library was compiled to use AVX instructions, but these aren't available on "
    "your machine.\n"
)


@pytest.mark.parametrize(
    ("number", "said", "status", "words"),
    [
        (signal.SIGABRT, OMP, "killed", "two OpenMP libraries"),
        (signal.SIGABRT, METAL, "out_of_memory", "Insufficient Memory"),
        (signal.SIGABRT, BAD_ALLOC, "out_of_memory", "bad_alloc"),
        (signal.SIGABRT, AVX, "killed", "lacks instructions"),
        (signal.SIGABRT, "loading\nfree(): invalid pointer\n", "killed",
         "(free(): invalid pointer: a library freed what is not its own; try another build"),
        (signal.SIGABRT, "munmap_chunk(): invalid pointer\n", "killed", "another driver"),
        (signal.SIGABRT, "double free or corruption (!prev)\n", "killed", "another driver"),
        (signal.SIGABRT, "corrupted size vs. prev_size\n", "killed", "another driver"),
        (signal.SIGABRT, "python(4242) malloc: *** error for object 0x1: pointer being freed was "
         "not allocated\n", "killed", "another driver"),
        (signal.SIGABRT, "a check failed: x == y\n", "killed", "a check failed: x == y"),
        (signal.SIGABRT, "", "killed", "ended by SIGABRT"),
        (signal.SIGILL, "", "killed", "AVX"),
        (signal.SIGSEGV, "", "killed", "ended by SIGSEGV"),
        (signal.SIGKILL, "", "killed", "out of memory"),
    ],
)  # fmt: skip
def test_the_cause_is_what_the_last_lines_say(number, said, status, words):
    outcome = outcome_of_exit_code(-number, said.splitlines())
    assert outcome["status"] == status and words in outcome["error"]
    # Only the out-of-memory killer's signal means memory without a word.
    assert ("memory" in outcome["error"].lower()) == (
        "memory" in words.lower()
    ) or status == "out_of_memory"


def test_a_kill_where_none_was_for_memory_is_anothers():
    outcome = outcome_of_exit_code(-signal.SIGKILL, [], by_others=True)
    assert outcome["error"] == (
        "ended by SIGKILL (by a user or another program, not for want of memory)"
    )


@pytest.mark.parametrize(
    ("message", "memory"),
    [
        ("DataLoader worker (pid 12) is killed by signal: Killed. ", True),
        ("DataLoader worker (pid 12) is killed by signal: Segmentation fault. ", False),
        ("Unable to find a valid cuDNN algorithm to run convolution", True),
        ("GET was unable to find an engine to execute this computation", False),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", True),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`", False),
        ("Dst tensor is not initialized.", True),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_out_of_memory_in_disguise(message, memory):
    assert is_out_of_memory(RuntimeError(message)) is memory
    assert not is_out_of_memory(ValueError(message))


def abort_with_words() -> None:
    os.write(2, b"loading\n" + OMP.encode())
    os.abort()


def test_last_words_are_shown_and_kept(capfd):
    outcome = run_in_fresh_process(abort_with_words)
    assert outcome["status"] == "killed" and "two OpenMP libraries" in outcome["error"]
    assert "OMP: Error #15" in capfd.readouterr().err


def write_much() -> int:
    for _ in range(100):
        os.write(2, b"x" * 10_000 + b"\n")
    print("from Python", file=sys.stderr)
    return 1


def test_much_on_standard_error_does_not_block(capfd):
    assert run_in_fresh_process(write_much) == {"status": "ok", "value": 1}
    shown = capfd.readouterr().err
    assert shown.count("x") == 1_000_000 and "from Python" in shown


def send_half_a_message() -> None:
    connection = process._parent
    os.write(connection.fileno(), (1000).to_bytes(4, "big") + b"half")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_killed_in_the_middle_of_a_message_is_a_row():
    outcome = run_in_fresh_process(send_half_a_message)
    assert outcome["status"] == "killed" and "SIGKILL" in outcome["error"]


def hang() -> None:
    tell("first step")
    harness.machine.other_load(60)


def test_a_process_that_hangs_ends_as_a_row(monkeypatch):
    monkeypatch.setattr(process, "LISTEN_SECONDS", 0.2)
    told = []
    started = time.monotonic()
    outcome = run_in_fresh_process(hang, progress=told.append, patience=7.0)
    assert outcome["status"] == "killed"
    assert outcome["error"] == "hung: ended after 0 minutes of silence, in: other load"
    assert time.monotonic() - started < 30
    # Silence is told from a word that it gave.
    assert ("first step", "", None) in told and None in told and "other load" in told


def work_slowly() -> str:
    for _ in range(6):
        time.sleep(0.3)
        tell("a step")
    return "done"


def test_who_tells_of_its_steps_does_not_hang(monkeypatch):
    monkeypatch.setattr(process, "LISTEN_SECONDS", 0.1)
    assert run_in_fresh_process(work_slowly, patience=1.0)["value"] == "done"


def start_an_endless_process() -> int:
    import multiprocessing

    helper = multiprocessing.Process(target=time.sleep, args=(600,))
    helper.start()
    return helper.pid


def test_endless_processes_of_a_library_neither_hang_a_sweep_nor_outlive_it():
    started = time.monotonic()
    pid = run_in_fresh_process(start_an_endless_process)["value"]
    assert time.monotonic() - started < 20
    assert not psutil.pid_exists(pid)


def start_an_endless_process_and_hang() -> None:
    tell(str(start_an_endless_process()))
    time.sleep(60)


def test_what_a_hung_process_started_ends_with_it(monkeypatch):
    monkeypatch.setattr(process, "LISTEN_SECONDS", 0.5)
    told = []
    # Long enough for a busy machine to start Python anew.
    run_in_fresh_process(start_an_endless_process_and_hang, progress=told.append, patience=8.0)
    pid = int(next(message for message in told if message)[0])
    deadline = time.monotonic() + 5
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie":
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_progress_bars_still_see_the_terminal(tmp_path):
    """The child's Python writes to the terminal itself, whose width and kind it can ask for."""
    script = tmp_path / "terminal.py"
    script.write_text(
        "import sys\n"
        "from harness.process import run_in_fresh_process\n"
        "def ask():\n    return sys.stderr.isatty()\n"
        "if __name__ == '__main__':\n    print(run_in_fresh_process(ask)['value'])\n"
    )
    terminal, end = os.openpty()
    root = os.path.dirname(os.path.dirname(__file__))
    done = subprocess.run(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=end, text=True,
        env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    os.close(terminal)
    os.close(end)
    assert done.stdout == "True\n"
