"""No personal data in what is shared: errors of libraries name home folders and users."""

import getpass
import re
from pathlib import Path

# Somebody's home on Linux, macOS or Windows; the name is the part after it.
HOME = re.compile(r"([/\\](?:home|Users)[/\\])(?!Shared\b|USER\b)([^/\\\s'\":,;)]+)")


def without_names(text: str) -> str:
    """The text with `~` for this user's home folder, and USER for names of users."""
    home = str(home_folder() or "")
    if len(home) > 1:
        text = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text)
    text = HOME.sub(r"\1USER", text)
    name = user_name()
    # Shorter ones are words of their own, and root is nobody.
    if name and len(name) > 2 and name != "root":
        text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "USER", text)
    return text


def named_homes(text: str) -> list[str]:
    """The names of users in paths of home folders."""
    return [found[1] for found in HOME.findall(text)]


def home_folder() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:  # a container may run as a number without a home
        return None


def user_name() -> str | None:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # nor need that number have a name
        return None
