"""Texts that the target writes by itself, several side by side."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from sequoia.randomness import Purpose, uniforms
from sequoia.runtime.cache import KVCache
from sequoia.runtime.forward import TreeModel
from sequoia.runtime.segment import Segment
from sequoia.sampling import draw_indices, warped_probs
from sequoia.settings import SamplingSettings


@dataclass(frozen=True, slots=True)
class Prompt:
    """The tokens to continue, and how many more there may be."""

    token_ids: tuple[int, ...]
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Continuation:
    """A prompt and what the target made of it; a token that ends the text is part of it."""

    index: int  # of the prompt
    token_ids: tuple[int, ...]
    prompt_length: int

    @property
    def new_token_ids(self) -> tuple[int, ...]:
        """What the target wrote."""
        return self.token_ids[self.prompt_length :]


@dataclass(slots=True)
class _Text:
    """A continuation while it is written."""

    index: int
    prompt: Prompt
    token_ids: list[int]
    cache: KVCache = field(default_factory=KVCache)


def write(
    model: TreeModel,
    prompts: Sequence[Prompt],
    sampling: SamplingSettings,
    stop_token_ids: frozenset[int],
    *,
    seed: int = 0,
    batch_size: int = 8,
    report: Callable[[int], None] = lambda _: None,
) -> list[Continuation]:
    """Continue every prompt, up to a token that ends the text or to the prompt's limit.

    A draw is a function of seed, prompt and place, so that the texts do not depend on which of them
    are written side by side, but for rounding.

    Args:
        model: the target.
        prompts: each at least one token long, and short enough for the model's context.
        sampling: temperature and cuts; penalties are not applied.
        stop_token_ids: tokens that end a text.
        seed: of all draws.
        batch_size: texts in one pass at most.
        report: told the number of texts that are finished, after each.
    """
    waiting = deque(_Text(i, prompt, list(prompt.token_ids)) for i, prompt in enumerate(prompts))
    writing: list[_Text] = []
    finished: list[Continuation] = []
    while waiting or writing:
        while waiting and len(writing) < batch_size:
            text = waiting.popleft()
            model.prefill(text.cache, text.token_ids[:-1])
            writing.append(text)
        outputs = model.forward([Segment.chain(t.cache, t.token_ids[-1:]) for t in writing])
        for text, output in zip(list(writing), outputs, strict=True):
            token_id = _next_token(output.logits, sampling, seed, text)
            text.token_ids.append(token_id)
            prompt_length = len(text.prompt.token_ids)
            written = len(text.token_ids) - prompt_length
            if token_id in stop_token_ids or written >= text.prompt.max_new_tokens:
                writing.remove(text)
                finished.append(Continuation(text.index, tuple(text.token_ids), prompt_length))
                report(len(finished))
    return sorted(finished, key=lambda continuation: continuation.index)


def _next_token(logits: Tensor, sampling: SamplingSettings, seed: int, text: _Text) -> int:
    """The token after the text so far, from logits `[1, vocabulary]`."""
    if sampling.is_greedy:
        return int(logits[0].argmax())
    position = len(text.token_ids)
    uniform = uniforms(seed, Purpose.TARGET, position, text.index, 1)
    (drawn,), _ = draw_indices(warped_probs(logits, sampling), uniform)
    return drawn
