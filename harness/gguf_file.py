"""A model's file: given by path or by its name on the Hugging Face Hub, whole, and really a GGUF.

Imports no ML framework.
"""

import os
import re
from pathlib import Path

import harness.data
from harness.process import UsageError, UserError

HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+):([^:]+\.gguf)")  # owner/repo:file.gguf
PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")  # how llama.cpp's gguf-split names parts


def find(given: str, data_dir: Path) -> Path:
    """The file that `given` names: a path, or `owner/repo:file.gguf`, which is fetched once.

    Raises:
        UsageError: there is no such file.
        UserError: the Hub does not answer, or has no such file.
    """
    path = Path(os.path.expanduser(given))  # as it is where nobody has that home folder
    if path.is_file():
        return path
    named = HUB_NAME.fullmatch(given)
    if not named:
        raise UsageError(
            f"{given}: there is no such file; --model (--path_to_gguf_model) takes a path, or a "
            "name on the Hugging Face Hub such as owner/repo:file.gguf"
        )
    repository, file = named.groups()
    split = PART.fullmatch(file)
    patterns = [f"{split[1]}-*-of-{split[3]}.gguf"] if split else [file]
    try:
        folder = harness.data.from_hub(repository, "model", patterns, data_dir)
    except harness.data.DataUnreachable as error:
        raise UserError(f"--model={given}: {error}") from None
    if not (folder / file).is_file():
        raise UserError(f"--model={given}: {repository} has no such file")
    return folder / file


def parts(path: Path) -> list[Path]:
    """All files of a model: more than one where it is split, as `x-00001-of-00003.gguf`.

    Raises:
        UserError: it is not the first one, or another one is missing.
    """
    split = PART.fullmatch(path.name)
    if not split:
        return [path]
    stem, number, count = split[1], int(split[2]), int(split[3])
    names = [f"{stem}-{part:05d}-of-{count:05d}.gguf" for part in range(1, count + 1)]
    if number != 1:
        raise UserError(f"{path} is part {number} of {count}: give the first one, {names[0]}")
    for name in names:
        if not path.with_name(name).is_file():
            raise UserError(f"{path}: {name}, another part of it, is missing")
    return [path.with_name(name) for name in names]


def size(path: Path) -> int:
    """Bytes of all files of a model."""
    return sum(part.stat().st_size for part in parts(path))


def model_tag(path: Path) -> str:
    """The model's part of a results file's name."""
    split = PART.fullmatch(path.name)
    return safe_name(split[1] if split else path.stem)


def safe_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("_")


def require_gguf(path: Path) -> None:
    """Raises UserError unless all files of a model start as a GGUF does."""
    for part in parts(path):
        try:
            with part.open("rb") as file:
                start = file.read(64)
        except OSError as error:
            raise UserError(f"{part} cannot be read ({error.strerror})") from None
        if not start.startswith(b"GGUF"):
            raise UserError(f"{part} is not a GGUF file: {what_it_is(start)}")


def what_it_is(start: bytes) -> str:
    if start.startswith(b"version https://git-lfs"):
        return "it is Git LFS' pointer to one; `git lfs pull` fetches the file itself"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "it is a web page; the Hub's address of a file has /resolve/, not /blob/"
    return f"it starts with {start[:4]!r}"


def require_memory(path: Path, usable: int, free: int) -> None:
    """Raises UserError where the model is larger than what this process may use, in bytes.

    One that only takes more than is free still runs, as the system makes room; that is said.
    """
    needed = size(path)
    takes = f"the model takes {needed / 1e9:.1f} GB"
    if needed > usable:
        raise UserError(
            f"{path}: too little memory: {takes}, and this machine has {usable / 1e9:.1f} GB"
        )
    if needed > free:
        free = f"{free / 1e9:.1f} GB are free"
        print(f"Note: {takes}, and {free}: close other programs, or it may swap")
