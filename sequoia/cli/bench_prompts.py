"""The prompts of a benchmark as the coordinator would hand them to the models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from coordinator.prompt import PromptReader, RequestLimits
from sequoia.errors import PromptTooLongError
from sequoia.generation import ChatMessage, GenerationRequest
from sequoia.prompts import read_prompts, spread
from sequoia.runtime.catalogue import ModelError, resolve
from sequoia.runtime.progress import stderr_progress
from sequoia.runtime.tokenization import end_of_text_ids, gguf_arguments, load_tokenizer


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """Rendered by the chat template and tokenized.

    Attributes:
        stop_token_ids: that end a text.
        room: tokens that a prompt may have at most.
    """

    prompts: tuple[tuple[int, ...], ...]
    stop_token_ids: tuple[int, ...]
    room: int


def read_prompt_tokens(target: str, path: Path, count: int, max_new_tokens: int) -> PromptTokens:
    """Read a file and make tokens of `count` of its prompts; the text itself where none renders it.

    Raises:
        PromptsError: the file cannot be used.
        ModelError: the target cannot be found, or has no tokenizer.
        PromptTooLongError: a prompt and `max_new_tokens` do not fit the target's context.
    """
    texts = spread(read_prompts(path), count)
    with stderr_progress() as progress:
        folder = resolve(target, progress=progress)
    tokenizer = load_tokenizer(folder)
    stops = end_of_text_ids(folder, tokenizer)
    limits = _limits(folder)
    reader = PromptReader(tokenizer, stops, limits, lambda: 0)
    prompts = []
    for number, text in enumerate(texts, start=1):
        chat = (ChatMessage("user", text),) if tokenizer.chat_template else None
        request = GenerationRequest(
            chat=chat, text=None if chat else text, max_new_tokens=max_new_tokens
        )
        try:
            prompts.append(reader.read(request).prompt_token_ids)
        except PromptTooLongError as error:
            message = f"prompt {number} of the {len(texts)} from {path}: {error.message}"
            raise PromptTooLongError(message, **error.metadata) from error
    room = limits.context_length - max_new_tokens
    return PromptTokens(tuple(prompts), tuple(sorted(stops)), room)


def _limits(folder: Path) -> RequestLimits:
    """As a target worker would tell them, read from the configuration alone."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            folder, trust_remote_code=False, **gguf_arguments(folder)
        ).get_text_config(decoder=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: {error}") from error
    context = int(getattr(config, "max_position_embeddings", 0) or 2**31 - 1)
    return RequestLimits(context, config.vocab_size)
