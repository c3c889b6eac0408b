"""The kinds of values that flags take: each function reads one, or says in a line what is wrong."""

import re
from argparse import ArgumentTypeError


def whole_number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def whole_numbers(text: str) -> list[int]:
    """`"32, 64"`; large numbers may be written as 100_000."""
    try:
        return [whole_number(part.strip().replace("_", "")) for part in text.split(",")]
    except ArgumentTypeError:
        form = 'whole numbers from 1 on, separated by commas, such as "32, 64"'
        raise ArgumentTypeError(f"{text!r} is not a list of {form}") from None


def names_of(choices: tuple[str, ...], numbers: bool = False):
    """A function that reads names separated by commas, each one of `choices` or, with `numbers`,
    a whole number from 1 on."""

    def names(text: str) -> list[str]:
        found = [part.strip() for part in text.split(",")]
        others = set(found) - set(choices)
        if numbers:
            others = {part for part in others if not re.fullmatch("[1-9][0-9]*", part)}
        if others:
            known = f"{'numbers and ' * numbers}names separated by commas, of {', '.join(choices)}"
            raise ArgumentTypeError(f"{text!r} is not a list of {known}")
        return found

    return names


def seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return number


def fraction(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1:
        raise ArgumentTypeError(f"{text!r} is not a number from 0 to below 1")
    return number


def device_name(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        raise ArgumentTypeError(f"{text!r} is not auto, cpu, mps, cuda or cuda:N")
    return text


def machine_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", text):
        raise ArgumentTypeError(f"{text!r} has more than letters, digits, '_', '-', '.'")
    return text
