from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from coordinator.prompt import PromptReader, RequestLimits
from coordinator.request_limits import (
    LOGPROB_LIMIT,
    STOP_STRING_BYTES_LIMIT,
    STOP_STRING_LIMIT,
    STOP_TOKEN_LIMIT,
)
from sequoia.errors import InvalidArgumentError, PromptTooLongError, SequoiaError
from sequoia.generation import ChatMessage, GenerationRequest
from sequoia.randomness import MAX_SEED
from sequoia.settings import DrawRule, SamplingSettings
from tests.tiny import word_tokenizer

WORDS = 12
CONTEXT = 20
MAX_NEW_TOKENS = 15
DEFAULT_NEW_TOKENS = 10
END = 0
FRESH_SEED = 4711


def reader(tokenizer: PreTrainedTokenizerFast | None = None) -> PromptReader:
    """A reader for a target of twelve words and a context of twenty tokens."""
    limits = RequestLimits(CONTEXT, WORDS, MAX_NEW_TOKENS, DEFAULT_NEW_TOKENS)
    return PromptReader(
        tokenizer or word_tokenizer(WORDS), frozenset({END}), limits, lambda: FRESH_SEED
    )


def request(**fields: Any) -> GenerationRequest:
    """A request that is valid as far as nothing else is said."""
    if not fields.keys() & {"text", "chat"}:
        fields.setdefault("token_ids", (3, 4))
    return GenerationRequest(**fields)


def chat(*turns: tuple[str, str]) -> tuple[ChatMessage, ...]:
    """A conversation."""
    return tuple(ChatMessage(role, content) for role, content in turns)


def refusal(fields: dict[str, Any], reader: PromptReader | None = None) -> SequoiaError:
    """Why a request is refused."""
    with pytest.raises(SequoiaError) as caught:
        (reader or globals()["reader"]()).read(request(**fields))
    return caught.value


def test_text_is_tokenized_as_it_stands() -> None:
    """Without a chat template."""
    assert reader().read(request(text="w3 w5 w4")).prompt_token_ids == (3, 5, 4)


def test_token_ids_are_taken_as_they_are() -> None:
    """The caller has tokenized the prompt already."""
    assert reader().read(request(token_ids=(11, 0, 3))).prompt_token_ids == (11, 0, 3)


def test_a_conversation_is_rendered_with_the_chat_template() -> None:
    """Roles and contents as the target's template writes them; unknown words are w1 here."""
    prepared = reader().read(request(chat=chat(("user", "w3"), ("assistant", "w4"))))
    assert prepared.prompt_token_ids == (1, 3, 1, 4)


def test_a_template_that_writes_the_first_token_itself_is_not_given_another() -> None:
    """Special tokens are the template's business."""
    tokenizer = word_tokenizer(WORDS)
    tokenizer.chat_template = "w2 {{ messages[0]['content'] }}"
    tokenizer.add_special_tokens({"bos_token": "w2"})
    assert reader(tokenizer).read(request(chat=chat(("user", "w3")))).prompt_token_ids == (2, 3)


@pytest.mark.parametrize(
    ("fields", "rule", "seed"),
    [
        ({"sampling": SamplingSettings(temperature=0)}, DrawRule.GREEDY, FRESH_SEED),
        ({"sampling": SamplingSettings(temperature=0), "seed": 5}, DrawRule.GREEDY, 5),
        ({"sampling": SamplingSettings()}, DrawRule.WITHOUT_REPLACEMENT, FRESH_SEED),
        ({"sampling": SamplingSettings(), "seed": 0}, DrawRule.COUPLED, 0),
        ({"sampling": SamplingSettings(), "seed": MAX_SEED}, DrawRule.COUPLED, MAX_SEED),
    ],
)
def test_temperature_and_seed_choose_the_rule(
    fields: dict[str, Any], rule: DrawRule, seed: int
) -> None:
    """Greedy at 0; coupled with a seed, so that no tree changes the text; else fresh randomness."""
    settings = reader().read(request(**fields)).settings
    assert (settings.draw_rule, settings.seed) == (rule, seed)


def test_the_settings_of_the_sessions_know_prompt_and_vocabulary() -> None:
    """Penalties start behind the prompt, the draft stays inside the target's vocabulary."""
    settings = reader().read(request(token_ids=(3, 4, 5), logprob_count=2)).settings
    assert settings.prompt_token_count == 3
    assert settings.vocabulary_size == WORDS
    assert settings.logprob_count == 2


def test_the_models_end_of_text_stops_besides_the_requests_own_tokens() -> None:
    """Unless the request wants to go on after it."""
    assert reader().read(request(stop_token_ids=(7,))).stop_token_ids == {END, 7}
    ignoring = request(stop_token_ids=(7,), ignore_end_of_text=True)
    assert reader().read(ignoring).stop_token_ids == {7}


@pytest.mark.parametrize(
    ("prompt_length", "wanted", "expected"),
    [
        (2, None, DEFAULT_NEW_TOKENS),
        (15, None, 5),
        (19, None, 1),
        (2, 1, 1),
        (2, MAX_NEW_TOKENS, MAX_NEW_TOKENS),
        (10, 10, 10),
    ],
)
def test_the_number_of_new_tokens_has_a_default_that_fits(
    prompt_length: int, wanted: int | None, expected: int
) -> None:
    """What is asked for up to the limits; unset the default, or what the context holds."""
    prepared = reader().read(request(token_ids=(3,) * prompt_length, max_new_tokens=wanted))
    assert prepared.max_new_tokens == expected


