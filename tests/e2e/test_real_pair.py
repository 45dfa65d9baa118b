"""The built-in pair, in float32, through the whole service."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sequoia.bench.prompts import MT_BENCH
from sequoia.generation import ChatMessage, GenerationRequest
from sequoia.runtime.catalogue import default_draft, resolve
from sequoia.settings import SamplingSettings
from tests.stack import Stack, running_stack

TARGET = "smollm2-135m-instruct"
PROMPTS = 20
NEW_TOKENS = 64
IN_FLIGHT = 8
TIE = 1e-3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def prompts() -> list[str]:
    """First turns of MT-Bench, from every category."""
    lines = MT_BENCH.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["turns"][0] for line in lines[:: len(lines) // PROMPTS]][:PROMPTS]


class Reference:
    """What transformers says, and how sure it is."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def inputs(self, prompt: str) -> torch.Tensor:
        """Token ids of a user message, `[1, tokens]`."""
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        ids: torch.Tensor = self.tokenizer(text, return_tensors="pt").input_ids
        return ids

    def generate(self, prompt: str) -> list[int]:
        """The greedy continuation."""
        ids = self.inputs(prompt)
        with torch.inference_mode():
            output = self.model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False)
        tokens: list[int] = output[0, ids.shape[1] :].tolist()
        return tokens

    def lead(self, prompt: str, tokens: list[int], other: int) -> float:
        """How far the most likely token is ahead of `other` after prompt and tokens."""
        ids = torch.cat([self.inputs(prompt), torch.tensor([tokens], dtype=torch.long)], dim=1)
        with torch.inference_mode():
            logits = self.model(ids).logits[0, -1]
        return float(logits.max() - logits[other])


async def generate_all(stack: Stack) -> list[list[int]]:
    """Our continuations, eight requests at a time."""
    places = asyncio.Semaphore(IN_FLIGHT)

    async def one(prompt: str) -> list[int]:
        async with places:
            request = GenerationRequest(
                chat=(ChatMessage("user", prompt),),
                sampling=SamplingSettings(temperature=0.0),
                max_new_tokens=NEW_TOKENS,
            )
            return (await stack.generate(request, timeout=300)).token_ids

    return await asyncio.gather(*(one(prompt) for prompt in prompts()))


async def test_greedy_text_is_the_one_of_transformers() -> None:
    """20 prompts x 64 tokens equal `transformers.generate`, ties aside, which are listed."""
    torch.set_num_threads(2)
    target = resolve(TARGET)
    draft = default_draft(TARGET)
    assert draft
    async with running_stack(target, resolve(draft)) as stack:
        ours = await generate_all(stack)
    reference = Reference(target)

    ties = []
    for prompt, tokens in zip(prompts(), ours, strict=True):
        expected = reference.generate(prompt)
        if tokens == expected:
            continue
        place = next(
            i for i, pair in enumerate(zip(tokens, expected, strict=False)) if len(set(pair)) > 1
        )
        lead = reference.lead(prompt, expected[:place], tokens[place])
        ties.append(f"{prompt[:40]!r} at token {place}: {lead:.2e} apart")
        assert lead < TIE, f"not a tie: {ties[-1]}"
    print(f"{PROMPTS - len(ties)} of {PROMPTS} identical; ties: {ties}")  # noqa: T201 listed with -s
