"""The promise, through the whole service: the target's own distribution comes out."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM

from sequoia.generation import GenerationRequest
from sequoia.plans import Plan, PlannedTree
from sequoia.sampling import warp
from sequoia.settings import SamplingSettings
from tests.stack import Stack, running_stack
from tests.tiny import word_pair

WORDS = 6
PROMPT = (3,)
IN_FLIGHT = 48
# Enumeration proves the rule; this is about the way through the service. 20,000 take twenty minutes.
SAMPLES = int(os.environ.get("LOSSLESS_SAMPLES", "2000"))
TREE = (-1, 0, 0, 1, 1, 2)


def exact_pairs(target: Path, settings: SamplingSettings) -> np.ndarray:
    """The target's own probability of every two-token continuation, `[first, second]`."""
    model = AutoModelForCausalLM.from_pretrained(target)
    with torch.inference_mode():
        first = warp(model(torch.tensor([PROMPT])).logits[:, -1], settings).exp()[0]
        prompts = torch.tensor([[*PROMPT, token] for token in range(WORDS)])
        second = warp(model(prompts).logits[:, -1], settings).exp()
    pairs: np.ndarray = (first[:, None] * second).double().numpy()
    return pairs


async def sampled_pairs(
    stack: Stack, settings: SamplingSettings, seeded: bool, samples: int
) -> np.ndarray:
    """How often each two-token continuation came out of the service, `[first, second]`."""
    counts: Counter[tuple[int, int]] = Counter()
    numbers = iter(range(samples))

    async def worker() -> None:
        for number in numbers:
            generated = await stack.generate(
                GenerationRequest(
                    token_ids=PROMPT,
                    sampling=settings,
                    max_new_tokens=2,
                    ignore_end_of_text=True,
                    seed=number if seeded else None,
                )
            )
            first, second = generated.token_ids
            counts[first, second] += 1

    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    table = np.zeros((WORDS, WORDS))
    for pair, count in counts.items():
        table[pair] = count
    return table


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("temperature", "top_p", "seeded", "samples"),
    [
        (0.6, 1.0, False, SAMPLES),
        (1.0, 1.0, False, SAMPLES),
        (0.6, 0.8, False, SAMPLES),
        (1.0, 0.8, False, SAMPLES),
        (1.0, 0.8, True, SAMPLES // 3),  # the coupled rule
    ],
)
async def test_sampled_pairs_follow_the_target(
    tmp_path: Path, temperature: float, top_p: float, seeded: bool, samples: int
) -> None:
    """Two-token outputs pass a chi-square test against the target's own distribution."""
    target, draft = word_pair(tmp_path, WORDS)
    settings = SamplingSettings(temperature=temperature, top_p=top_p)
    async with running_stack(target, draft, seeds=itertools.count(1)) as stack:
        assert stack.coordinator.engine
        trees = tuple(
            PlannedTree(name, 4096, TREE, 0, 0, 0)
            for name in ("sharp", "flat", "sharp-seeded", "flat-seeded")
        )
        stack.coordinator.engine.plan = Plan(1, 0.0, trees)
        observed = await sampled_pairs(stack, settings, seeded, samples)
    expected = exact_pairs(target, settings) * samples
    possible = expected > 0
    assert observed[~possible].sum() == 0
    common = expected >= 5
    rare = possible & ~common
    f_observed = [*observed[common], *([observed[rare].sum()] if rare.any() else [])]
    f_expected = [*expected[common], *([expected[rare].sum()] if rare.any() else [])]
    scale = sum(f_observed) / sum(f_expected)
    p_value = chisquare(f_observed, np.array(f_expected) * scale).pvalue
    assert p_value > 0.001
