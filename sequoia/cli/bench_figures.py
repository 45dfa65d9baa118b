"""`sequoia bench figures`: the paper's figures, on the models and the machine at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from sequoia import config
from sequoia.bench.prompts import MT_BENCH
from sequoia.cli.bench_common import (
    FILE_WIDTH,
    RESULTS,
    AsJson,
    CpuThreads,
    NewTokens,
    Out,
    PromptCount,
    Prompts,
    Repetitions,
    clear_errors,
)
from sequoia.cli.session import say
from sequoia.log import configure_logging

if TYPE_CHECKING:
    from sequoia.bench.report import Result

NUMBERS = ("1", "2", "3", "4", "5", "6")


def read_numbers(value: str) -> str:
    """Check figures separated by commas as typer wants a callback to."""
    for part in value.split(","):
        if part.strip() not in NUMBERS:
            raise typer.BadParameter(f"{part.strip()!r} is not a figure from 1 to {NUMBERS[-1]}")
    return value


def check_drawing_temperature(value: float) -> float:
    """Check a temperature that tokens are drawn at, as typer wants a callback to."""
    if not 0.0 < value <= 100.0:
        raise typer.BadParameter(f"{value:g} is outside (0, 100]")
    return value


def figures(
    target: config.Target = config.DEFAULT_TARGET,
    draft: config.Draft = None,
    numbers: Annotated[
        str, typer.Option("--figures", callback=read_numbers, help="Which, by commas.")
    ] = ",".join(NUMBERS),
    wide: Annotated[
        list[str] | None,
        typer.Option(metavar="REF", help="A further target for figure 4, in bfloat16; repeatable."),
    ] = None,
    prompts: Prompts = None,
    prompt_count: PromptCount = 8,
    temperature: Annotated[
        float,
        typer.Option(
            callback=check_drawing_temperature, help="Beside 0, for figures 1 and 5; also 3's tree."
        ),
    ] = 0.6,
    max_new_tokens: NewTokens = 32,
    repetitions: Repetitions = 3,
    dtype: config.DTypeOption = config.DType.AUTO,
    device: config.DeviceOption = config.Device.AUTO,
    threads: CpuThreads = 0,
    out: Out = RESULTS / "figures",
    page: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Markdown page whose parts for these figures are rewritten."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw the paper's figures anew: tokens per step, rejection, robustness, times, planner's regret."""
    with clear_errors(out):
        configure_logging("bench", config.LogLevel.WARNING)
        wanted = sorted({part.strip() for part in numbers.split(",")})
        from sequoia.bench.figures.page import read_page
        from sequoia.cli.bench_figures_run import FiguresBenchmark

        if page is not None:
            read_page(page, wanted)
        benchmark = FiguresBenchmark(
            target,
            draft,
            tuple(wide or ()),
            prompts or MT_BENCH,
            prompt_count,
            temperature,
            max_new_tokens,
            repetitions,
            dtype,
            device,
            threads,
        )
        found = {}
        for number, result in benchmark.run(wanted):
            _hand_over(number, result, out, page, as_json)
            found[number] = result.as_json()
        if as_json:
            typer.echo(json.dumps(found, allow_nan=False))


def _hand_over(number: str, result: Result, out: Path, page: Path | None, as_json: bool) -> None:
    """Write a figure's files and its part of the page as soon as it is there."""
    from sequoia.bench.figures.page import make_section, picture_link, read_page, rewritten

    paths = result.write(out)
    if page is not None:
        section = make_section(number, result, picture_link(result, out, page))
        page.write_text(rewritten(read_page(page, [number]), {number: section}), encoding="utf-8")
    if not as_json:
        Console(width=FILE_WIDTH).print(result.as_text())
    say(f"figure {number} written: {', '.join(map(str, paths))}")
