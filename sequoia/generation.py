"""The public API as domain values: a request for text, and the pieces of the answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from sequoia.settings import SamplingSettings


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt (exactly one of text, chat, token ids) and how to continue it.

    Limits that need the model (context, vocabulary) are checked by the coordinator.
    """

    text: str | None = None
    chat: tuple[ChatMessage, ...] | None = None
    token_ids: tuple[int, ...] | None = None
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    seed: int | None = None
    max_new_tokens: int | None = None
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_end_of_text: bool = False
    logprob_count: int | None = None
    echo_prompt_token_ids: bool = False
    disable_speculation: bool = False


class FinishReason(Enum):
    """Why a generation ended."""

    STOP = "stop"
    STOP_STRING = "stop_string"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class GeneratedToken:
    """One token of the continuation, with its log probabilities where they were asked for."""

    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """What a generation took and what speculation gave; times in seconds."""

    prompt_token_count: int
    completion_token_count: int
    step_count: int
    drafted_token_count: int
    accepted_token_count: int
    draft_seconds: float
    target_seconds: float
    transport_seconds: float
    total_seconds: float
    seconds_to_first_token: float
    plan_version: int
    largest_node_count: int
    queued_seconds: float = 0.0  # part of total_seconds and seconds_to_first_token

    @property
    def tokens_per_step(self) -> float:
        """Tokens generated per pass of the target."""
        return self.completion_token_count / max(self.step_count, 1)

    @property
    def seconds_per_token(self) -> float:
        """Time of the whole request over the tokens generated."""
        return self.total_seconds / max(self.completion_token_count, 1)


@dataclass(frozen=True, slots=True)
class Completion:
    """The end of a generation."""

    finish_reason: FinishReason
    usage: Usage
    stop_string: str = ""


@dataclass(frozen=True, slots=True)
class GenerationChunk:
    """One piece of the stream; the last one carries the completion."""

    text: str = ""
    tokens: tuple[GeneratedToken, ...] = ()
    prompt_token_ids: tuple[int, ...] = ()
    completion: Completion | None = None
