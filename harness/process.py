"""A function in a process of its own, and how it ended: done, out of memory, killed or failed."""

import multiprocessing
import os
import re
import signal
import threading
import traceback
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend, said in one line; exit code 1."""

    exit_code = 1


class UsageError(UserError):
    """A wrong flag, said in one line; exit code 2."""

    exit_code = 2


def run_in_fresh_process(function: Callable, *arguments) -> dict:
    """Call a top-level function in a spawned process; returns how it ended.

    Keys: `status`, then `value`, or `error` (one line) and for an exception `details`.
    Status is `ok`, `out_of_memory`, `killed` (error names the signal), `user_error` or `error`.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        outcome = receiver.recv()
        process.join()
    except EOFError:
        process.join()
        outcome = _outcome_of_exit_code(process.exitcode)
    finally:
        process.kill()
        receiver.close()
    return outcome


def _call(sender, function: Callable, arguments: tuple) -> None:
    # Ctrl-C is the parent's to handle; and a parent that was killed leaves no orphan at work.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        outcome = dict(status="ok", value=function(*arguments))
    except UserError as error:
        outcome = dict(status="user_error", error=str(error), exit_code=error.exit_code)
    except Exception as error:  # noqa: BLE001 - whatever a model raises is this row's result
        outcome = dict(
            status="out_of_memory" if is_out_of_memory(error) else "error",
            error=" ".join(f"{type(error).__name__}: {error}".split())[:300],
            details=traceback.format_exc(),
        )
    sender.send(outcome)
    sender.close()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _outcome_of_exit_code(code: int) -> dict:
    if code >= 0:
        return dict(status="error", error=f"the measuring process ended with exit code {code}")
    name = signal.Signals(-code).name
    # The system's out-of-memory killer sends SIGKILL; Metal aborts when an allocation fails.
    memory = " (often: out of memory)" if name in ("SIGKILL", "SIGABRT") else ""
    return dict(status="killed", error=f"ended by {name}{memory}")


OUT_OF_MEMORY_NAMES = {"OutOfMemoryError", "ResourceExhaustedError"}
# TensorFlow's OpError: what XLA compiled says so in an InternalError.
SAY_SO_IN_WORDS = {"RuntimeError", "OSError", "OpError", "XGBoostError", "LightGBMError"}
OUT_OF_MEMORY_WORDS = re.compile(
    r"out of memory|Invalid buffer size|can't allocate memory|bad_alloc|Cannot allocate memory"
    r"|CUBLAS_STATUS_ALLOC_FAILED|failed to allocate memory",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is how CUDA, Metal, a CPU allocator or TensorFlow says out of memory."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return (
        isinstance(error, MemoryError)
        or bool(names & OUT_OF_MEMORY_NAMES)
        or bool(names & SAY_SO_IN_WORDS)
        and OUT_OF_MEMORY_WORDS.search(str(error)) is not None
    )