def test_the_default_is_no_way_around_the_limit() -> None:
    """Who does not say how many tokens it wants gets no more than who says."""
    limits = RequestLimits(CONTEXT, WORDS, max_new_tokens=4, default_new_tokens=10)
    bounded = PromptReader(word_tokenizer(WORDS), frozenset({END}), limits, lambda: FRESH_SEED)
    assert bounded.read(request(max_new_tokens=None)).max_new_tokens == 4


def test_what_is_on_a_limit_is_allowed() -> None:
    """Limits are limits, not one less."""
    reader().read(
        request(
            logprob_count=LOGPROB_LIMIT,
            stop_strings=("x" * STOP_STRING_BYTES_LIMIT,) * STOP_STRING_LIMIT,
            stop_token_ids=(WORDS - 1,) * STOP_TOKEN_LIMIT,
            seed=MAX_SEED,
        )
    )


@pytest.mark.parametrize(
    ("fields", "field", "limit"),
    [
        ({"text": ""}, "text", "at least one token"),
        ({"text": "   "}, "text", "at least one token"),
        ({"token_ids": ()}, "tokens.token_ids", "at least one token"),
        ({"token_ids": (3, WORDS)}, "tokens.token_ids", str(WORDS - 1)),
        ({"chat": ()}, "chat.messages", "one message"),
        ({"chat": chat(("user", ""))}, "chat.messages", "one message"),
        (
            {"chat": chat(("user", "w3"), ("robot", "w4"))},
            "chat.messages[1].role",
            "system, user, assistant, tool",
        ),
        ({"seed": -1}, "seed", str(MAX_SEED)),
        ({"seed": MAX_SEED + 1}, "seed", str(MAX_SEED)),
        ({"logprob_count": -1}, "logprob_count", str(LOGPROB_LIMIT)),
        ({"logprob_count": LOGPROB_LIMIT + 1}, "logprob_count", str(LOGPROB_LIMIT)),
        ({"max_new_tokens": 0}, "max_new_tokens", str(MAX_NEW_TOKENS)),
        ({"max_new_tokens": MAX_NEW_TOKENS + 1}, "max_new_tokens", str(MAX_NEW_TOKENS)),
        ({"stop_strings": ("x",) * 17}, "stop_strings", str(STOP_STRING_LIMIT)),
        ({"stop_strings": ("x", "")}, "stop_strings[1]", str(STOP_STRING_BYTES_LIMIT)),
        ({"stop_strings": ("é" * 129,)}, "stop_strings[0]", str(STOP_STRING_BYTES_LIMIT)),
        ({"stop_token_ids": (3,) * 65}, "stop_token_ids", str(STOP_TOKEN_LIMIT)),
        ({"stop_token_ids": (3, WORDS)}, "stop_token_ids[1]", str(WORDS - 1)),
        ({"stop_token_ids": (-1,)}, "stop_token_ids[0]", str(WORDS - 1)),
    ],
    ids=str,
)
def test_what_is_outside_its_limits_is_refused(
    fields: dict[str, Any], field: str, limit: str
) -> None:
    """The refusal names the field and the limit, in its facts and in its sentence."""
    error = refusal(fields)
    assert isinstance(error, InvalidArgumentError)
    assert error.metadata["field"] == field
    assert error.metadata["limit"] == limit
    assert error.message.startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("fields", "field", "limit", "value"),
    [
        ({"token_ids": (3,) * CONTEXT}, "prompt", CONTEXT - 1, CONTEXT),
        ({"text": "w3 " * 30}, "prompt", CONTEXT - 1, 30),
        ({"token_ids": (3,) * 10, "max_new_tokens": 11}, "max_new_tokens", 10, 11),
    ],
    ids=["no room", "far too long", "too many new tokens"],
)
def test_what_does_not_fit_the_context_is_too_long(
    fields: dict[str, Any], field: str, limit: int, value: int
) -> None:
    """It has a reason of its own, and says how much would fit."""
    error = refusal(fields)
    assert isinstance(error, PromptTooLongError)
    assert error.metadata == {"field": field, "limit": str(limit), "value": str(value)}


def test_a_target_without_a_chat_template_takes_no_conversation() -> None:
    """The refusal says what to send instead."""
    tokenizer = word_tokenizer(WORDS)
    tokenizer.chat_template = None
    error = refusal({"chat": chat(("user", "w3"))}, reader(tokenizer))
    assert error.metadata["field"] == "chat"
    assert "send text or tokens" in error.message


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('roles must alternate') }}", "{{ messages[7]['content'] }}", "{% if %}"],
)
def test_a_conversation_that_the_template_refuses_is_refused(template: str) -> None:
    """Templates are programs of the model's authors: they may raise anything."""
    tokenizer = word_tokenizer(WORDS)
    tokenizer.chat_template = template
    error = refusal({"chat": chat(("user", "w3"))}, reader(tokenizer))
    assert isinstance(error, InvalidArgumentError)
    assert error.metadata["field"] == "chat.messages"
    assert error.metadata["limit"]


def test_special_tokens_have_no_text() -> None:
    """Decoding leaves them out."""
    assert reader().decode([3, END, 4]) == "w3 w4"
