"""A function in a process of its own, and how it ended: done, out of memory, killed or failed."""

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil

from harness.awake import count_stops
from harness.endings import LastLines, is_out_of_memory, memory_kills, outcome_of_exit_code
from harness.private import home_folder
from harness.streams import open_streams, words_to

LISTEN_SECONDS = 5.0  # between two looks whether the process still lives
WHERE_SECONDS = 2.0  # between two words of the process on where it is
LEAVE_SECONDS = 30.0  # for a process to go, once its outcome is here
ROOT = Path(__file__).parent.parent
# A killed process leaves semaphores, which the tracker removes; that it does so is no news.
TRACKER_WARNING = "ignore:resource_tracker"


class UserError(Exception):
    """Something the user can mend, said in one line; exit code 1."""

    exit_code = 1


class UsageError(UserError):
    """A wrong flag, said in one line; exit code 2."""

    exit_code = 2


class Row(NamedTuple):
    """A row that is whole while the function that made it goes on."""

    columns: dict


class FreshProcess:
    """A spawned process that calls top-level functions, one after another.

    A context: at its end the process leaves, or is ended where it does not, or an error came up.
    """

    def __init__(self):
        if TRACKER_WARNING not in sys.warnoptions:
            sys.warnoptions.append(TRACKER_WARNING)
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        said, standard_error = context.Pipe(duplex=False)
        self.process = context.Process(target=_serve, args=(theirs, standard_error))
        self.process.start()
        theirs.close()
        standard_error.close()
        self.last_lines = LastLines(said)

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        if error is None:
            self.leave()
        _end(self.process)
        self.connection.close()

    def leave(self) -> None:
        self.connection.close()
        self.process.join(LEAVE_SECONDS)

    def call(
        self,
        function: Callable,
        *arguments,
        progress: Callable[[tuple | str | None], None] = lambda message: None,
        patience: float | None = None,
        on_row: Callable[[dict], None] = lambda row: None,
    ) -> dict:
        """Call a function there; returns how it ended. Whoever did not end well takes no other.

        Keys: `status`, then `value`, or `error` (one line) and for an exception `details`.
        Status is `ok`, `out_of_memory`, `killed` (error names the signal), `user_error` or `error`.

        Args:
            progress: called with what the function tells (see `tell`), every few seconds with where
                it is (see `whereabouts`), and with None where it does not even say that.
            patience: seconds without a word after which the process hangs, and is ended; time in
                which this process itself was stopped or asleep does not count.
            on_row: gets each row that the function hands over (see `hand_over`).
        """
        kills = memory_kills()
        try:
            self.connection.send((function, arguments))
            return _listen(self.connection, self.process, progress, patience, on_row)
        except (EOFError, BrokenPipeError):
            self.process.join()
            by_others = kills is not None and memory_kills() == kills
            return outcome_of_exit_code(self.process.exitcode, self.last_lines.lines(), by_others)


def run_in_fresh_process(function: Callable, *arguments, **listeners) -> dict:
    """Call a top-level function in a process of its own; see `FreshProcess.call`."""
    with FreshProcess() as process:
        return process.call(function, *arguments, **listeners)


def value_of(outcome: dict):
    """What the function returned that ran in a fresh process.

    Raises:
        UserError: what it raised, or that it ended otherwise.
    """
    if outcome["status"] == "user_error":
        raise (UsageError if outcome["exit_code"] == 2 else UserError)(outcome["error"])
    if outcome["status"] != "ok":
        print(outcome.get("details", ""), file=sys.stderr)
        raise UserError(f"preparation failed: {outcome['error']}")
    return outcome["value"]


def _listen(receiver, process, progress: Callable, patience, on_row: Callable) -> dict:
    """The outcome that a process sends; raises EOFError when it ends without one."""
    silent, place = 0.0, ""
    looked = time.monotonic()
    while patience is None or silent < patience:
        # Whoever outlives the process may hold the pipe open, so that it does not end by itself.
        alive = process.is_alive()
        if receiver.poll(LISTEN_SECONDS if alive else 0):
            try:
                message = receiver.recv()
            except OSError:  # it was killed in the middle of a message
                raise EOFError from None
            if isinstance(message, dict):
                return message
            if isinstance(message, Row):
                on_row(message.columns)
                receiver.send(None)
        elif not alive:
            raise EOFError
        else:
            message = None
        before, looked = looked, time.monotonic()
        # Time in which this process stood still is no silence of the other.
        silent += min(looked - before, LISTEN_SECONDS)
        silent = 0.0 if isinstance(message, tuple) else silent
        place = message if isinstance(message, str) else place
        if not isinstance(message, Row):
            progress(message)
    _end(process)
    inside = f", in: {place}" if place else ""
    return dict(
        status="killed", error=f"hung: ended after {patience / 60:.0f} minutes of silence{inside}"
    )


