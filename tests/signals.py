"""Processes that hear Ctrl-C and a closed terminal, however the tests themselves were started."""

import signal


def hear_signals() -> None:
    """As `preexec_fn`: a shell's background job and nohup have them ignored, and so their tests."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
