"""What a benchmark hands over: one JSON object, Markdown tables, and a plot, of the same name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from sequoia.bench.environment import Environment
from sequoia.bench.errors import OutputError
from sequoia.runtime.catalogue import DRAFT_FOLDER

DPI = 130


def shown(reference: str) -> str:
    """A model's name without the folders of this machine; a draft beside its target has that one's too."""
    path = Path(reference)
    if not path.is_dir():
        return reference
    return f"{path.parent.name}/{path.name}" if path.name == DRAFT_FOLDER else path.name


@dataclass(frozen=True, slots=True)
class Table:
    """A table of texts; the first column stands left, the others right where they are numbers."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    of_numbers: bool = True

    def as_markdown(self) -> str:
        """With its title as a heading."""
        marks = ["---", *["---:" if self.of_numbers else "---"] * (len(self.header) - 1)]
        lines = [_markdown_row(row) for row in (self.header, marks, *self.rows)]
        return "\n".join([f"## {self.title}", "", *lines, ""])

    def as_rich(self) -> RichTable:
        """For a terminal."""
        table = RichTable(title=self.title)
        for index, name in enumerate(self.header):
            right = self.of_numbers and index > 0
            table.add_column(name, justify="right" if right else "left", no_wrap=index == 0)
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))
        return table


@dataclass(frozen=True, slots=True)
class Result:
    """One finished benchmark.

    Attributes:
        name: of the command, such as `peers`.
        stem: of the files, such as `peers-bfloat16`.
        settings: what was asked for and what followed from it.
        body: the measurements, key by key of the JSON object.
        tables: the same for people.
        notes: sentences that belong under the tables.
        draw: draws the plot.
        problem: why the command must fail although it has results; empty where it need not.
    """

    name: str
    stem: str
    environment: Environment
    settings: Mapping[str, object]
    body: Mapping[str, object]
    tables: Sequence[Table]
    draw: Callable[[Figure], None]
    notes: Sequence[str] = ()
    problem: str = ""
    load_after: tuple[float, float, float] = field(default_factory=os.getloadavg)

    def as_json(self) -> dict[str, object]:
        """What `--json` prints."""
        return {
            "benchmark": self.name,
            "environment": {
                **self.environment.as_json(),
                "load_average_after": self.load_after,
            },
            "settings": dict(self.settings),
            **self.body,
        }

    def as_text(self) -> Group:
        """What the command prints without `--json`."""
        return Group(*(table.as_rich() for table in self.tables), *map(Text, self.notes))

    def as_markdown(self) -> str:
        """Tables, notes, settings and environment."""
        after = ", ".join(f"{value:.2f}" for value in self.load_after)
        place = [*self.environment.as_rows(), ("load average after", after)]
        settings = [(name, _shown(value)) for name, value in self.settings.items()]
        parts = [f"# sequoia bench {self.name}", ""]
        parts += [table.as_markdown() for table in self.tables]
        parts += [f"{note}\n" for note in self.notes]
        parts += [f"![{self.stem}]({self.stem}.png)", ""]
        parts.append(
            Table("Settings", ("setting", "value"), settings, of_numbers=False).as_markdown()
        )
        parts.append(Table("Environment", ("what", "which"), place, of_numbers=False).as_markdown())
        return "\n".join(parts)

    def write(self, folder: Path) -> list[Path]:
        """Write the three files; returns their paths.

        Raises:
            OutputError: the folder cannot be written.
        """
        paths = [folder / f"{self.stem}.{suffix}" for suffix in ("json", "md", "png")]
        try:
            text = json.dumps(self.as_json(), indent=1, allow_nan=False)
            paths[0].write_text(f"{text}\n", encoding="utf-8")
            paths[1].write_text(self.as_markdown(), encoding="utf-8")
            figure = new_figure()
            self.draw(figure)
            figure.savefig(paths[2], dpi=DPI)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written: {error.strerror or error}") from error
        return paths


def new_figure(width: float = 8.0, height: float = 4.5) -> Figure:
    """An empty figure that needs no display; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def require_writable(folder: Path) -> None:
    """Make the folder for the results, before anything is measured for it.

    Raises:
        OutputError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made: {error.strerror or error}") from error
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{folder}: cannot be written: permission denied")


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
