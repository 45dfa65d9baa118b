"""Progress of preparing a model on standard error: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Protocol, TextIO

PLAIN_LINES_A_STAGE = 4


class Stage(StrEnum):
    """What the preparation of a model is busy with."""

    WAIT = "wait"
    HUB = "hub"
    DOWNLOAD = "download"
    VERIFY = "verify"
    CONVERT = "convert"
    WRITE = "write"


class Progress(Protocol):
    """Told again and again how far it is; `done` and `total` count bytes, 0 where unknown."""

    def __call__(self, stage: Stage, message: str, done: int = 0, total: int = 0) -> None:
        """Take one report; several come each second."""


def silent(stage: Stage, message: str, done: int = 0, total: int = 0) -> None:
    """Progress that nobody watches."""


@contextmanager
def stderr_progress() -> Iterator[Progress]:
    """Progress for people, to be handed to `resolve` inside the `with` block.

    Nothing is printed as long as nothing is reported, so a model that is there costs no line.
    """
    if sys.stderr.isatty():
        with _bars() as progress:
            yield progress
    else:
        yield plain_lines(sys.stderr)


def plain_lines(stream: TextIO) -> Progress:
    """Progress as lines: one when a stage begins, and one at each further quarter of it."""
    shown = ("", "", 0)

    def report(stage: Stage, message: str, done: int = 0, total: int = 0) -> None:
        nonlocal shown
        part = min(done, total) * PLAIN_LINES_A_STAGE // total if total else 0
        if (stage, message) == shown[:2] and part <= shown[2]:
            return
        shown = (stage, message, part)
        size = f" ({_size(done, total)})" if part else ""
        print(f"{stage}: {message}{size}", file=stream, flush=True)

    return report


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich import progress as bars
    from rich.console import Console

    display = bars.Progress(
        bars.SpinnerColumn(finished_text="✓"),
        bars.TextColumn("{task.description}"),
        bars.BarColumn(bar_width=16),
        bars.TextColumn("{task.fields[size]}"),
        bars.TimeElapsedColumn(),
        console=Console(stderr=True),
    )
    tasks: dict[tuple[Stage, str], bars.TaskID] = {}

    def finish() -> None:
        for task in display.tasks:
            display.update(task.id, total=task.total or 1, completed=task.total or 1)

    def report(stage: Stage, message: str, done: int = 0, total: int = 0) -> None:
        if stage is Stage.HUB:  # the hub's client draws bars of its own
            display.console.print(f"{stage}: {message}", markup=False, highlight=False)
            return
        display.start()
        if (stage, message) not in tasks:
            finish()
            name = f"{stage}: {message}"
            tasks[stage, message] = display.add_task(name, total=total or None, size="")
        display.update(tasks[stage, message], completed=done, size=_size(done, total))

    try:
        yield report
        finish()
    finally:
        display.stop()


def _size(done: int, total: int) -> str:
    return f"{done / 1e6:.0f} of {total / 1e6:.0f} MB" if total else ""
