"""`sequoia distill`: make a draft for a target."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from sequoia import config
from sequoia.cli.session import interrupt_on_terminate
from sequoia.distillation.budget import DEFAULT_MINUTES, Budget
from sequoia.distillation.failures import DistillError
from sequoia.distillation.foreign import require_text
from sequoia.distillation.order import Order, check_order, read_layers
from sequoia.distillation.place import Place
from sequoia.errors import SequoiaError
from sequoia.log import configure_logging
from sequoia.prompts import PromptsError, read_prompts
from sequoia.randomness import MAX_SEED
from sequoia.runtime.catalogue import BUILT_INS, ModelError, resolve
from sequoia.runtime.progress import stderr_progress

if TYPE_CHECKING:
    from sequoia.distillation.judging import Judgement


def distill(
    target: Annotated[
        str,
        typer.Option(
            envvar="SEQUOIA_TARGET",
            help="Target model: built-in name, local folder or hub id.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the draft.")],
    layers: Annotated[
        str,
        typer.Option(
            metavar="N|LIST",
            help="Layers to keep: a count (1: the first; more: the first, the last and what lies "
            "evenly between), or a list such as 0,29 (one layer: 5,).",
        ),
    ] = "1",
    width: Annotated[
        int | None,
        typer.Option(min=1, help="Feed-forward units to keep in a layer. Default: all."),
    ] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option(help="Token ids that the draft can say. Default: 12288 at most."),
    ] = None,
    prompts: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="JSON lines with `prompt` or `turns`, for the target to answer."
        ),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Text for the target to read, at most half of the corpus."
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(help="Tokens of the corpus, each learned from 4 times. Ends the run."),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            help="Minutes for writing and learning, all runs together. Ends the run. Default: 60."
        ),
    ] = None,
    no_features: Annotated[
        bool,
        typer.Option(
            "--no-features", help="A draft that reads tokens alone, not the target's features."
        ),
    ] = False,
    beginning: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="DRAFT",
            help="A draft for the same target to begin with. Its layers must be the first of "
            "--layers; those behind them add nothing at first.",
        ),
    ] = None,
    unseen: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Prompts to judge by. Default: those of every 50th conversation, which is then "
            "not learned from.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run whose work is there.")
    ] = False,
    work: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder for corpus and checkpoints. Default: .work in --out."
        ),
    ] = None,
    rows: Annotated[
        int, typer.Option(min=1, max=4096, help="Conversations written side by side.")
    ] = 128,
    batch_tokens: Annotated[
        int, typer.Option(min=1, max=2**24, help="Tokens of a batch in learning.")
    ] = 2048,
    learning_rate: Annotated[float, typer.Option(help="The highest.")] = 2e-3,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of everything drawn.")] = 0,
    device: config.DeviceOption = config.Device.AUTO,
) -> None:
    """Make a draft for a target: the target writes, a cut-down copy of it learns to agree with it.

    Progress goes to stderr. Ctrl-C leaves the draft as it is by then; the same command with --resume
    goes on. At the end the draft is measured on prompts that it has not learned from.
    """
    interrupt_on_terminate()
    try:
        order = Order(
            _reference(target),
            layers,
            width,
            vocab_size,
            not no_features,
            None if beginning is None else _reference(beginning),
            tuple(prompts or ()),
            tuple(text or ()),
            unseen,
            rows,
            batch_tokens,
            learning_rate,
            seed,
        )
        budget = Budget.read(tokens, minutes)
        _check_files(order)
        place = Place(out.absolute(), (work or out / ".work").absolute())
        with stderr_progress() as progress:
            resolve(order.target, progress=progress)
        place.prepare(resume)
        if resume:
            budget = check_order(place.order, order, budget)
        configure_logging("distill", config.LogLevel.WARNING)
        judgements = _distill(order, budget or Budget(minutes=DEFAULT_MINUTES), place, device)
    except DistillError as error:
        config.fail(str(error), 2 if error.option else 1)
    except PromptsError as error:
        config.fail(str(error), 2)
    except ModelError as error:
        config.fail(str(error))
    except SequoiaError as error:
        config.fail(f"{error.reason}: {error.message}")
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(130) from None
    Console().print(_table(place.out, judgements))


def _distill(order: Order, budget: Budget, place: Place, device: str) -> list[Judgement]:
    # Torch and transformers take seconds to import; wrong options should fail before that.
    from sequoia.distillation.display import stderr_display
    from sequoia.distillation.recipe import distill as make
    from sequoia.runtime.loading import choose_device

    arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
    if not any(argument.split("=")[0] == "--target" for argument in arguments):
        arguments += ["--target", order.target]  # it came from the environment
    command = shlex.join(["sequoia", *arguments])
    with stderr_display() as display:
        return make(order, budget, place, choose_device(device), command, display)


def _reference(model: str) -> str:
    """A model as it is kept with the run: a folder by its whole path."""
    path = Path(model).expanduser()
    return str(path.absolute()) if model not in BUILT_INS and path.is_dir() else model


def _check_files(order: Order) -> None:
    """Find out what is wrong with options and files before a model is loaded.

    Raises:
        DistillError: an option or a text.
        PromptsError: a file of prompts.
    """
    read_layers(order.layers)
    if not (math.isfinite(order.learning_rate) and order.learning_rate > 0):
        raise DistillError(f"{order.learning_rate:g} is not a number above 0", "--learning-rate")
    if order.vocab_size is not None and order.beginning is not None:
        raise DistillError("cannot go with --from: that draft says what it says", "--vocab-size")
    if order.vocab_size is not None and order.vocab_size < 1:
        raise DistillError(f"{order.vocab_size} is not above 0", "--vocab-size")
    files = [("--prompts", path) for path in order.prompts]
    if order.unseen is not None:
        files.append(("--unseen", order.unseen))
    for option, path in files:
        try:
            read_prompts(path)
        except PromptsError as error:
            raise PromptsError(f"{option}: {error}") from None
    require_text(order.texts)


def _table(out: Path, judgements: Sequence[Judgement]) -> Table:
    table = Table("temperature", "level", title=str(out))
    for name in ("Σ min(p, q)", "argmax first", "in first 8", "8 children rejected"):
        table.add_column(name, justify="right")
    for judgement in judgements:
        for number, level in enumerate(judgement.levels, start=1):
            figures = (level.overlap, level.top_match[1], level.top_match[8], level.rejection[7])
            cells = [f"{figure:.4f}" for figure in figures]
            table.add_row(f"{judgement.temperature:g}", str(number), *cells)
    return table
