"""`sequoia models`: what is built in, what is here already, and fetching it ahead of time."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from sequoia.runtime.catalogue import BUILT_INS, ModelError, resolve
from sequoia.runtime.progress import stderr_progress

models_app = typer.Typer(
    name="models", help="List the built-in models, or fetch some.", no_args_is_help=True
)


@models_app.command("list")
def list_models() -> None:
    """Print name, kind, size, licence, whether it is here, and where."""
    rows = [("NAME", "KIND", "SIZE", "LICENCE", "PULLED", "WHERE")]
    for model in BUILT_INS.values():
        size = f"{model.byte_count / 1e6:.0f} MB"
        pulled = "yes" if model.is_pulled else "no"
        rows.append((model.name, model.kind, size, model.licence, pulled, str(model.folder)))
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


@models_app.command("pull")
def pull_models(
    names: Annotated[list[str], typer.Argument(help="Built-in names, hub ids or local folders.")],
) -> None:
    """Fetch and convert models, so that the first start does not have to; prints their folders."""
    try:
        with stderr_progress() as progress:
            for name in names:
                print(resolve(name, progress=progress))
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
