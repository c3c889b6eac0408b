"""How a script was started, and with which packages: what it needs is said in its first lines."""

import builtins
import os
import re
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from harness.process import UsageError, UserError


def require_script(function: Callable) -> None:
    """Raises UsageError where a fresh process could not find the function of the script again.

    That is so in a notebook (`%run`), of a script on standard input, and with `python -c`. Nor may
    torchrun start it, which would start the whole sweep once for every device.

    Raises:
        UserError: a package is older than the script supports.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UsageError(
            f"torchrun would run the whole sweep on every device; start it as python "
            f"{Path(sys.argv[0]).name}; for several, --help lists --num_devices, --nnodes"
        )
    if function.__module__ != "__main__":
        return
    file = getattr(sys.modules["__main__"], "__file__", None)
    if file and Path(file).is_file() and not hasattr(builtins, "__IPYTHON__"):
        require_versions(Path(file))
        return
    source = Path(function.__code__.co_filename)
    name = source.name if source.suffix == ".py" else "SCRIPT.py"
    raise UsageError(
        f"every measurement loads the script in a fresh process; start it as python {name}, "
        f"in a notebook as !python {name}"
    )


def require_versions(script: Path) -> None:
    """Raises UserError where a package is older than the script's first lines ask for."""
    from packaging.version import Version

    for requirement in needed_packages(script):
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            continue  # another package may bring the module, as xgboost-cpu does
        oldest = [s.version for s in requirement.specifier if s.operator in (">=", "==")]
        if any(Version(installed) < Version(one) for one in oldest):
            wanted = f"{requirement.name}>={oldest[0]}"
            raise UserError(
                f"{requirement.name} {installed} is too old for {script.name}: "
                f"python -m pip install '{wanted}'"
            )


def missing_packages(script: Path) -> list[str]:
    """Those of the packages in a script's first lines that this Python lacks."""
    missing = []
    for requirement in needed_packages(script):
        try:
            version(requirement.name)
        except PackageNotFoundError:
            missing.append(requirement.name)
    return missing


def needed_packages(script: Path) -> list:
    """The `packaging.requirements.Requirement` of each package that it needs on this machine."""
    from packaging.requirements import Requirement

    block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///$", script.read_text(), re.MULTILINE)
    if block is None:
        return []
    lines = tomllib.loads(re.sub(r"^# ?", "", block[1], flags=re.MULTILINE))["dependencies"]
    needed = map(Requirement, lines)
    return [one for one in needed if not one.marker or one.marker.evaluate()]
