"""A stand-in for a fresh process, whose calls are answered here."""

import contextlib
from collections.abc import Callable


class Answers(contextlib.AbstractContextManager):
    """Takes the place of `harness.process.FreshProcess`.

    Args:
        answer: `answer(function, *arguments)`: how the call ended.
    """

    def __init__(self, answer: Callable[..., dict]):
        self.answer = answer

    def call(self, function: Callable, *arguments, **_) -> dict:
        return self.answer(function, *arguments)

    def leave(self) -> None:
        pass

    def __exit__(self, *_):
        pass
