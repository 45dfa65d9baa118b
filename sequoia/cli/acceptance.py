"""`sequoia acceptance`: how well a draft goes with a target, on texts that the target writes.

What `--json` prints can be handed to `sequoia plan --acceptance`; `sequoia.cli.acceptance_report`
says what its keys mean.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sequoia import config
from sequoia.acceptance.rules import RuleName
from sequoia.cli.session import fetch_models, interrupt_on_terminate
from sequoia.errors import InvalidArgumentError, PromptTooLongError, SequoiaError
from sequoia.launcher import LaunchOptions
from sequoia.log import configure_logging
from sequoia.prompts import PromptsError, read_prompts, spread
from sequoia.randomness import MAX_SEED
from sequoia.runtime.catalogue import ModelError
from sequoia.settings import SamplingSettings


def check_temperature(value: float) -> float:
    """Check a temperature as typer wants a callback to."""
    try:
        SamplingSettings(temperature=value)
    except InvalidArgumentError as error:
        limit = error.metadata["limit"]
        raise typer.BadParameter(f"{value:g} is outside {limit}") from None
    return value


def acceptance(
    prompts: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="JSON lines with `prompt`, or `turns` of which the first is used."
        ),
    ],
    temperature: Annotated[
        float,
        typer.Option(
            callback=check_temperature,
            help="Of target and draft. At 0 the target's argmax is looked for among the draft's "
            "first tokens, and the sum of min(p, q) is that of temperature 1.",
        ),
    ],
    target: config.Target = config.DEFAULT_TARGET,
    draft: config.Draft = None,
    rule: Annotated[
        RuleName,
        typer.Option(help="How children are drawn and accepted; all one at temperature 0."),
    ] = RuleName.SEQUOIA,
    max_prompts: Annotated[
        int | None, typer.Option(min=1, help="Most prompts, evenly spread over the file.")
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens that the target writes per prompt.")
    ] = 128,
    batch_size: Annotated[
        int, typer.Option(min=1, max=1024, help="Texts that are written side by side.")
    ] = 8,
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Of the texts and of the children drawn.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    dtype: config.DTypeOption = config.DType.AUTO,
    device: config.DeviceOption = config.Device.AUTO,
) -> None:
    """Measure how well a draft goes with a target, on texts that the target writes.

    Progress goes to stderr; the acceptance vector, rejection rates, Σ min(p, q), expected tokens per
    step and the times of both models to stdout. At temperature 0 the overlap and the coverage are
    those of the distributions at temperature 1.
    """
    interrupt_on_terminate()
    try:
        texts = read_prompts(prompts)
        texts = spread(texts, max_prompts or len(texts))
        fetch_models(LaunchOptions(target, draft))
        configure_logging("acceptance", config.LogLevel.WARNING)
        # Torch and transformers take seconds to import; wrong options should fail before that.
        from sequoia.cli.acceptance_run import Measurement

        measurement = Measurement(temperature, rule, max_new_tokens, batch_size, seed)
        report = measurement.run(texts, target, draft, dtype, device)
    except PromptsError as error:
        config.fail(f"--prompts: {error}", 2)
    except ModelError as error:
        config.fail(str(error))
    except SequoiaError as error:
        status = 2 if isinstance(error, InvalidArgumentError | PromptTooLongError) else 1
        config.fail(f"{error.reason}: {error.message}", status)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(report.as_json(), allow_nan=False))
    else:
        Console().print(report.as_tables())
