"""Checks for selfcheck to run, in a module that imports no framework: each has its own process."""

import selfchecks.ceilings
import selfchecks.checks


def fine(quick):
    return [
        selfchecks.checks.at_least("fine", 1.0, 0.98),
        selfchecks.checks.figure(selfchecks.ceilings.MATRIX_PRODUCT + "fp32", 2.5, "TFLOP/s"),
        selfchecks.checks.figure(selfchecks.ceilings.MATRIX_PRODUCT + "bf16", None, "TFLOP/s"),
    ]


def missed(quick):
    return [selfchecks.checks.at_least("missed", 0.5, 0.98)]


def crash(quick):
    raise ValueError("no such thing")
