"""From a request to tokens: the chat template, the limits, and the settings of its sessions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from coordinator.request_limits import check_request
from sequoia.errors import InvalidArgumentError, PromptTooLongError
from sequoia.generation import ChatMessage, GenerationRequest
from sequoia.messages import SessionSettings
from sequoia.settings import DrawRule

MAX_NEW_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What a request may ask for."""

    context_length: int
    vocabulary_size: int
    max_new_tokens: int = MAX_NEW_TOKENS
    default_new_tokens: int = 256


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A valid request, tokenized, with everything that the loop needs to know."""

    prompt_token_ids: tuple[int, ...]
    settings: SessionSettings
    max_new_tokens: int
    stop_strings: tuple[str, ...]
    stop_token_ids: frozenset[int]
    disable_speculation: bool
    echo_prompt_token_ids: bool


class PromptReader:
    """Validates and tokenizes requests for one target."""

    def __init__(
        self,
        tokenizer: Any,
        end_of_text_ids: frozenset[int],
        limits: RequestLimits,
        fresh_seed: Callable[[], int],
    ) -> None:
        self._tokenizer = tokenizer
        self._end_of_text_ids = end_of_text_ids
        self._limits = limits
        self._fresh_seed = fresh_seed

    def read(self, request: GenerationRequest) -> PreparedRequest:
        """Check every field and tokenize the prompt.

        Raises:
            InvalidArgumentError: a field is outside its limits.
            PromptTooLongError: prompt and new tokens do not fit the context.
        """
        check_request(request, self._limits.max_new_tokens)
        _check_stop_tokens(request, self._limits.vocabulary_size)
        token_ids = self._tokens(request)
        max_new_tokens = self._max_new_tokens(request, len(token_ids))
        stops = frozenset(request.stop_token_ids)
        if not request.ignore_end_of_text:
            stops |= self._end_of_text_ids
        return PreparedRequest(
            token_ids,
            SessionSettings(
                request.sampling,
                _draw_rule(request),
                self._fresh_seed() if request.seed is None else request.seed,
                len(token_ids),
                self._limits.vocabulary_size,
                request.logprob_count,
            ),
            max_new_tokens,
            request.stop_strings,
            stops,
            request.disable_speculation,
            request.echo_prompt_token_ids,
        )

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of some tokens, special tokens left out."""
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        return text

    def _tokens(self, request: GenerationRequest) -> tuple[int, ...]:
        if request.chat is not None:
            field, token_ids = "chat", self._render(request.chat)
        elif request.text is not None:
            field, token_ids = "text", self._tokenizer(request.text).input_ids
        else:
            field, token_ids = "tokens.token_ids", list(request.token_ids or ())
        if not token_ids:
            raise InvalidArgumentError(field, "the prompt is empty", "at least one token")
        for token_id in token_ids:
            if not 0 <= token_id < self._limits.vocabulary_size:
                raise InvalidArgumentError(
                    field,
                    f"token id {token_id} is outside the vocabulary",
                    self._limits.vocabulary_size - 1,
                    token_id,
                )
        return tuple(token_ids)

    def _render(self, chat: Sequence[ChatMessage]) -> list[int]:
        if not self._tokenizer.chat_template:
            raise InvalidArgumentError(
                "chat", "this target has no chat template; send text or tokens instead", "text"
            )
        for index, message in enumerate(chat):
            if message.role not in ("system", "user", "assistant", "tool"):
                raise InvalidArgumentError(
                    f"chat.messages[{index}].role",
                    f"unknown role {message.role!r}",
                    "system, user, assistant, tool",
                    message.role,
                )
        messages = [{"role": message.role, "content": message.content} for message in chat]
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # templates are programs of the model's authors
            raise InvalidArgumentError(
                "chat.messages", f"refused by the chat template: {error}", "the template's"
            ) from error
        token_ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return token_ids

    def _max_new_tokens(self, request: GenerationRequest, prompt_length: int) -> int:
        limits = self._limits
        room = limits.context_length - prompt_length
        if room < 1:
            raise PromptTooLongError(
                f"prompt: {prompt_length} tokens leave no room in a context of "
                f"{limits.context_length}",
                field="prompt",
                limit=limits.context_length - 1,
                value=prompt_length,
            )
        wanted = request.max_new_tokens
        if wanted is None:
            return min(limits.default_new_tokens, limits.max_new_tokens, room)
        if wanted > room:
            raise PromptTooLongError(
                f"max_new_tokens: {wanted} new tokens after a prompt of {prompt_length} exceed the "
                f"context of {limits.context_length}",
                field="max_new_tokens",
                limit=room,
                value=wanted,
            )
        return wanted


def _draw_rule(request: GenerationRequest) -> DrawRule:
    """Greedy at temperature 0; with a seed the coupled rule, whose text no tree changes."""
    if request.sampling.is_greedy:
        return DrawRule.GREEDY
    return DrawRule.WITHOUT_REPLACEMENT if request.seed is None else DrawRule.COUPLED


def _check_stop_tokens(request: GenerationRequest, vocabulary_size: int) -> None:
    for index, token_id in enumerate(request.stop_token_ids):
        if not 0 <= token_id < vocabulary_size:
            raise InvalidArgumentError(
                f"stop_token_ids[{index}]",
                f"token id {token_id} is outside the vocabulary",
                vocabulary_size - 1,
                token_id,
            )
