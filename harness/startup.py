"""Before the first minute is spent, and when a run is cut short: what all commands share."""

import contextlib
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

from harness.process import UsageError, UserError
from harness.results import UnreadableResults

# Variables of the environment that change what is measured, behind the command line's back.
OVERRIDES = (
    "NVIDIA_TF32_OVERRIDE",  # beats every program's choice of float32 or TF32
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",  # float32 products computed in bf16 on processors
    "DNNL_DEFAULT_FPMATH_MODE",
    "TF_SET_ONEDNN_FPMATH_MODE",
    "PYTORCH_ENABLE_MPS_FALLBACK",  # what MPS lacks would run on the processor, unseen
    "KERAS_MAX_EPOCHS",
    "KERAS_MAX_STEPS_PER_EPOCH",
)


def ignore_overrides() -> None:
    """Take `OVERRIDES` out of the environment, and say so; before a framework has read them."""
    for name in OVERRIDES:
        if os.environ.pop(name, None) is not None:
            print(f"Note: {name} is set, and not heeded: it would change what is measured")


@contextlib.contextmanager
def only_benchmark(kind: str = "benchmark"):
    """Whether this user runs no other benchmark of the collection, or of a kind, meanwhile."""
    lock = FileLock(Path(tempfile.gettempdir()) / f"mac_ml_speed_test_{kind}_{os.getuid()}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextlib.contextmanager
def one_line_errors(rows: list[dict], results_dir: Path):
    """Say what went wrong in one line, and exit with its code; after Ctrl-C also what is saved."""
    try:
        yield
    except (UserError, UnreadableResults) as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
    except KeyboardInterrupt:
        # A second, impatient one must not cut the farewell short.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        saved = f"{len(rows)} rows of this run are saved under {results_dir}"
        print(f"\nInterrupted: {saved}.", file=sys.stderr)
        sys.exit(130)


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
