"""What the commands under `sequoia bench` share: options, errors, and handing over a result."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from sequoia import config
from sequoia.bench.errors import BenchmarkError, OptionError, OutputError
from sequoia.cli.acceptance import check_temperature
from sequoia.cli.session import interrupt_on_terminate, say
from sequoia.errors import InvalidArgumentError, PromptTooLongError, SequoiaError
from sequoia.prompts import PromptsError
from sequoia.runtime.catalogue import ModelError
from sequoia.widening.failures import WidenError

if TYPE_CHECKING:
    from sequoia.bench.report import Result

RESULTS = Path("benchmarks/results")
FILE_WIDTH = 150  # columns of what is not printed on a terminal
COUNT_LIMIT = 2**20
STREAM_LIMIT = 64  # requests in flight, unless a coordinator is told otherwise
SHARE_LIMIT = 4.0

Out = Annotated[
    Path, typer.Option(metavar="DIR", help="Folder for the JSON, Markdown and PNG files.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Prompts = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="JSON lines with `prompt`, or `turns` of which the first is used. Default: MT-Bench.",
    ),
]
PromptCount = Annotated[
    int, typer.Option(min=1, help="Prompts, evenly spread over the file; all if it holds fewer.")
]
Temperature = Annotated[float, typer.Option(callback=check_temperature, help="0 means greedy.")]
NewTokens = Annotated[int, typer.Option(min=1, help="Most new tokens per prompt.")]
Repetitions = Annotated[int, typer.Option(min=1, help="How often everything is timed.")]
CpuThreads = Annotated[
    int,
    typer.Option(
        envvar="SEQUOIA_THREADS", min=0, max=1024, help="Of every system; 0: torch's default."
    ),
]


def read_counts(value: str) -> str:
    """Check numbers separated by commas as typer wants a callback to."""
    for part in value.split(","):
        if not part.strip().isdecimal() or not 1 <= int(part) <= COUNT_LIMIT:
            raise typer.BadParameter(f"{part.strip()!r} is not a number from 1 to {COUNT_LIMIT}")
    return value


def read_stream_counts(value: str) -> str:
    """The same for numbers of streams, of which a coordinator serves no more than its limit."""
    read_counts(value)
    if max(split_counts(value)) > STREAM_LIMIT:
        raise typer.BadParameter(
            f"{max(split_counts(value))} streams exceed the coordinator's limit of {STREAM_LIMIT}"
        )
    return value


def read_shares(value: str) -> str:
    """Check shares separated by commas, none at all included, as typer wants a callback to."""
    for part in filter(None, value.split(",")):
        try:
            share = float(part)
        except ValueError:
            share = -1.0
        if not 0.0 < share <= SHARE_LIMIT:
            raise typer.BadParameter(f"{part!r} is not a share above 0, up to {SHARE_LIMIT:g}")
    return value


def read_sizes(value: str) -> str:
    """Check numbers of bytes separated by commas, none at all included, as typer wants a callback to."""
    split_sizes(value)
    return value


def split_sizes(value: str) -> tuple[int, ...]:
    """The sizes of an option in bytes, each once, ascending."""
    return tuple(sorted({config.read_size(part.strip()) for part in value.split(",") if part}))


def split_shares(value: str) -> tuple[float, ...]:
    """The shares of an option that `read_shares` has checked, each once, ascending."""
    return tuple(sorted({float(part) for part in value.split(",") if part}))


def split_counts(value: str) -> tuple[int, ...]:
    """The numbers of an option that `read_counts` has checked, each once, ascending."""
    return tuple(sorted({int(part) for part in value.split(",")}))


@contextmanager
def clear_errors(out: Path) -> Iterator[None]:
    """Check the folder for results first; turn every known error into one line and its status."""
    # It imports matplotlib, which other commands should not wait for.
    from sequoia.bench.report import require_writable

    interrupt_on_terminate()
    try:
        require_writable(out)
        yield
    except PromptsError as error:
        config.fail(f"--prompts: {error}", 2)
    except OutputError as error:
        config.fail(f"--out: {error}", 2)
    except OptionError as error:
        config.fail(str(error), 2)
    except (ModelError, BenchmarkError) as error:
        config.fail(str(error))
    except WidenError as error:
        config.fail(str(error), 2 if error.option else 1)
    except SequoiaError as error:
        status = 2 if isinstance(error, InvalidArgumentError | PromptTooLongError) else 1
        config.fail(f"{error.reason}: {error.message}", status)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(130) from None


def hand_over(result: Result, out: Path, as_json: bool) -> None:
    """Write the files, print the result, and fail if it says so."""
    paths = result.write(out)
    if as_json:
        typer.echo(json.dumps(result.as_json(), allow_nan=False))
    else:
        width = None if sys.stdout.isatty() else FILE_WIDTH
        Console(width=width).print(result.as_text())
    say(f"written: {', '.join(map(str, paths))}")
    if result.problem:
        config.fail(result.problem)


def chosen_place(device: str, dtype: str) -> tuple[str, str]:
    """The kind of device and the element type that `auto` or a name stand for.

    Raises:
        ModelError: cuda was asked for and there is none.
    """
    # Torch takes seconds to import; wrong options fail before that.
    from sequoia.runtime.loading import choose_device, choose_dtype

    place = choose_device(device)
    return place.type, str(choose_dtype(dtype, place)).removeprefix("torch.")


def say_progress(done: int, total: int) -> None:
    """Tell on stderr how many turns are over."""
    say(f"turn {done} of {total}")
