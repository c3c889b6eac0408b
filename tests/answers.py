"""A stand-in for a fresh process, whose calls are answered here."""

import contextlib
from collections.abc import Callable

from harness.sweep import hand_over_rows


class Answers(contextlib.AbstractContextManager):
    """Takes the place of `harness.process.FreshProcess`.

    Args:
        answer: `answer(function, *arguments)`: how the call ended; of a sweep's `measure`, how that
            of one point did.
    """

    def __init__(self, answer: Callable[..., dict]):
        self.answer = answer

    def call(self, function: Callable, *arguments, on_row: Callable = None, **_) -> dict:
        if function is not hand_over_rows:
            return self.answer(function, *arguments)
        measure, points, options, _ = arguments
        for point in points:
            outcome = self.answer(measure, *point.values(), options)
            if outcome["status"] != "ok":
                return outcome
            on_row(outcome["value"])
        return {"status": "ok", "value": ""}

    def leave(self) -> None:
        pass

    def __exit__(self, *_):
        pass
