"""What the system says of itself: commands and small files; nothing where it is silent."""

import subprocess
from pathlib import Path


def output_of(*command: str) -> str:
    """What a system command prints; nothing where there is no such command."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def sysctl(name: str) -> str:
    """What macOS says of itself under a name; nothing where it does not know it."""
    return output_of("sysctl", "-n", name).strip()


def text_of(path: Path) -> str:
    """What is in a small file of the system, without the line's end."""
    try:
        return path.read_text(errors="replace").strip(" \n\0")
    except OSError:
        return ""
