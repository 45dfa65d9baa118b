"""`sequoia widen`: a target in the shape of a larger one, with the larger one's cost."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sequoia import config
from sequoia.cli.session import interrupt_on_terminate
from sequoia.runtime.catalogue import DRAFT_FOLDER, ModelError, default_draft, resolve
from sequoia.runtime.progress import stderr_progress
from sequoia.widening.failures import WidenError, require_new
from sequoia.widening.shapes import OUTLINES, Outline, read_outline

if TYPE_CHECKING:
    from sequoia.widening.folder import Widened


class StoredDType(StrEnum):
    """Element type of the weights in the files."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def widen(
    shape: Annotated[
        str,
        typer.Option(
            metavar="NAME|LxH[:FFN]",
            help=f"{', '.join(OUTLINES)}, or layers x hidden size, such as 32x2048:8192.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to be made; not one in use.")],
    target: config.Target = config.DEFAULT_TARGET,
    draft: Annotated[
        str | None,
        typer.Option(
            envvar="SEQUOIA_DRAFT",
            help="The target's draft, to go with the wide target. Default: its own, if it has one.",
        ),
    ] = None,
    dtype: Annotated[
        StoredDType, typer.Option(help="Element type of the weights.")
    ] = StoredDType.BFLOAT16,
) -> None:
    """Write a Llama into the shape of a larger one: it says the same, at the larger one's cost.

    For measuring what speculation gains where the target is large; the text stays the small
    model's. DIR is for --target; the draft goes along in it.
    """
    interrupt_on_terminate()
    place = out.expanduser().absolute()
    try:
        outline = read_outline(shape)
        require_new(place)
        made = _widen(target, draft or default_draft(target), outline, place, dtype)
    except WidenError as error:
        config.fail(str(error), 2 if error.option else 1)
    except ModelError as error:
        config.fail(str(error))
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(130) from None
    _tell(made)


def _widen(
    target: str, draft: str | None, outline: Outline, out: Path, dtype: StoredDType
) -> Widened:
    with stderr_progress() as progress:
        folder = resolve(target, progress=progress)
        draft_folder = None if draft is None else resolve(draft, progress=progress)
        # Torch and transformers take seconds to import; wrong options should fail before that.
        from sequoia.runtime.loading import DTYPES
        from sequoia.widening.folder import widen as write

        return write(folder, draft_folder, outline, out, DTYPES[dtype], progress)


def _tell(made: Widened) -> None:
    shape = made.shape
    print(made.folder)
    print(
        f"{shape.layers} layers x {shape.hidden}, FFN {shape.ffn}, {shape.heads} query and "
        f"{shape.kv_heads} KV heads of {shape.head_dim}"
    )
    print(f"{made.parameter_count:,} parameters, {made.byte_count:,} bytes")
    if made.has_draft:
        print(f"draft: {made.folder / DRAFT_FOLDER}, taken by default")
    else:
        print("draft: none written; name one with --draft where the target is used")
