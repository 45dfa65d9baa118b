"""The folder of a widened target: whole, or not there."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from sequoia.runtime.catalogue import DRAFT_FOLDER, HUB_COMPANIONS
from sequoia.runtime.progress import Progress, Stage
from sequoia.widening.draft import widen_draft
from sequoia.widening.failures import WidenError, require_new, require_room
from sequoia.widening.placement import tensor_sizes, widened
from sequoia.widening.shapes import Outline, Shape, fit
from sequoia.widening.shards import INDEX, Shard, divide, write_index
from sequoia.widening.source import Source

SHARD_BYTES = 2_000_000_000
# What is not copied, since it is written anew or is about the weights.
NOT_COPIED = frozenset({"config.json", INDEX})


@dataclass(frozen=True, slots=True)
class Widened:
    """What was written.

    Attributes:
        parameter_count: the wide target's, its zeros included.
        byte_count: of all files, the draft's included.
        has_draft: whether the draft was written as well.
    """

    folder: Path
    shape: Shape
    parameter_count: int
    byte_count: int
    has_draft: bool


def widen(
    target: Path,
    draft: Path | None,
    outline: Outline,
    out: Path,
    dtype: torch.dtype,
    progress: Progress,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> Widened:
    """Write a target into the shape of a larger one, with its draft in the subfolder `draft`.

    The work happens in a folder beside `out` that takes its name only when it is whole.

    Args:
        target: a Llama's folder.
        draft: the folder of its draft; None for none.
        outline: of the shape.
        out: a folder that is not there yet, or is empty.
        dtype: element type of the weights.
        progress: told of every tensor.
        shard_bytes: most bytes of a file, unless one tensor has more.

    Raises:
        ModelError: target or draft cannot be widened.
        WidenError: the shape is too small, `out` is not empty, or the disk is full.
    """
    require_new(out)
    source = Source.read(target)
    wide = fit(outline, source.shape)
    sizes = tensor_sizes(wide, source.vocabulary, source.is_tied)
    shards = divide(sizes, dtype, shard_bytes)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        require_room(out.parent, sum(shard.byte_count for shard in shards))
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as work:
            (made := Path(work) / "model").mkdir()
            has_draft = draft is not None and widen_draft(
                draft, source, wide, dtype, made / DRAFT_FOLDER, _name(source, wide)
            )
            _write_companions(source, wide, dtype, made)
            _write_weights(source, wide, shards, made, progress)
            byte_count = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
            made.replace(out)
    except (OSError, SafetensorError) as error:
        why = error.strerror if isinstance(error, OSError) else None
        raise WidenError(f"{out}: {why or error}; nothing of it is kept") from error
    parameter_count = sum(prod(size) for size in sizes.values())
    return Widened(out, wide, parameter_count, byte_count, has_draft)


def _name(source: Source, wide: Shape) -> str:
    return f"{source.folder.name} at {wide.layers}x{wide.hidden}"


def _write_companions(source: Source, wide: Shape, dtype: torch.dtype, folder: Path) -> None:
    """The configuration, and copies of tokenizer, chat template and generation settings."""
    for pattern in HUB_COMPANIONS:
        for path in source.folder.glob(pattern):
            if path.name not in NOT_COPIED and path.is_file():
                shutil.copyfile(path, folder / path.name)
    text = json.dumps(_config(source, wide, dtype), indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def _config(source: Source, wide: Shape, dtype: torch.dtype) -> dict[str, Any]:
    """The target's configuration with other sizes; rotary positions depend on the head size alone."""
    config = {name: value for name, value in source.config.items() if name != "torch_dtype"}
    return config | {
        "hidden_size": wide.hidden,
        "intermediate_size": wide.ffn,
        "num_hidden_layers": wide.layers,
        "num_attention_heads": wide.heads,
        "num_key_value_heads": wide.kv_heads,
        "head_dim": wide.head_dim,
        "rms_norm_eps": source.eps * source.shape.hidden / wide.hidden,
        "dtype": str(dtype).removeprefix("torch."),
        "widened_from": source.folder.name,
    }


def _write_weights(
    source: Source, wide: Shape, shards: Sequence[Shard], folder: Path, progress: Progress
) -> None:
    with source.opened() as read_source:
        for number, shard in enumerate(shards, start=1):

            def read(name: str, shard: Shard = shard) -> Tensor:
                size, dtype = shard.sizes[name], shard.dtype
                if name not in source.places:  # of a layer that the target lacks
                    return torch.zeros(size, dtype=dtype)
                return widened(name, read_source(name), source.shape, wide, size, dtype)

            message = f"shard {number} of {len(shards)}"
            report = partial(progress, Stage.WRITE, message, total=shard.byte_count)
            report(0)
            shard.write(folder, read, report)
    write_index(folder, shards)
