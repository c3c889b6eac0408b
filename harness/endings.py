"""How a process ended, in words: out of memory, or a hint at what the user can mend.

A model that fails in Python raises; one that fails in a library often ends the process, and all it
leaves is a signal and its last lines on standard error.
"""

import os
import re
import signal
import threading
from pathlib import Path

KEPT_BYTES = 4000  # of standard error: a screen full

OUT_OF_MEMORY_NAMES = {"OutOfMemoryError", "ResourceExhaustedError"}
OUT_OF_MEMORY_WORDS = re.compile(
    r"out of memory|OutOfMemory|Invalid buffer size|can't allocate memory|bad_alloc"
    r"|Cannot allocate memory|fail(ed|ure) to allocate|Insufficient Memory|Unable to allocate"
    r"|Attempting to allocate"
    # What libraries say that could not get their workspace.
    r"|CUBLAS_STATUS_(ALLOC_FAILED|NOT_INITIALIZED)|CUDNN_STATUS_ALLOC_FAILED"
    r"|Unable to find a valid cuDNN algorithm|Dst tensor is not initialized"
    # The system's out-of-memory killer chose a worker of the data loader.
    r"|DataLoader worker .* killed by signal: Killed",
    re.IGNORECASE,
)

# What the C library says, of Linux and of macOS, when somebody freed what is not theirs.
BROKEN_HEAP = re.compile(
    r"(malloc|free|realloc|malloc_consolidate|munmap_chunk)\(\): .+|double free or corruption.*"
    r"|corrupted (size|double-linked list).*|pointer being freed was not allocated",
    re.IGNORECASE,
)

# What the last lines say, and what the user can do about it; `{}` are the words found.
HINTS = {
    BROKEN_HEAP.pattern: "{}: a library freed what is not its own; try another build of it, or "
    "another driver",
    r"OMP: Error #15": "two OpenMP libraries in one environment (conda and pip mixed, most often); "
    "install everything with pip in a new environment",
    r"compiled to use \w+ instructions": "this processor lacks instructions that the package needs "
    "(on Apple silicon: an x86 Python under Rosetta); install the package for this processor",
    r"bus error|No space left on device.*shm": "shared memory ran out; in a container: "
    "--shm-size=8g or --ipc=host",
}
SIGNAL_HINTS = {
    "SIGKILL": "often: out of memory",
    "SIGILL": "this processor lacks instructions that a package needs, such as AVX",
    "SIGBUS": "often: shared memory or the disk is full",
}

# TensorFlow's OpError: what XLA compiled says so in an InternalError.
SAY_SO_IN_WORDS = {"RuntimeError", "OSError", "OpError", "XGBoostError", "LightGBMError"}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is how CUDA, Metal, a CPU allocator or TensorFlow says out of memory."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return (
        isinstance(error, MemoryError)
        or bool(names & OUT_OF_MEMORY_NAMES)
        or bool(names & SAY_SO_IN_WORDS)
        and OUT_OF_MEMORY_WORDS.search(str(error)) is not None
    )


def memory_kills() -> int | None:
    """How many processes the system has killed for want of memory; None where it does not tell.

    Linux counts those of its containers too (`oom_kill` in /proc/vmstat, since 4.13).
    """
    try:
        counters = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    except OSError:
        return None
    return int(counters["oom_kill"]) if "oom_kill" in counters else None


def outcome_of_exit_code(code: int, last_lines: list[str], by_others: bool = False) -> dict:
    """Status and error of a process that ended without an outcome.

    Args:
        code: as `multiprocessing` has it, the negative number of a signal.
        last_lines: of its standard error.
        by_others: whether the system killed nothing meanwhile for want of memory.
    """
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    text = "\n".join(last_lines)
    memory = OUT_OF_MEMORY_WORDS.search(text)
    hints = ((re.search(words, text, re.I), hint) for words, hint in HINTS.items())
    hint = next((hint.format(found[0]) for found, hint in hints if found), None)
    if memory:
        # The line that says so; what comes after it is often only a trace.
        why = next(line for line in last_lines if OUT_OF_MEMORY_WORDS.search(line))
    elif by_others and name == "SIGKILL":
        why = "by a user or another program, not for want of memory"
    else:
        why = hint or SIGNAL_HINTS.get(name) or (last_lines[-1] if last_lines else "")
    return {
        "status": "out_of_memory" if memory else "killed" if code < 0 else "error",
        "error": f"ended by {name}" + (f" ({why[:200]})" if why else ""),
    }


class LastLines:
    """Shows what a process writes to its standard error, and keeps the end of it."""

    def __init__(self, connection):
        """`connection` is the reading end of a pipe that is the process' standard error."""
        self.tail = b""
        self.terminal_is_there = True
        self.thread = threading.Thread(target=self._pass_on, args=(connection,), daemon=True)
        self.thread.start()

    def _pass_on(self, connection) -> None:
        with connection:
            while block := os.read(connection.fileno(), 1 << 16):
                self.tail = (self.tail + block)[-KEPT_BYTES:]
                self._show(block)

    def _show(self, block: bytes) -> None:
        if self.terminal_is_there:
            try:
                os.write(2, block)
            except OSError:  # a terminal that was closed; the process must not stand still for it
                self.terminal_is_there = False

    def lines(self) -> list[str]:
        """The last lines that are not empty, once the process has ended."""
        # A worker that outlives the process holds the pipe open: what was written is here by then.
        self.thread.join(1.0)
        text = self.tail.decode(errors="replace")
        return [line.strip() for line in text.splitlines() if line.strip()]
