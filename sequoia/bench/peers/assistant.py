"""A draft as `transformers` takes one for assisted generation: any token may be asked about."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sequoia.bench.errors import UnavailableError
from sequoia.runtime.catalogue import resolve
from sequoia.runtime.loading import BorrowedDraft, load_draft


class ExpandedHead(nn.Module):
    """An output layer over some token ids, spread over all: tokens that it cannot say get -inf."""

    def __init__(self, head: nn.Module, token_ids: Tensor, vocabulary_size: int) -> None:
        super().__init__()
        self.head = head
        self.vocabulary_size = vocabulary_size
        self.token_ids = token_ids

    def forward(self, values: Tensor) -> Tensor:
        """Hidden states `[..., hidden]` to logits `[..., vocabulary]`."""
        known: Tensor = self.head(values)
        logits = known.new_full((*known.shape[:-1], self.vocabulary_size), -torch.inf)
        logits[..., self.token_ids] = known
        return logits


def load_assistant(
    reference: str, target: str, vocabulary_size: int, dtype: torch.dtype, device: torch.device
) -> Any:
    """Load a draft as a model of transformers, its output layer expanded where it is reduced.

    Raises:
        ModelError: it cannot be found or loaded, or was made for another target.
        UnavailableError: it reads the target's features, which transformers does not hand on.
    """
    folder = resolve(reference)
    target_folder = resolve(target) if BorrowedDraft.read(folder) is not None else None
    draft = load_draft(folder, target_folder, dtype, device)
    if draft.reads_features:
        raise UnavailableError(
            f"the draft {reference} reads the target's hidden states, which assisted generation of "
            "transformers does not hand on; --assistant names another draft"
        )
    if draft.token_ids is not None:
        model = draft.model
        head = ExpandedHead(model.get_output_embeddings(), draft.token_ids, vocabulary_size)
        model.set_output_embeddings(head)
        model.config.vocab_size = vocabulary_size
    return draft.model
