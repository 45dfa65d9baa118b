"""One run of `sequoia bench soak`; imported only once the options are known to be right."""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import torch

from sequoia.bench.environment import Environment
from sequoia.bench.report import Result
from sequoia.bench.soak.memory import Sample, measure_drift, read_sample
from sequoia.bench.soak.report import Soaked, make_result
from sequoia.bench.soak.traffic import Tally, visit_until, wait_until_idle
from sequoia.cli.bench_common import chosen_place
from sequoia.cli.bench_prompts import read_prompt_tokens
from sequoia.cli.session import quiet_system, say
from sequoia.launcher import LaunchOptions, LocalSystem
from sequoia.rpc.channel import RpcChannel
from sequoia.rpc.codec import GET_INFO
from sequoia.runtime.catalogue import default_draft

WORKERS = ("target_service", "draft_service")
SAMPLE_SECONDS = 5.0
SETTLING_SECONDS = 300.0  # at most half of the run
IDLE_SECONDS = 30.0  # for the last sessions to be closed
SAY_SECONDS = 60.0
LONG_PROMPT_TOKENS = 1024
INFO_SECONDS = 10.0
SEED = 1


@dataclass(frozen=True, slots=True)
class SoakBenchmark:
    """One run of the command, as its options say."""

    target: str
    draft: str | None
    prompts: Path
    prompt_count: int
    max_new_tokens: int
    dtype: str
    device: str
    minutes: float
    clients: int
    threads: int

    def run(self) -> Result:
        """Load the system and watch it.

        Raises:
            PromptsError, ModelError, SequoiaError: as their makers say.
        """
        device, dtype = chosen_place(self.device, self.dtype)
        texts = read_prompt_tokens(
            self.target, self.prompts, self.prompt_count, self.max_new_tokens
        )
        prompts = [*texts.prompts, *long_prompts(texts.prompts, texts.room)]
        environment = Environment.gather(device)
        options = LaunchOptions(
            self.target,
            self.draft,
            dtype=dtype,
            device=device,
            log_level="warning",
            threads=self.threads or torch.get_num_threads(),
            prefix_cache=False,
        )
        with quiet_system(options) as system:
            if system.planner is not None:
                system.planner.wait_until_serving()
            say(f"{self.clients} clients for {self.minutes:g} minutes")
            soaked = asyncio.run(self._soak(system, prompts))
        settings: dict[str, object] = {
            "target": self.target,
            "draft": self.draft or default_draft(self.target),
            "dtype": dtype,
            "device": device,
            "threads": options.threads,
            "minutes": self.minutes,
            "clients": self.clients,
            "prompts": self.prompts.name,
            "prompt_token_counts": sorted(len(prompt) for prompt in prompts),
            "max_new_tokens": self.max_new_tokens,
            "seconds_between_samples": SAMPLE_SECONDS,
            "settled_after_seconds": self._settled_after,
        }
        return make_result(soaked, settings, environment)

    @property
    def _settled_after(self) -> float:
        return min(SETTLING_SECONDS, self.minutes * 30)

    async def _soak(self, system: LocalSystem, prompts: Sequence[tuple[int, ...]]) -> Soaked:
        tally = Tally()
        samples: dict[str, list[Sample]] = defaultdict(list)
        deadline = time.monotonic() + 60 * self.minutes
        watching = asyncio.create_task(_watch(system, samples, tally))
        try:
            async with asyncio.TaskGroup() as clients:
                for number in range(self.clients):
                    generator = random.Random(SEED + number)  # noqa: S311 a load to be repeated
                    clients.create_task(
                        visit_until(
                            deadline,
                            system.address,
                            generator,
                            prompts,
                            self.max_new_tokens,
                            tally,
                        )
                    )
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        say("the clients have left")
        left = await _sessions_left(system)
        drifts = {role: measure_drift(mine, self._settled_after) for role, mine in samples.items()}
        return Soaked(samples, drifts, tally, left)


def long_prompts(prompts: Sequence[tuple[int, ...]], room: int) -> list[tuple[int, ...]]:
    """Two prompts made of all others end to end: half as long as `room` allows, and as long.

    Neither has more tokens than are enough to load the caches.
    """
    everything = tuple(chain.from_iterable(prompts))
    most = min(room, LONG_PROMPT_TOKENS)
    repeated = everything * (most // len(everything) + 1)
    return [repeated[: max(most // 2, 1)], repeated[:most]]


async def _watch(system: LocalSystem, samples: dict[str, list[Sample]], tally: Tally) -> None:
    """Sample every process now and then, and tell how it goes; never ends."""
    started = last = time.monotonic()
    while True:
        now = time.monotonic()
        for role, pid in system.process_ids().items():
            if sample := read_sample(pid, now - started):
                samples[role].append(sample)
        if now - last >= SAY_SECONDS:
            last = now
            say(f"minute {(now - started) / 60:.0f}: {dict(tally.counts)}")
        await asyncio.sleep(SAMPLE_SECONDS)


async def _sessions_left(system: LocalSystem) -> dict[str, int]:
    channels = {role: RpcChannel(system.role(role).address) for role in WORKERS}

    async def count(channel: RpcChannel) -> int:
        return (await channel.call(GET_INFO, None, timeout=INFO_SECONDS)).session_count

    try:
        counts = [partial(count, channel) for channel in channels.values()]
        found = await wait_until_idle(IDLE_SECONDS, counts)
    finally:
        for channel in channels.values():
            await channel.close()
    return dict(zip(WORKERS, found, strict=True))
