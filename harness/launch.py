"""How a script was started: what fresh processes need is a file that they can load."""

import builtins
import os
import sys
from collections.abc import Callable
from pathlib import Path

from harness.process import UsageError


def require_script(function: Callable) -> None:
    """Raises UsageError where a fresh process could not find the function of the script again.

    That is so in a notebook (`%run`), of a script on standard input, and with `python -c`. Nor may
    torchrun start it, which would start the whole sweep once for every device.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UsageError(
            f"torchrun would run the whole sweep on every device; start it as python "
            f"{Path(sys.argv[0]).name}; for several, --help lists --num_devices, --num_machines"
        )
    if function.__module__ != "__main__":
        return
    file = getattr(sys.modules["__main__"], "__file__", None)
    if file and Path(file).is_file() and not hasattr(builtins, "__IPYTHON__"):
        return
    source = Path(function.__code__.co_filename)
    name = source.name if source.suffix == ".py" else "SCRIPT.py"
    raise UsageError(
        f"every measurement loads the script in a fresh process; start it as python {name}, "
        f"in a notebook as !python {name}"
    )
