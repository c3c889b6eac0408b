"""What a command says: its three standard streams are there, and no reason to lose a number."""

import errno
import io
import os
import sys

NOBODY_READS = (errno.EPIPE, errno.EIO)  # a program that ended, as `head` does; a closed terminal

refused: list[OSError] = []  # why words were lost that somebody would have read: a full disk


class Words(io.FileIO):
    """A standard stream whose words are lost where nothing takes them; who wrote them goes on."""

    def write(self, data) -> int:
        try:
            return super().write(data) or len(data)  # None: a terminal that would block
        except OSError as error:
            if error.errno not in NOBODY_READS:
                refused.append(error)
            return len(data)


def open_streams() -> None:
    """The first thing that a process does, before a file could take a missing stream's number.

    A terminal without UTF-8 shows `?` for what it lacks, here and in processes started.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # whoever started it closed this one
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__"):  # else it is a notebook's own, or open already
            setattr(sys, name, words_to(number, stream.encoding if stream else None))
    encoding = os.environ.get("PYTHONIOENCODING", "").partition(":")[0]
    os.environ["PYTHONIOENCODING"] = f"{encoding}:replace"


def words_to(number: int, encoding: str | None) -> io.TextIOWrapper:
    """A text stream, shown line by line, to the file of that number."""
    words = io.BufferedWriter(Words(number, "w", closefd=False))
    return io.TextIOWrapper(words, encoding, errors="replace", line_buffering=True)
