"""Termination signals as exceptions, so that files are closed and partial output is removed."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from retort.common.errors import print_error

ENDING = (signal.SIGTERM, signal.SIGHUP)
"""Signals in addition to SIGINT, which Python raises as KeyboardInterrupt."""


class Ended(SystemExit):
    """A signal ends the command; the exit code is 128 and the signal's number."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(128 + number)


@dataclass
class Came:
    """The received signal, 0 for none; any exception after it is its consequence."""

    number: int = 0


@contextlib.contextmanager
def raised() -> Iterator[Came]:
    """SIGTERM and SIGHUP raise :class:`Ended`, SIGINT KeyboardInterrupt; the first one is recorded.

    An ignored signal stays ignored (`nohup`). Under `torchrun`, whose processes may be within a collective when one
    of them ends, SIGTERM still ends a process at once. Forked processes have the default handlers.
    """
    came = Came()
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def end(number: int, _: object) -> None:
        came.number = came.number or number
        raise Ended(number)

    def interrupt(number: int, _: object) -> None:
        came.number = came.number or number
        raise KeyboardInterrupt

    handlers = {number: end for number in ENDING if signal.getsignal(number) is signal.SIG_DFL}
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        handlers.clear()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        handlers[signal.SIGINT] = interrupt
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    _restorers.append(restore)
    try:
        yield came
    finally:
        _restorers.remove(restore)
        restore()


def report_signals(after: Callable[[], str]) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Decorator that prints one line if a signal ends the command; exit code 143 for SIGTERM, 130 for SIGINT.

    Args:
        after: returns the text after "stopped" in that line.
    """

    def wrap(command: Callable[[], None]) -> Callable[[], None]:
        @functools.wraps(command)
        def run() -> None:
            with raised() as came:
                try:
                    command()
                except BaseException:  # of any kind, because libraries convert exceptions
                    if not came.number:
                        raise
                    for number in (
                        signal.SIGINT,
                        *ENDING,
                    ):  # further signals end the process at once
                        signal.signal(number, signal.SIG_DFL)
                    print_error(f"stopped{after()}")
                    sys.exit(128 + came.number)

        return run

    return wrap


_restorers: list[Callable[[], None]] = []


def _restore_in_child() -> None:
    for restore in _restorers:
        restore()
    _restorers.clear()


os.register_at_fork(after_in_child=_restore_in_child)
