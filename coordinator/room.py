"""What a worker holds at most, and how much of it is promised to requests.

What is promised here is this coordinator's own. Others may use the same workers, so these enforce their
limits themselves, and a request that meets one tries again as long as its patience lasts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

from sequoia.errors import InvalidArgumentError
from sequoia.messages import WorkerInfo

BLOCK_TOKENS = 256  # a session's KV cache grows by so many
NO_LIMIT = sys.maxsize


@dataclass(frozen=True, slots=True)
class Demand:
    """Tokens that a request's session may come to hold on a worker."""

    prompt_tokens: int
    new_tokens: int
    tree_tokens: int  # of the largest tree that it may check

    @property
    def token_count(self) -> int:
        """All of them, in whole blocks."""
        total = self.prompt_tokens + self.new_tokens + self.tree_tokens
        return -(-total // BLOCK_TOKENS) * BLOCK_TOKENS


class Room:
    """What one worker holds at most, and how much of that is promised to requests.

    Args:
        info: what the worker says of itself now; None as long as it has not been found. A worker that
            has not, or does not say what a token takes, has no limits here.
    """

    def __init__(self, info: Callable[[], WorkerInfo | None]) -> None:
        self.session_count = 0
        self.token_count = 0
        self._info = info

    @property
    def token_limit(self) -> int:
        """Tokens of KV cache, over all sessions."""
        info = self._info()
        if info is None or info.kv_bytes_per_token <= 0:
            return NO_LIMIT
        return info.kv_cache_limit_bytes // info.kv_bytes_per_token

    @property
    def session_limit(self) -> int:
        """Sessions."""
        info = self._info()
        return NO_LIMIT if info is None else info.session_limit

    def could_hold(self, demand: Demand) -> bool:
        """Whether the worker could if it held nothing else."""
        return demand.token_count <= self.token_limit

    def can_hold(self, demand: Demand) -> bool:
        """Whether there is room for one more now."""
        return (
            self.session_count < self.session_limit
            and self.token_count + demand.token_count <= self.token_limit
        )

    def take(self, demand: Demand) -> None:
        """Promise the room."""
        self.session_count += 1
        self.token_count += demand.token_count

    def give_back(self, demand: Demand) -> None:
        """Take the promise back."""
        self.session_count -= 1
        self.token_count -= demand.token_count

    def check(self, demand: Demand) -> None:
        """Refuse what could never be held.

        An invalid argument and no lack of resources: whoever tries again meets the same answer, as
        with a prompt beyond the context.

        Raises:
            InvalidArgumentError: naming the field that asks for too much, and what would fit.
        """
        if self.could_hold(demand):
            return
        text_limit = self.token_limit // BLOCK_TOKENS * BLOCK_TOKENS - demand.tree_tokens
        name, limit, value = "max_new_tokens", text_limit - demand.prompt_tokens, demand.new_tokens
        if limit < 1:
            name, limit, value = "prompt", max(text_limit - 1, 0), demand.prompt_tokens
        raise InvalidArgumentError(
            name,
            f"a prompt of {demand.prompt_tokens} and {demand.new_tokens} new tokens take the KV cache "
            f"of {demand.token_count}; the target holds {self.token_limit}",
            limit,
            value,
        )
