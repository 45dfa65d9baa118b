"""The page that shows the figures: a part for each between markers, rewritten from its result."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from sequoia.bench.errors import OptionError
from sequoia.bench.figures.drawing import TITLES
from sequoia.bench.report import Result


def read_page(path: Path, numbers: list[str]) -> str:
    """The page as it is.

    Raises:
        OptionError: it cannot be read or written, or lacks the markers of a figure.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"--page: {path}: cannot be read: {error}") from error
    if not os.access(path, os.W_OK):
        raise OptionError(f"--page: {path}: cannot be written")
    for number in numbers:
        begin, end = _markers(number)
        if not 0 <= text.find(begin) < text.find(end):
            raise OptionError(f"--page: {path}: {begin} and {end} must stand in it, in this order")
    return text


def rewritten(text: str, sections: Mapping[str, str]) -> str:
    """The page with the parts of some figures replaced; the markers must stand in it."""
    for number, section in sections.items():
        begin, end = _markers(number)
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n\n{section}\n{end}{after}"
    return text


def make_section(number: str, result: Result, picture: str) -> str:
    """A figure with its tables, notes and place.

    Args:
        number: of the figure.
        result: what was measured.
        picture: where its plot lies, as the page links to it.
    """
    tables = [table.as_markdown().replace("## ", "### ", 1) for table in result.tables]
    notes = [f"{note}\n" for note in result.notes]
    parts = [
        f"## {number}. {TITLES[number]}\n",
        f"![{TITLES[number]}]({picture})\n",
        *tables,
        *notes,
        _place(result),
    ]
    return "\n".join(parts)


def picture_link(result: Result, folder: Path, page: Path) -> str:
    """Where a plot in `folder` lies, seen from the page."""
    plot = (folder / f"{result.stem}.png").resolve()
    return Path(os.path.relpath(plot, page.resolve().parent)).as_posix()


def _place(result: Result) -> str:
    where, settings = result.environment, result.settings
    named = ("target", "draft", "dtype", "threads", "prompt_count", "prompts", "max_new_tokens")
    said = ", ".join(f"{name} {settings[name]}" for name in named)
    hardware = where.gpu or f"{where.cpu}, {where.cpu_count} cores"
    return f"Here: {hardware}; {said}; commit {where.commit[:12]}, {where.started_at}.\n"


def _markers(number: str) -> tuple[str, str]:
    return f"<!-- figure {number} -->", f"<!-- end of figure {number} -->"
