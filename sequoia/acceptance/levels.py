"""What a draft says after every prefix of a text, at each level of a tree.

At the first level everything before is committed text. A draft that reads the target's features
has these for committed tokens only: of tokens further down a tree it knows no more than its own.
So a node at level j reads the draft's features where the last j - 1 tokens are concerned, and sees
the rows of their nodes instead of the rows that the text will get once it is committed.

A pass over the whole text answers one level for all prefixes at once: its rows stand behind those
of the passes before in one cache, and a mask lets each see the rows that a tree would show it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sequoia.runtime.cache import KVCache
from sequoia.runtime.forward import TreeModel
from sequoia.runtime.segment import Segment

LEVELS = 3
"""Levels that are measured for a draft that reads features."""


def logits_by_level(
    draft: TreeModel, token_ids: Sequence[int], target_features: Tensor
) -> list[Tensor]:
    """Logits `[tokens, output rows]` per level; one level stands for all where none differs.

    Args:
        draft: the model that grows trees.
        token_ids: a whole text.
        target_features: what the target's output layer read at every token, `[tokens, hidden]`.
    """
    if not draft.reads_features:
        return [draft.plain(token_ids).logits]
    cache, count = KVCache(), len(token_ids)
    features = target_features.to(torch.bfloat16)  # as they travel to the draft worker
    found = []
    for level in range(1, LEVELS + 1):
        segment = Segment(
            cache,
            token_ids,
            range(count),
            visible_rows(count, level),
            np.tile(np.arange(count), level),
            features=shifted(features),
        )
        (output,) = draft.forward([segment])
        features = output.features
        found.append(output.logits)
    return found


def shifted(features: Tensor) -> Tensor:
    """For each token the features of the one before it, zeros for the first: `[tokens, hidden]`."""
    moved = torch.zeros_like(features)
    moved[1:] = features[:-1]
    return moved


def visible_rows(count: int, level: int) -> NDArray[np.bool_]:
    """What the rows of pass `level` may see of all passes: `[count, level * count]`.

    Row t sees itself, in pass i < level token t - (level - i), and in the first pass everything
    before that.
    """
    distance = np.arange(count)[:, None] - np.arange(count)[None, :]
    first = distance >= level - 1
    others = [distance == level - number for number in range(2, level + 1)]
    return np.concatenate([first, *others], axis=1)
