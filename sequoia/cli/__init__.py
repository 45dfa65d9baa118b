"""`sequoia`: the command line."""

from __future__ import annotations

import typer

from sequoia.cli.acceptance import acceptance
from sequoia.cli.bench import bench_app
from sequoia.cli.certs import certs
from sequoia.cli.demo import demo
from sequoia.cli.distill import distill
from sequoia.cli.generate import generate
from sequoia.cli.models import models_app
from sequoia.cli.plan import plan
from sequoia.cli.planner import planner_app
from sequoia.cli.token import token
from sequoia.cli.tree import tree
from sequoia.cli.up import up
from sequoia.cli.widen import widen
from sequoia.config import check_environment


def check_environment_first() -> None:
    """Fast, lossless text from large language models."""
    check_environment()


app = typer.Typer(
    name="sequoia",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.callback()(check_environment_first)
app.command()(up)
app.command()(generate)
app.command()(demo)
app.command()(plan)
app.command()(tree)
app.command()(acceptance)
app.command()(distill)
app.command()(widen)
app.command()(certs)
app.command()(token)
app.add_typer(models_app)
app.add_typer(planner_app)
app.add_typer(bench_app)


def main() -> None:
    """Run the command line."""
    app()
