"""A target and a draft in one process, as their workers load them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sequoia.errors import IncompatibleModelsError
from sequoia.runtime.catalogue import resolve
from sequoia.runtime.forward import TreeModel
from sequoia.runtime.pairing import LoadedModel, load_draft_worker, load_target_worker
from sequoia.runtime.tokenization import end_of_text_ids, load_tokenizer


@dataclass(frozen=True, slots=True)
class Pair:
    """Two models that share a tokenizer, the tokenizer, and the tokens that end a text."""

    target_worker: LoadedModel
    draft_worker: LoadedModel
    tokenizer: Any
    stop_token_ids: frozenset[int]

    @property
    def target(self) -> TreeModel:
        """The model that decides."""
        return self.target_worker.model

    @property
    def draft(self) -> TreeModel:
        """The model that guesses."""
        return self.draft_worker.model

    @property
    def context_length(self) -> int:
        """Tokens that both can hold."""
        return min(self.target.context_length, self.draft.context_length)


def load_pair(target: str, draft: str | None, dtype: str, device: str) -> Pair:
    """Load both; the target's own draft where none is named.

    Raises:
        ModelError: one of them cannot be found or loaded, does not attend over trees, or the draft
            was made for another target.
        IncompatibleModelsError: the models do not share a tokenizer, or the draft reads features of
            another size than the target's.
    """
    target_worker = load_target_worker(target, dtype, device)
    draft_worker = load_draft_worker(draft, target, dtype, device)
    require_compatible(target_worker, draft_worker)
    folder = resolve(target)
    tokenizer = load_tokenizer(folder)
    return Pair(target_worker, draft_worker, tokenizer, end_of_text_ids(folder, tokenizer))


def require_compatible(target: LoadedModel, draft: LoadedModel) -> None:
    """Check that the draft guesses the target's tokens, from features that the target has.

    Raises:
        IncompatibleModelsError: it does not.
    """
    facts = {"draft": draft.name, "target": target.name}
    if draft.tokenizer_sha256 != target.tokenizer_sha256:
        raise IncompatibleModelsError(
            f"the draft {draft.name} has another tokenizer than the target {target.name}", **facts
        )
    read, made = draft.model.feature_size, target.model.feature_size
    if draft.model.reads_features and read != made:
        raise IncompatibleModelsError(
            f"the draft {draft.name} reads features of {read} elements, and the target "
            f"{target.name} gives {made}",
            **facts,
        )
