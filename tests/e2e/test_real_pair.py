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
GENERATED_EVERY = 5  # a text of transformers takes several times as long as checking one

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
        self.end: int = self.model.generation_config.eos_token_id

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

    def leads(self, prompt: str, tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """How far the most likely token is ahead of each of `tokens`, and of the second likeliest.

        Both `[tokens]`, after the prompt and the tokens before.
        """
        ids = torch.cat([self.inputs(prompt), torch.tensor([tokens], dtype=torch.long)], dim=1)
        with torch.inference_mode():
            logits = self.model(ids).logits[0, -len(tokens) - 1 : -1]
        best, second = logits.topk(2).values.T
        return best - logits.gather(-1, ids[0, -len(tokens) :, None])[:, 0], best - second


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
    """Every token of 20 texts is the most likely one after those before it, ties aside.

    `transformers.generate` writes the same by itself; where that is compared, texts without a tie are equal.
    """
    torch.set_num_threads(2)
    target = resolve(TARGET)
    draft = default_draft(TARGET)
    assert draft
    async with running_stack(target, resolve(draft)) as stack:
        ours = await generate_all(stack)
    reference = Reference(target)

    tied = []
    for index, (prompt, tokens) in enumerate(zip(prompts(), ours, strict=True)):
        assert len(tokens) == NEW_TOKENS or tokens[-1] == reference.end
        over_ours, over_second = reference.leads(prompt, tokens)
        assert over_ours.max() < TIE, f"{prompt[:40]!r}: not the likeliest at {over_ours.argmax()}"
        if over_second.min() < TIE:
            tied.append(f"{prompt[:40]!r}: {float(over_second.min()):.2e} apart")
            continue
        assert not over_ours.any()
        if index % GENERATED_EVERY == 0:
            assert tokens == reference.generate(prompt)
    print(f"{PROMPTS - len(tied)} of {PROMPTS} without a tie; tied: {tied}")  # noqa: T201 listed with -s
    assert len(tied) < PROMPTS / 4
