"""The corpus on disk: token ids and features in shards, each complete or absent.

A shard says how far the corpus was when it was written, so nothing else has to be kept in step.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sequoia.distillation.extent import Extent
from sequoia.distillation.failures import DistillError

PATTERN = "shard-*.safetensors"
DAMAGE = (SafetensorError, KeyError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class Record:
    """A text of the corpus.

    Attributes:
        token_ids: all of it.
        features: the target's after reading each token, `[tokens, hidden]`, bfloat16.
        answer_start: where the first token stands that the target was to predict; 0 for a text
            that was cut before there was one.
        temperature: of the answer.
        opening_length: tokens that it has in common with others.
    """

    token_ids: Sequence[int]
    features: Tensor
    answer_start: int
    temperature: float
    opening_length: int = 0

    @property
    def new_tokens(self) -> int:
        """What it adds to a corpus."""
        return len(self.token_ids) - self.opening_length


def extent_of(folder: Path) -> Extent:
    """How far the corpus in a folder is; nothing where there is none.

    Raises:
        DistillError: the last shard is damaged.
    """
    paths = _paths(folder)
    if not paths:
        return Extent()
    try:
        with safe_open(paths[-1], framework="pt") as file:
            return Extent(**json.loads(file.metadata()["extent"]))
    except DAMAGE as error:
        raise _damaged(paths[-1], error) from error


def save_shard(folder: Path, records: Sequence[Record], extent: Extent) -> None:
    """Add a shard to a folder, whole or not at all.

    The texts stand end to end: `token_ids` int32 `[tokens]`; `hidden` `[tokens, hidden]`, the
    target's features; `lengths`, `answer_starts` int32 and `temperatures` float32 `[texts]`.
    """
    tensors = {
        "token_ids": torch.tensor([x for r in records for x in r.token_ids], dtype=torch.int32),
        "hidden": torch.cat([record.features for record in records]),
        "lengths": torch.tensor([len(r.token_ids) for r in records], dtype=torch.int32),
        "answer_starts": torch.tensor([r.answer_start for r in records], dtype=torch.int32),
        "temperatures": torch.tensor([record.temperature for record in records]),
    }
    path = folder / f"shard-{len(_paths(folder)):05d}.safetensors"
    partial = path.with_suffix(".partial")
    said = {"extent": json.dumps(dataclasses.asdict(extent))}
    try:
        save_file(tensors, partial, metadata=said)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_shards(folder: Path) -> list[dict[str, Tensor]]:
    """Every shard in `folder`, oldest first (see `save_shard` for the tensors).

    Raises:
        DistillError: a shard is damaged.
    """
    return [_load(path) for path in _paths(folder)]


def _load(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except DAMAGE as error:
        raise _damaged(path, error) from error
    return tensors


def _damaged(path: Path, error: Exception) -> DistillError:
    return DistillError(f"{path}: cannot be read ({error}): delete it and go on with --resume")


def _paths(folder: Path) -> list[Path]:
    return sorted(folder.glob(PATTERN))
