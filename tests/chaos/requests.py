"""What clients ask under faults: seeded requests, whose undisturbed texts can be known beforehand."""

from __future__ import annotations

from dataclasses import replace

from sequoia.generation import GenerationRequest
from sequoia.settings import SamplingSettings

PROMPTS = (
    "The capital of France",
    "Once upon a time",
    "def fibonacci(n):",
    "Water boils when",
    "The history of the bicycle begins",
    "To bake bread you need",
    "In the middle of the night",
    "A triangle has",
)
REQUEST_COUNT = 32
LEAST_TOKENS = 64
MOST_TOKENS = 128
TEMPERATURE = 0.7


def _length(number: int) -> int:
    """Tokens of a text; all lengths between the limits, so that texts do not end together."""
    spread = MOST_TOKENS - LEAST_TOKENS + 1
    return LEAST_TOKENS + number * 37 % spread


REQUESTS = tuple(
    GenerationRequest(
        text=PROMPTS[number % len(PROMPTS)],
        sampling=SamplingSettings(temperature=TEMPERATURE),
        seed=number,
        max_new_tokens=_length(number),
        ignore_end_of_text=True,
    )
    for number in range(REQUEST_COUNT)
)


def shortened(request: GenerationRequest, token_count: int) -> GenerationRequest:
    """The same request for fewer tokens: its text is the beginning of the whole one."""
    return replace(request, max_new_tokens=token_count)
