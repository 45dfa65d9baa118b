from __future__ import annotations

from contextlib import suppress

import pytest

from coordinator.quota import Client, ClientLimits, TokenBucket
from sequoia.errors import CapacityError, ClientLimitError, PromptTooLongError


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    """Seconds that a test decides."""
    return Clock()


def client(clock: Clock, **limits: int) -> Client:
    """Alice, with some limits."""
    return Client("alice", ClientLimits(**limits), clock)


def spend(client: Client, prompt: int, generated: int, error: BaseException) -> None:
    """A request that ends with an error."""
    with suppress(type(error)), client.request() as spending:
        spending.prompt(prompt)
        spending.generated(generated)
        raise error


def test_a_bucket_fills_at_its_rate_up_to_a_minutes_worth(clock: Clock) -> None:
    """And no further."""
    bucket = TokenBucket(60, clock)
    bucket.take(50)
    clock.seconds += 20
    assert bucket.level == pytest.approx(30)
    clock.seconds += 3600
    assert bucket.level == pytest.approx(60)


def test_a_debt_is_paid_before_anything_else(clock: Clock) -> None:
    """A text that goes on beyond the limit holds the next request up."""
    alice = client(clock, tokens_per_minute=60)
    with alice.request() as spending:
        spending.prompt(10)
        spending.generated(80)  # 30 more than there were
    with pytest.raises(ClientLimitError) as refused, alice.request() as spending:
        spending.prompt(10)
    assert refused.value.metadata["field"] == "tokens_per_minute"
    assert refused.value.metadata["limit"] == "60"
    assert refused.value.metadata["retry_after_seconds"] == "40.0"

    clock.seconds += 39.9
    with pytest.raises(ClientLimitError), alice.request() as spending:
        spending.prompt(10)
    clock.seconds += 0.2
    with alice.request() as spending:
        spending.prompt(10)


def test_over_time_no_more_than_the_rate_is_used(clock: Clock) -> None:
    """A client that always tries gets one minute's worth ahead, and then the rate."""
    alice = client(clock, tokens_per_minute=600)
    used = 0
    for _ in range(600):  # ten minutes
        clock.seconds += 1
        try:
            with alice.request() as spending:
                spending.prompt(20)
                spending.generated(30)
                used += 50
        except ClientLimitError:
            pass
    assert 6000 <= used <= 6000 + 600 + 50


def test_requests_beyond_the_limit_are_refused_until_one_ends(clock: Clock) -> None:
    """However they end."""
    alice = client(clock, concurrency=1)
    with alice.request():
        with pytest.raises(ClientLimitError) as refused, alice.request():
            pass
        assert refused.value.metadata["field"] == "concurrency"
        assert float(refused.value.metadata["retry_after_seconds"]) > 0
    for error in (CapacityError("full"), GeneratorExit(), KeyError("defect")):
        with suppress(type(error)), alice.request():
            raise error
    assert alice.active_count == 0


@pytest.mark.parametrize("limits", [{"prompt_tokens": 9}, {"tokens_per_minute": 9}])
def test_a_prompt_that_can_never_pass_is_told_so(clock: Clock, limits: dict[str, int]) -> None:
    """With the field and the limit, and without advice to try again."""
    alice = client(clock, **limits)
    with pytest.raises(PromptTooLongError) as refused, alice.request() as spending:
        spending.prompt(10)
    assert refused.value.metadata == {"field": "prompt", "limit": "9", "value": "10"}
    with alice.request() as spending:
        spending.prompt(9)


def test_a_request_that_the_service_fails_before_its_first_token_costs_nothing(
    clock: Clock,
) -> None:
    """One that it fails later, or that its client leaves, costs what was done."""
    alice = client(clock, tokens_per_minute=60)
    for error in (CapacityError("full"), KeyError("defect")) * 5:
        spend(alice, 60, 0, error)
    spend(alice, 20, 1, CapacityError("lost"))
    spend(alice, 20, 0, GeneratorExit())
    with pytest.raises(ClientLimitError), alice.request() as spending:
        spending.prompt(20)
    with alice.request() as spending:
        spending.prompt(19)


def test_a_wait_is_never_told_shorter_than_it_is(clock: Clock) -> None:
    """In tenths, rounded up: who comes back then is let in."""
    alice = client(clock, tokens_per_minute=600, concurrency=1)
    alice.charge(600)
    for owed, told in ((0.01, "0.1"), (0.33, "0.4"), (1.0, "1.0")):
        clock.seconds += 60.0  # full again
        alice.charge(600)
        clock.seconds += 1.0 - owed
        with pytest.raises(ClientLimitError, match=f"in {told} s") as refused:
            alice.check_prompt(10)
        assert refused.value.metadata["retry_after_seconds"] == told
        clock.seconds += float(told)
        alice.check_prompt(10)
    with alice.request(), pytest.raises(ClientLimitError) as refused, alice.request():
        pass
    assert refused.value.metadata["retry_after_seconds"] == "1.0"


def test_new_limits_keep_what_was_used(clock: Clock) -> None:
    """Reading the file again gives nobody a fresh minute."""
    alice = client(clock, tokens_per_minute=100)
    alice.charge(90)
    alice.set_limits(ClientLimits(tokens_per_minute=100, concurrency=3))
    with pytest.raises(ClientLimitError):
        alice.check_prompt(11)
    alice.set_limits(ClientLimits(tokens_per_minute=200))
    alice.check_prompt(110)
    with pytest.raises(ClientLimitError):
        alice.check_prompt(111)
    alice.set_limits(ClientLimits())
    alice.check_prompt(10**9)
