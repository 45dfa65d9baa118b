"""How far a run is, on standard error: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

LINES_A_STAGE = 20
RATE_REPORTS = 50
"""Reports over which a rate is taken."""


@dataclass(frozen=True, slots=True)
class Moment:
    """How far a stage is.

    Attributes:
        stage: what it is doing.
        part: of it that is done, 0 to 1.
        figures: what else there is to say.
    """

    stage: str
    part: float
    figures: str = ""


class Display(Protocol):
    """Shows a run to somebody."""

    def show(self, moment: Moment) -> None:
        """Take a report; many come each second."""

    def say(self, text: str) -> None:
        """Take a line that stays."""


class Rate:
    """Tokens a second over the last reports, in words."""

    def __init__(self) -> None:
        self._reports: deque[tuple[float, int]] = deque(maxlen=RATE_REPORTS)

    def __call__(self, tokens: int) -> str:
        """Tokens and rate, once so many tokens are done in all."""
        self._reports.append((time.monotonic(), tokens))
        (began, before), (now, after) = self._reports[0], self._reports[-1]
        speed = f", {(after - before) / (now - began):,.0f} a second" if now > began else ""
        return f"{tokens:,} tokens{speed}"


class _Left:
    """Seconds that a stage still takes, going by how it went since its first report."""

    def __init__(self, part: float) -> None:
        self._part, self._clock = part, time.monotonic()

    def __call__(self, part: float) -> str:
        done = part - self._part
        if done <= 0 or part >= 1:
            return ""
        seconds = (time.monotonic() - self._clock) * (1 - part) / done
        minutes, rest = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{rest:02} left" if hours else f"{minutes}:{rest:02} left"


class Lines:
    """A line when a stage begins, and one at each further twentieth of it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown = ("", -1)
        self._left = _Left(0.0)

    def show(self, moment: Moment) -> None:
        """Print what is due."""
        step = int(moment.part * LINES_A_STAGE)
        stage, before = self._shown
        if moment.stage != stage:
            self._left = _Left(moment.part)
        elif step <= before:
            return
        self._shown = (moment.stage, step)
        words = (f"{moment.stage}: {moment.part:.0%}", moment.figures, self._left(moment.part))
        self.say(", ".join(word for word in words if word))

    def say(self, text: str) -> None:
        """Print a line."""
        print(f"==> {text}", file=self._stream, flush=True)


class _Bars:
    """One bar a stage, of which the last moves."""

    def __init__(self, bars: Any) -> None:
        self._bars = bars
        self._stage = ""
        self._left = _Left(0.0)

    def show(self, moment: Moment) -> None:
        if moment.stage != self._stage:
            self._stage, self._left = moment.stage, _Left(moment.part)
            self._task = self._bars.add_task(moment.stage, total=1.0, figures="", left="")
        left = self._left(moment.part)
        self._bars.update(self._task, completed=moment.part, figures=moment.figures, left=left)

    def say(self, text: str) -> None:
        self._bars.console.print(f"==> {text}", markup=False, highlight=False)


@contextmanager
def stderr_display() -> Iterator[Display]:
    """A display for the length of a `with` block."""
    if not sys.stderr.isatty():
        yield Lines(sys.stderr)
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(bar_width=16),
        bars.TaskProgressColumn(),
        bars.TextColumn("{task.fields[figures]}"),
        bars.TextColumn("{task.fields[left]}"),
    )
    with bars.Progress(*columns, console=Console(stderr=True)) as progress:
        yield _Bars(progress)
