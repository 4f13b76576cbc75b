"""Signals that end a command: as exceptions, so that what it has open is closed and what is half made is removed."""

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
"""Besides SIGINT, which Python raises as KeyboardInterrupt by itself."""


class Ended(SystemExit):
    """A signal ends the command; the exit code is 128 and the signal's number."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(128 + number)


@dataclass
class Came:
    """The signal that came, 0 for none: whatever exception follows it is its consequence."""

    number: int = 0


@contextlib.contextmanager
def raised() -> Iterator[Came]:
    """SIGTERM and SIGHUP raise :class:`Ended`, SIGINT KeyboardInterrupt; what came first is noted.

    A signal that is ignored stays so (`nohup`). Under `torchrun`, whose processes may be within a collective when one
    of them ends, SIGTERM keeps ending a process at once. Processes that are forked have the usual handlers.
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


def told(after: Callable[[], str]) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Let a command that a signal ends say so in one line; exit code 143 of SIGTERM, 130 of SIGINT.

    Args:
        after: what follows "stopped" in that line.
    """

    def wrap(command: Callable[[], None]) -> Callable[[], None]:
        @functools.wraps(command)
        def run() -> None:
            with raised() as came:
                try:
                    command()
                except BaseException:  # of whatever kind: libraries turn one exception into another
                    if not came.number:
                        raise
                    for number in (
                        signal.SIGINT,
                        *ENDING,
                    ):  # one that comes now finds nothing left to be closed
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
