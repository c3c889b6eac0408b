"""Before the first minute is spent, and when a run is cut short: what all commands share."""

import contextlib
import errno
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

from harness.awake import count_stops
from harness.process import UsageError, UserError
from harness.results import LOCK_SECONDS, UnreadableResults, read_rows
from harness.streams import refused

PROBE_BYTES = 1 << 20  # of a first row there is less, but a disk with less room is full


@contextlib.contextmanager
def only_benchmark(kind: str = "benchmark"):
    """Whether this user runs no other benchmark of the collection, or of a kind, meanwhile.

    Raises:
        UsageError: no temporary folder takes a file; frameworks, too, need one.
    """
    try:
        folder = Path(tempfile.gettempdir())
        lock = FileLock(folder / f"mac_ml_speed_test_{kind}_{os.getuid()}.lock")
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    except OSError as error:
        raise UsageError(
            f"temporary folder: {error.strerror}; set TMPDIR to a folder on a local disk with room"
        ) from None
    try:
        yield True
    finally:
        lock.release()


class Ended(KeyboardInterrupt):
    """SIGTERM, or SIGHUP of a terminal that was closed, which ends a run as Ctrl-C does."""


def end_like_ctrl_c(number: int, _frame) -> None:
    raise Ended(number)


@contextlib.contextmanager
def one_line_errors(rows: list[dict], results_dir: Path):
    """Say what went wrong in one line, and exit with its code; after Ctrl-C also what is saved.

    SIGTERM and SIGHUP are as good as Ctrl-C; the exit code is 128 and the number of the signal.
    """
    count_stops()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, end_like_ctrl_c)
    try:
        yield
        if refused:
            raise UserError(f"what it said is not all there ({refused[0].strerror})")
    except (UserError, UnreadableResults) as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
    except KeyboardInterrupt as interrupt:
        # A second, impatient one must not cut the farewell short.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        saved = f"{len(rows)} rows of this run are saved under {results_dir}"
        print(f"\nInterrupted: {saved}.", file=sys.stderr)
        sys.exit(128 + (interrupt.args[0] if isinstance(interrupt, Ended) else signal.SIGINT))


def raise_open_files_limit() -> None:
    """Data loaders need more open files than macOS' 256; setting the limit to infinity fails."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ceiling = 65536 if hard == resource.RLIM_INFINITY else hard
    for limit in (65536, 10240, 8192, 4096):
        if min(limit, ceiling) <= soft or soft == resource.RLIM_INFINITY:
            return
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit, ceiling), hard))
            return
        except (ValueError, OSError):
            continue


def require_writable(results_dir: Path) -> None:
    """Raises UsageError unless files can be written to `results_dir` and the disk has room."""
    try:
        results_dir.mkdir(parents=True, exist_ok=True)
        probe = results_dir / f".writable_{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"--results_dir={results_dir}: cannot be written ({error.strerror})"
        ) from None
    if shutil.disk_usage(results_dir).free < 100e6:
        raise UserError(f"--results_dir={results_dir}: less than 0.1 GB is free on its disk")


def require_saving(path: Path) -> None:
    """Raises UsageError unless a row can be added to the results file at `path`.

    Its real folder, lock and disk are tried, and what it holds is read.

    Raises:
        UnreadableResults: the file is there, and cannot be read back.
    """
    probe = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock"), timeout=LOCK_SECONDS):
            read_rows(path)
            probe.write_bytes(bytes(PROBE_BYTES))
            probe.unlink()
    except Timeout:
        raise UsageError(
            f"--results_dir: another process holds {path.with_suffix('.lock')}; end it, or delete "
            "the file if there is none"
        ) from None
    except OSError as error:
        with contextlib.suppress(OSError):
            probe.unlink()
        if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP):
            problem = f"its disk refuses locks ({error.strerror}); choose a folder on a local disk"
        else:
            problem = f"{error.strerror}; if another user owns it, choose another folder"
        raise UsageError(f"--results_dir: no row can be saved in {path}: {problem}") from None
