"""Stopping a run between two steps, so that what it leaves is whole."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stops_between_steps() -> Iterator[Callable[[], None]]:
    """Hold back a first Ctrl-C or SIGTERM until the block asks for it; a second one acts at once.

    Yields:
        A function to be called between steps. It raises KeyboardInterrupt when a signal has come.
    """
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            signal.default_int_handler(number, frame)
        asked = True

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
