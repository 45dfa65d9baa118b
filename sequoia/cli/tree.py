"""`sequoia tree`: a plan's tree as a picture.

The plan is what `sequoia plan --json` prints, one tree, or a plan as it lies in Redis, one tree for every
class of requests and load.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from sequoia import config
from sequoia.plans import REQUEST_CLASSES, Plan, PlanError
from sequoia.tree import Topology, TreeError

STDIN = "-"
FORMATS = (".svg", ".png", ".pdf")


class _InputError(Exception):
    """What was handed over is no tree; the message names it."""


def read_picture(path: Path) -> Path:
    """Check the picture's format as typer wants a callback to."""
    if path.suffix not in FORMATS:
        raise typer.BadParameter(f"{path}: must end in {', '.join(FORMATS)}")
    return path


def read_class(name: str) -> str:
    """Check a class of requests as typer wants a callback to."""
    if name not in REQUEST_CLASSES:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(REQUEST_CLASSES)}")
    return name


def tree(
    plan: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="What `sequoia plan --json` prints, or a plan as Redis holds it; - reads stdin.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(callback=read_picture, metavar="FILE", help="Picture, .svg, .png or .pdf."),
    ],
    request_class: Annotated[
        str,
        typer.Option(
            callback=read_class,
            help=f"In a plan of several trees, for which requests: {', '.join(REQUEST_CLASSES)}.",
        ),
    ] = "greedy",
    load: Annotated[
        int,
        typer.Option(min=1, max=4096, help="In such a plan, with how many requests in flight."),
    ] = 1,
) -> None:
    """Draw the tree of a plan: the root on top, siblings in the order of their draw."""
    try:
        topology, tokens = _chosen(plan, request_class, load)
    except _InputError as error:
        config.fail(f"--plan: {error}", 2)
    from sequoia.cli.tree_picture import save_picture

    words = [f"{topology.node_count} nodes", f"{topology.level_count} levels"]
    if tokens:
        words.append(f"{tokens:.2f} tokens per step expected")
    try:
        save_picture(out, topology, ", ".join(words))
    except OSError as error:
        config.fail(f"--out: {out}: cannot be written: {error.strerror or error}", 2)
    typer.echo(", ".join([str(out), *words]))


def _chosen(source: str, request_class: str, load: int) -> tuple[Topology, float]:
    """The tree that is asked for, and its expected tokens per step; 0 where nobody said."""
    text = _read(source)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _InputError(f"{source}: is not JSON: {error}") from None
    if not isinstance(found, dict) or not found.keys() & {"parents", "trees"}:
        raise _InputError(f"{source}: must be an object with parents, or with trees")
    if "parents" in found:
        return _topology(source, found["parents"]), _tokens(source, found)
    try:
        planned = Plan.from_json(text).tree_for(request_class, load)
    except PlanError as error:
        raise _InputError(f"{source}: {error}") from None
    if planned is None:
        raise _InputError(f"{source}: has no tree for the class {request_class}")
    return planned.topology, planned.expected_tokens_per_step


def _read(source: str) -> str:
    try:
        return sys.stdin.read() if source == STDIN else Path(source).read_text(encoding="utf-8")
    except OSError as error:
        raise _InputError(f"{source}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise _InputError(f"{source}: is not UTF-8: {error.reason}") from None


def _topology(source: str, parents: object) -> Topology:
    if not isinstance(parents, list) or not all(type(parent) is int for parent in parents):
        raise _InputError(f"{source}: parents must be a list of whole numbers")
    try:
        return Topology(tuple(parents))
    except TreeError as error:
        raise _InputError(f"{source}: parents: {error}") from None


def _tokens(source: str, found: dict[str, object]) -> float:
    tokens = found.get("expected_tokens", 0.0)
    try:
        number = float(tokens) if isinstance(tokens, int | float) else math.nan
    except OverflowError:
        number = math.inf
    if isinstance(tokens, bool) or not (math.isfinite(number) and number >= 0):
        raise _InputError(
            f"{source}: expected_tokens is {str(tokens)[:40]!r}, must be a finite number >= 0"
        )
    return number
