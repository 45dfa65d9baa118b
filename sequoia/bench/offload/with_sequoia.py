"""Ours with a budget, as clients meet it, and what its target worker reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sequoia.bench.errors import BenchmarkError
from sequoia.bench.offload.page_cache import cached_bytes
from sequoia.bench.offload.streamed import Streamed, count_bytes
from sequoia.bench.peers.runs import Prompt
from sequoia.bench.peers.served import ServedSystem
from sequoia.bench.process import peak_memory
from sequoia.launcher import LocalSystem

TARGET = "target_service"
CALL_SECONDS_PER_TOKEN = 120.0


def call_seconds(new_tokens: int) -> float:
    """How long a text may take whose every token may need a pass over the whole checkpoint."""
    return CALL_SECONDS_PER_TOKEN * (new_tokens + 1)


class OffloadedSystem:
    """Generates with a running system, with speculation and without."""

    def __init__(
        self, system: LocalSystem, served: ServedSystem, files: Sequence[Path], plain_tokens: int
    ) -> None:
        self._system = system
        self._served = served
        self._files = files
        self._plain_tokens = plain_tokens

    def speculate(self, prompt: Prompt) -> Streamed:
        """Continue a prompt with the plan's trees."""
        return self._generate(True, prompt)

    def alone(self, prompt: Prompt) -> Streamed:
        """Continue it one token a pass, which needs fewer tokens to be timed."""
        return self._generate(False, shortened(prompt, self._plain_tokens))

    def peak_memory(self) -> int | None:
        """Bytes of the target worker that were resident at a time."""
        return peak_memory(self._target_pid)

    def _generate(self, speculates: bool, prompt: Prompt) -> Streamed:
        pid = self._target_pid
        before = count_bytes(pid)
        run = self._served.generate(speculates, prompt)
        return Streamed(run, count_bytes(pid) - before, cached_bytes(self._files))

    @property
    def _target_pid(self) -> int:
        pid = self._system.role(TARGET).pid
        if pid is None:
            raise BenchmarkError("the target worker is not running")
        return pid


def shortened(prompt: Prompt, new_tokens: int) -> Prompt:
    """The prompt with no more than so many new tokens."""
    return replace(prompt, max_new_tokens=min(prompt.max_new_tokens, new_tokens))
