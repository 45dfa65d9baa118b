"""A chat's second turn with the prefix cache and without: `python -m benchmarks.prefix_cache`.

Two systems with the built-in pair in bfloat16 take turns. Each is given a first turn of so many tokens, which
it answers, and then the answer with another question behind it; what counts is the time to the first token.
docs/decisions/0015-prefixes-are-kept.md keeps the figures.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from statistics import median

import numpy as np

from sequoia.cli.session import quiet_system
from sequoia.config import DEFAULT_TARGET
from sequoia.generation import Completion, GenerationRequest
from sequoia.launcher import LaunchOptions, LocalSystem
from sequoia.rpc.channel import RpcChannel
from sequoia.rpc.generation_codec import GENERATE
from sequoia.settings import SamplingSettings

PROMPT_TOKENS = (250, 500, 1000)
ANSWER_TOKENS, QUESTION_TOKENS = 100, 30
ROUNDS = 5
VOCABULARY = 49_000  # ordinary tokens of the built-in target
PAUSE_SECONDS = 0.2  # until the workers know that a turn is over


async def answered(
    system: LocalSystem, request: GenerationRequest
) -> tuple[tuple[int, ...], Completion]:
    """The tokens of an answer, and how it came about."""
    channel, tokens = RpcChannel(system.address), []
    completion = None
    async for chunk in channel.stream(GENERATE, request, timeout=300):
        tokens += [token.token_id for token in chunk.tokens]
        completion = chunk.completion or completion
    await channel.close()
    await asyncio.sleep(PAUSE_SECONDS)
    if completion is None:
        raise RuntimeError("the stream ended without a completion")
    return tuple(tokens), completion


async def second_turn(
    system: LocalSystem, prompt: tuple[int, ...]
) -> tuple[float, tuple[int, ...]]:
    """Milliseconds to the first token of a chat's second turn, and what was said."""
    first = GenerationRequest(
        token_ids=prompt,
        sampling=SamplingSettings(temperature=0.0),
        max_new_tokens=ANSWER_TOKENS,
        ignore_end_of_text=True,
    )
    answer, _ = await answered(system, first)
    question = prompt[:QUESTION_TOKENS]
    text, completion = await answered(
        system, replace(first, token_ids=(*prompt, *answer, *question), max_new_tokens=20)
    )
    return completion.usage.seconds_to_first_token * 1e3, text


async def measured(systems: list[LocalSystem]) -> None:
    """Print a row per length of the first turn."""
    generator = np.random.default_rng(1)
    print("| first turn, tokens | read anew, ms | with the prefix cache, ms | texts alike |")
    print("|---|---|---|---|")
    for count in PROMPT_TOKENS:
        times: list[list[float]] = [[], []]
        alike = 0
        for number in range(ROUNDS + 1):
            prompt = tuple(generator.integers(100, VOCABULARY, count).tolist())
            order = (0, 1) if number % 2 else (1, 0)
            said = {}
            for index in order:
                milliseconds, said[index] = await second_turn(systems[index], prompt)
                if number:  # the first round warms up
                    times[index].append(milliseconds)
            alike += said[0] == said[1]
        anew, reused = (median(some) for some in times)
        print(f"| {count} | {anew:.0f} | {reused:.0f} | {alike} of {ROUNDS + 1} |", flush=True)


def main() -> None:
    """Start both systems and measure."""
    options = LaunchOptions(DEFAULT_TARGET, dtype="bfloat16", threads=2, max_batch_size=1)
    with (
        quiet_system(replace(options, prefix_cache=False)) as anew,
        quiet_system(options) as reusing,
    ):
        for system in (anew, reusing):
            if system.planner:
                system.planner.wait_until_serving()
        asyncio.run(measured([anew, reusing]))


if __name__ == "__main__":
    main()
