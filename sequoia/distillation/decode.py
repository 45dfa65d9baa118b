"""Decoders that write texts side by side: one token a row a step, each row at its own position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 256
"""Tokens per block of the two-stage draw in `draw`."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """An opening that many texts share.

    Attributes:
        state: what the decoder keeps of it.
        features: what the output layer read at its tokens, `[tokens, hidden]`.
    """

    state: Any
    features: Tensor


class Decoder(Protocol):
    """Runs `rows` texts of up to `length` tokens.

    Rows are independent slots: a new text begins in one with `seed`, or by feeding position 0.
    """

    rows: int
    length: int

    def step(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """Feed one token a row at its position: the features, `[rows, hidden]`.

        Fewer tokens than `rows` are for the first rows.
        """

    def logits(self, features: Tensor) -> Tensor:
        """Scores of every token id in fp32, `[rows, hidden]` to `[rows, vocabulary]`."""

    def prefix_of(self, token_ids: list[int]) -> Prefix:
        """Read a common opening, at least one token; may overwrite rows, so it comes first."""

    def seed(self, row: int, prefix: Prefix) -> None:
        """Begin a row with an opening."""


def draw(logits: Tensor, temperatures: Tensor, generator: torch.Generator) -> Tensor:
    """One token id a row from softmax(logits / temperature); the argmax where that is 0.

    Inverts the cumulative distribution in two stages (which block, then which token), which costs
    one pass over the vocabulary instead of a random number per entry.

    Args:
        logits: `[rows, vocabulary]`.
        temperatures: `[rows]`.
        generator: on the CPU, one number a row.

    Returns:
        int64 `[rows]`, on the device of the logits.
    """
    device = logits.device
    temperatures = temperatures.to(device)
    top, best = logits.max(-1)
    scale = 1 / temperatures.clamp_min(1e-3)
    weight = (logits - top[:, None]).mul_(scale[:, None]).exp_()
    weight = F.pad(weight, (0, -weight.shape[-1] % CHUNK)).view(len(logits), -1, CHUNK)
    chunk_end = weight.sum(-1).cumsum(-1)  # [rows, chunks]
    uniform = torch.rand(len(logits), 1, generator=generator).to(device)
    mark = uniform * chunk_end[:, -1:]
    chunk = torch.searchsorted(chunk_end, mark, right=True).clamp_max(chunk_end.shape[-1] - 1)
    start = F.pad(chunk_end, (1, 0)).gather(1, chunk)
    inner_end = weight.gather(1, chunk[..., None].expand(-1, 1, CHUNK))[:, 0].cumsum(-1)
    inner = torch.searchsorted(inner_end, mark - start, right=True).clamp_max(CHUNK - 1)
    drawn = (chunk * CHUNK + inner)[:, 0].clamp_max(logits.shape[-1] - 1)
    return torch.where(temperatures > 0, drawn, best)
