"""Command lines: how flags are read, and the kinds of values that they take.

Each function reads one kind of value, or says in a line what is wrong.
"""

import argparse
import difflib
import re
import sys
from argparse import ArgumentTypeError
from pathlib import Path

from harness.streams import open_streams

# What word processors make of quotation marks and of --.
QUOTES = "\u201c\u201d\u201e\u201f\u2018\u2019\u201a\u00ab\u00bb"
DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
# Flags of other benchmarks whose meaning is plain here, and those that are not needed.
SAME_AS = {
    "--use_fp16": "--precision=fp16",
    "--fp16": "--precision=fp16",
    "--use_bf16": "--precision=bf16",
    "--bf16": "--precision=bf16",
    "--use_compile": "--compile",
    "--torch_compile": "--compile",
    "--batch_size": "--batch_sizes",
    "--num_epochs": "--epochs",
    "--output_dir": "--results_dir",
    "--model": "--path_to_gguf_model",
    "--model_path": "--path_to_gguf_model",
}
NOT_NEEDED = {
    "--num_workers": "there are as many workers as the cores can feed",
    "--pin_memory": "memory is pinned where that helps",
    "--lr": "no number here depends on the learning rate",
    "--learning_rate": "no number here depends on the learning rate",
}


class CommandLine(argparse.ArgumentParser):
    """A parser that takes what people type where its meaning is plain, else names the near flag.

    A flag that is added again is another one from then on.

    `--batch-sizes`, `--batch_sizes 32 64`, quotes and dashes of word processors, and flags of
    other benchmarks are read as what they mean. An unknown flag ends the program with exit code 2.
    """

    def __init__(self, description: str):
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=form, conflict_handler="resolve")

    def parse_known_args(self, args=None, namespace=None):
        open_streams()
        words = [self.mended(word) for word in (sys.argv[1:] if args is None else args)]
        options, unknown = super().parse_known_args(self.joined(words), namespace)
        if unknown:
            self.error(self.about_unknown(unknown[0]))
        return options, []

    def mended(self, word: str) -> str:
        """One word of the command line, as this parser spells it."""
        if not (found := re.match(rf"(?:--|[{DASHES}]{{1,2}})([A-Za-z][\w-]*)", word)):
            return word
        flag, rest = f"--{found[1].replace('-', '_')}", word[found.end() :]
        known = self._option_string_actions
        same = SAME_AS.get(flag, "")
        if flag not in known and same.partition("=")[0] in known:
            flag = same
        return f"{flag}{rest}" if flag.partition("=")[0] in known else word

    def joined(self, words: list[str]) -> list[str]:
        """Each flag with all words up to the next one, because a list's may be apart."""
        if self._get_positional_actions():
            return [word.strip(QUOTES) for word in words]
        groups = []
        for word in words:
            flag, equals, value = word.partition("=")
            action = self._option_string_actions.get(flag)
            if action and action.nargs is None:
                groups.append((flag, [value] if equals else []))
            elif groups and groups[-1][1] is not None and not word.startswith("-"):
                groups[-1][1].append(word)
            else:
                groups.append((word, None))
        line = []
        for flag, values in groups:
            line.append(f"{flag}={' '.join(values).strip(QUOTES)}" if values else flag)
        return line

    def about_unknown(self, word: str) -> str:
        flag = word.partition("=")[0].replace("-", "_").replace("__", "--", 1)
        if reason := NOT_NEEDED.get(flag):
            return f"{flag} is not needed: {reason}"
        near = difflib.get_close_matches(flag, self._option_string_actions, n=1)
        hint = f"did you mean {near[0]}?" if near else "--help lists the flags"
        return f"there is no {word}; {hint}"


def path_name(text: str) -> Path:
    """A file or folder; `~` is the home folder, which shells leave as it is after `=`."""
    if not text:
        raise ArgumentTypeError("it is empty; leave the flag out for the default")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ArgumentTypeError(f"{text!r} names no user's home folder") from None


def seed(text: str) -> int:
    """What every framework takes as a seed."""
    if not text.isascii() or not text.isdigit() or not int(text) < 2**31:
        raise ArgumentTypeError(f"{text!r} is not a whole number from 0 to {2**31 - 1}")
    return int(text)


def whole_number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def whole_numbers(text: str) -> list[int]:
    """`"32, 64"`; large numbers may be written as 100_000."""
    try:
        return [whole_number(part.replace("_", "")) for part in parts_of(text)]
    except ArgumentTypeError:
        form = 'whole numbers from 1 on, separated by commas, such as "32, 64"'
        raise ArgumentTypeError(f"{text!r} is not a list of {form}") from None


def parts_of(text: str) -> list[str]:
    """The parts of a list, with commas or blanks between them; a comma may follow the last one."""
    return re.split(r"\s*,\s*|\s+", text.strip().removesuffix(","))


def counts(text: str) -> list[int]:
    """`"0, 4096"`: as `whole_numbers`, from 0 on."""
    try:
        return [int(part) and whole_number(part) for part in parts_of(text)]
    except (ValueError, ArgumentTypeError):
        form = 'whole numbers from 0 on, separated by commas, such as "0, 4096"'
        raise ArgumentTypeError(f"{text!r} is not a list of {form}") from None


def names_of(choices: tuple[str, ...], numbers: bool = False):
    """A function that reads names separated by commas, each one of `choices` or, with `numbers`,
    a whole number from 1 on."""

    def names(text: str) -> list[str]:
        found = parts_of(text)
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


def temperature(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return number


def device_name(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        raise ArgumentTypeError(f"{text!r} is not auto, cpu, mps, cuda or cuda:N")
    return text


def number_or_all(text: str) -> int | str:
    try:
        return text if text == "all" else whole_number(text)
    except ArgumentTypeError:
        raise ArgumentTypeError(f"{text!r} is not all, or a whole number from 1 on") from None


def machine_name(text: str) -> str:
    """A name that reads back from a file's as it is: files that begin with a dot are hidden, and
    outer and repeated underscores are taken for those between the parts of a file's name."""
    if not re.fullmatch(r"[A-Za-z0-9](_?[A-Za-z0-9.-])*", text):
        form = "letters, digits, '-', '.' and single '_', beginning with a letter or a digit"
        raise ArgumentTypeError(f"{text!r} is not a name of {form}")
    return text
