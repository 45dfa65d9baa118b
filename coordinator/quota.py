"""What one client may use, and what it uses now."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sequoia.errors import ClientLimitError, PromptTooLongError

MINUTE_SECONDS = 60.0
# When a request of the same client will end nobody knows; a client that asks again now is refused.
CONCURRENCY_RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """Most that a client may use; None for no limit.

    Attributes:
        concurrency: requests at a time, those that wait for their turn included.
        tokens_per_minute: of prompts and texts together.
        prompt_tokens: of one prompt.
    """

    concurrency: int | None = None
    tokens_per_minute: int | None = None
    prompt_tokens: int | None = None


NO_LIMITS = ClientLimits()


class TokenBucket:
    """Fills at a steady rate up to a minute's worth, and may owe.

    A running text goes on when the bucket is empty; the next request waits until the debt is paid. So
    over time no more than the rate is used, and at most one minute's worth ahead of it.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._filled_at = clock()

    @property
    def level(self) -> float:
        """Tokens in it now; below 0 it owes."""
        now = self._clock()
        gained = (now - self._filled_at) * self.per_minute / MINUTE_SECONDS
        self._level = min(self._level + gained, self.per_minute)
        self._filled_at = now
        return self._level

    def take(self, token_count: int) -> None:
        """Take tokens out, or put them back where the count is negative."""
        self._level = min(self.level - token_count, self.per_minute)

    def seconds_until(self, token_count: int) -> float:
        """Time until it holds so many."""
        return max(token_count - self.level, 0.0) * MINUTE_SECONDS / self.per_minute


class Client:
    """Someone who may call `Generate`.

    Args:
        name: as the operator calls it; it stands in logs.
        limits: what it may use at most.
        clock: seconds, never going back.
    """

    def __init__(self, name: str, limits: ClientLimits, clock: Callable[[], float]) -> None:
        self.name = name
        self.limits = limits
        self.active_count = 0
        self._clock = clock
        self._bucket = self._filled_bucket()

    def set_limits(self, limits: ClientLimits) -> None:
        """Other limits from now on; what has been used stays used."""
        changed = limits.tokens_per_minute != self.limits.tokens_per_minute
        self.limits = limits
        if changed:
            used = self._bucket.per_minute - self._bucket.level if self._bucket else 0.0
            self._bucket = self._filled_bucket()
            if self._bucket:
                self._bucket.take(round(used))

    @contextmanager
    def request(self) -> Iterator[Spending]:
        """One request of the client, from before its prompt is read to its end.

        A request that the service fails before its first token costs nothing; one that its client
        leaves costs what was done.

        Raises:
            ClientLimitError: as many requests as it may have are in flight.
        """
        limit = self.limits.concurrency
        if limit is not None and self.active_count >= limit:
            raise ClientLimitError(
                f"concurrency: {self.active_count} requests of {self.name} are in flight",
                field="concurrency",
                limit=limit,
                value=self.active_count,
                retry_after_seconds=_told(CONCURRENCY_RETRY_SECONDS),
            )
        self.active_count += 1
        spending = Spending(self)
        try:
            yield spending
        except Exception:
            spending.give_back()
            raise
        finally:
            self.active_count -= 1

    def charge(self, token_count: int) -> None:
        """Count tokens as used."""
        if self._bucket:
            self._bucket.take(token_count)

    def check_prompt(self, token_count: int) -> None:
        """Refuse a prompt that is too long, or that there are not enough tokens left for.

        Raises:
            PromptTooLongError: no later call would fare better.
            ClientLimitError: a later one would, and when.
        """
        per_minute = self.limits.tokens_per_minute
        for field, limit in (
            ("prompt_tokens", self.limits.prompt_tokens),
            ("tokens_per_minute", per_minute),
        ):
            if limit is not None and token_count > limit:
                raise PromptTooLongError(
                    f"prompt: {token_count} tokens exceed the {limit} that {self.name} has as {field}",
                    field="prompt",
                    limit=limit,
                    value=token_count,
                )
        seconds = self._bucket.seconds_until(token_count) if self._bucket else 0.0
        if seconds > 0.0:
            raise ClientLimitError(
                f"tokens_per_minute: {self.name} has used up its {per_minute}; "
                f"a prompt of {token_count} tokens can be sent in {_told(seconds)} s",
                field="tokens_per_minute",
                limit=per_minute,
                value=token_count,
                retry_after_seconds=_told(seconds),
            )

    def _filled_bucket(self) -> TokenBucket | None:
        per_minute = self.limits.tokens_per_minute
        return None if per_minute is None else TokenBucket(per_minute, self._clock)


class Spending:
    """What one request uses of its client's tokens."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._prompt_tokens = 0
        self._has_text = False

    def prompt(self, token_count: int) -> None:
        """Pay for a prompt.

        Raises:
            PromptTooLongError, ClientLimitError: as `Client.check_prompt` says.
        """
        self._client.check_prompt(token_count)
        self._client.charge(token_count)
        self._prompt_tokens = token_count

    def generated(self, token_count: int) -> None:
        """Pay for new tokens."""
        if token_count:
            self._has_text = True
            self._client.charge(token_count)

    def give_back(self) -> None:
        """The request failed: without any text its prompt costs nothing."""
        if not self._has_text:
            self._client.charge(-self._prompt_tokens)


def _told(seconds: float) -> str:
    """A time as clients read it, in tenths and never less than it takes."""
    return f"{max(math.ceil(10.0 * seconds), 1) / 10.0:.1f}"
