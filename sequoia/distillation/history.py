"""The learning curve, a line of JSON a step, over all runs."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from sequoia.distillation.train import Progress


@dataclass(frozen=True, slots=True)
class Point:
    """What a step of learning showed.

    Attributes:
        step: counted from 1.
        tokens: learned from so far.
        divergence: KL(p || q) at the first level.
        overlaps: sum of min(p, q) by level.
    """

    step: int
    tokens: int
    divergence: float
    overlaps: tuple[float, ...]


class History:
    """Adds to a file; steps that are taken again after a resumption are dropped first."""

    def __init__(self, path: Path, step: int) -> None:
        """Go on after `step`."""
        kept = [point for point in read_history(path) if point.step <= step]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(map(_line, kept)), encoding="utf-8")
        partial.replace(path)
        self._path = path

    def add(self, progress: Progress) -> None:
        """Add a step."""
        point = Point(progress.step, progress.tokens, progress.divergence, progress.overlaps)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(point))


def read_history(path: Path) -> list[Point]:
    """The steps in a file, oldest first; none where there is no file."""
    if not path.exists():
        return []
    points = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            fields = json.loads(line)
        except ValueError:  # the line that a run died at
            continue
        points.append(Point(**{**fields, "overlaps": tuple(fields["overlaps"])}))
    return points


def _line(point: Point) -> str:
    return json.dumps(dataclasses.asdict(point)) + "\n"