def _end(process) -> None:
    """Kill a process that is still there, and what it started, which would go on without it."""
    if process.is_alive():
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.join()
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()


# In the process itself

_parent = None  # the pipe to the process that waits
_sending = threading.Lock()


def tell(stage: str, detail: str = "", seconds_left: float | None = None) -> None:
    """Say to the waiting process that, and how, the work goes on; nothing where none waits.

    Args:
        stage: such as `first step`.
        detail: how far the stage is, where a bar shows it too; such as `40 % done`.
        seconds_left: of the work, as far as that is known.
    """
    _send((stage, detail, seconds_left))


def hand_over(columns: dict) -> None:
    """Give a whole row to the waiting process, which keeps it whatever becomes of this one.

    What follows is measured once that is done: writing a file takes a core.
    """
    _send(Row(columns))
    if _parent:
        _parent.recv()


def _send(message: tuple | str) -> None:
    with _sending:
        if _parent:
            _parent.send(message)


def _say_where() -> None:
    main_thread = threading.main_thread().ident
    while True:
        time.sleep(WHERE_SECONDS)
        _send(whereabouts(sys._current_frames()[main_thread]))


def whereabouts(frame) -> str:
    """The package that is being imported, or the project's function that runs: `build model`.

    Args:
        frame: the innermost one of a thread.
    """
    package = None
    while frame:
        code = frame.f_code
        if code.co_name == "_find_and_load":
            package = frame.f_locals["name"]
        file = Path(code.co_filename)
        if file.parent == ROOT or file.parent.is_relative_to(ROOT / "harness"):
            if package:
                return f"importing {package}"
            if file != Path(__file__) and code.co_name.isidentifier():  # no `<lambda>`
                return code.co_name.strip("_").replace("_", " ")
        frame = frame.f_back
    return ""


def _serve(connection, standard_error) -> None:
    """Call what the parent asks for, until it asks no more."""
    global _parent
    open_streams()
    # Ctrl-C, and a terminal that is closed, are the parent's to handle; and a parent that was
    # killed leaves no orphan at work.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    threading.Thread(target=_say_where, daemon=True).start()
    count_stops()
    _send_words_to_parent(standard_error)
    # So that NVIDIA's driver, which tells of power and heat, and CUDA number the cards alike.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    if not home_folder():  # libraries would make a folder called `~` in the current one
        os.environ["HOME"] = tempfile.gettempdir()
    with contextlib.suppress(EOFError):
        while True:
            asked = connection.recv()
            _parent = connection
            outcome = _outcome(*asked)
            with _sending:
                _parent = None
            connection.send(outcome)
    # What a library started and would be waited for at exit, though it never ends.
    for process in multiprocessing.active_children():
        if not process.daemon:
            process.terminate()


def _outcome(function: Callable, arguments: tuple) -> dict:
    try:
        return dict(status="ok", value=function(*arguments))
    except UserError as error:
        return dict(status="user_error", error=str(error), exit_code=error.exit_code)
    except Exception as error:  # noqa: BLE001 - whatever a model raises is this row's result
        return dict(
            status="out_of_memory" if is_out_of_memory(error) else "error",
            error=" ".join(f"{type(error).__name__}: {error}".split())[:300],
            details=traceback.format_exc(),
        )


def _send_words_to_parent(standard_error) -> None:
    """Let libraries write to the parent, which keeps their last lines, and Python to the terminal.

    Progress bars see the terminal itself, and know its width.
    """
    sys.stderr.flush()
    terminal = os.dup(2)
    os.dup2(standard_error.fileno(), 2)
    standard_error.close()
    sys.stderr = words_to(terminal, sys.stderr.encoding)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
