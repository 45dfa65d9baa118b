"""The image and docker-compose.yml for real, and what becomes of requests when containers are lost.

`make test-containers` runs these, on a Docker engine that it starts where none runs.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pytest

from sequoia.cli.generate import Answer, ask
from sequoia.errors import Reason, SequoiaError
from sequoia.generation import FinishReason, GenerationRequest
from sequoia.rpc.channel import Endpoint
from sequoia.settings import SamplingSettings
from tests.e2e.containers import ROLES, ComposeStack, docker, running_compose_stack, until
from tests.e2e.disturbances import cut_off, kill, pause, replace

pytestmark = [
    pytest.mark.skipif("CONTAINER_TESTS" not in os.environ, reason="make test-containers runs it"),
    pytest.mark.timeout(1800),
]

REQUESTS = tuple(
    GenerationRequest(
        text=text,
        sampling=SamplingSettings(temperature=0.7),
        seed=seed,
        max_new_tokens=120,
        ignore_end_of_text=True,
    )
    for seed, text in enumerate(
        ["The capital of France", "Once upon a time", "def fibonacci(n):", "Water boils when"] * 2
    )
)
IN_FLIGHT_TOKENS = 40  # over all requests, before something breaks


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeStack]:
    """One stack for all tests; each leaves it healthy."""
    with running_compose_stack(tmp_path_factory.mktemp("compose")) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(stack: ComposeStack) -> list[Answer]:
    """What the requests give when nothing happens."""
    return [answer for answer in asyncio.run(ask_all(stack)) if isinstance(answer, Answer)]


async def ask_all(
    stack: ComposeStack, disturb: Callable[[], object] = lambda: None
) -> Sequence[Answer | BaseException]:
    """All requests at a time; `disturb` is called on a thread once some tokens have come."""
    count, under_way = 0, asyncio.Event()

    def show(_: str) -> None:
        nonlocal count
        count += 1
        if count >= IN_FLIGHT_TOKENS:
            under_way.set()

    asking = [
        asyncio.create_task(ask(Endpoint(stack.address), request, show)) for request in REQUESTS
    ]
    await under_way.wait()
    assert not any(task.done() for task in asking)
    await asyncio.to_thread(disturb)
    return await asyncio.gather(*asking, return_exceptions=True)


@pytest.mark.parametrize(
    "disturb",
    [
        pytest.param(kill("draft"), id="draft killed"),
        pytest.param(kill("target"), id="only target killed"),
        pytest.param(kill("redis"), id="redis killed"),
        pytest.param(kill("planner"), id="planner killed"),
        pytest.param(pause("draft"), id="draft paused"),
        pytest.param(pause("target"), id="target paused"),
        pytest.param(cut_off("draft"), id="draft cut off"),
        pytest.param(cut_off("target"), id="target cut off"),
        pytest.param(replace("target"), id="target replaced"),
    ],
)
def test_no_request_is_lost_or_changed(
    stack: ComposeStack, undisturbed: list[Answer], disturb: Callable[[ComposeStack], None]
) -> None:
    """Eight seeded requests in flight say what they say undisturbed, to the last token."""
    assert len(undisturbed) == len(REQUESTS)
    answers = asyncio.run(ask_all(stack, lambda: disturb(stack)))
    for answer, expected in zip(answers, undisturbed, strict=True):
        assert isinstance(answer, Answer), answer
        assert answer.token_ids == expected.token_ids
        assert answer.completion.finish_reason is FinishReason.LENGTH
    stack.wait_until_healthy(*ROLES, "redis")


def test_after_a_lost_coordinator_the_same_seed_gives_the_same_text(
    stack: ComposeStack, undisturbed: list[Answer]
) -> None:
    """Clients see that it is gone, and may try again."""
    answers = asyncio.run(ask_all(stack, lambda: kill("coordinator")(stack)))
    for answer in answers:
        assert isinstance(answer, SequoiaError)
        assert answer.reason is Reason.WORKER_UNAVAILABLE

    again = asyncio.run(ask_all(stack))

    assert [one.token_ids for one in again if isinstance(one, Answer)] == [
        one.token_ids for one in undisturbed
    ]


def test_more_workers_share_the_sessions_and_one_of_them_is_not_missed(
    stack: ComposeStack, undisturbed: list[Answer]
) -> None:
    """`--scale` is all it takes: they are found by their name, and what one of them loses moves."""

    def logged(event: str) -> int:
        return stack.compose("logs", "--no-color", "coordinator").count(event)

    found, moved = logged("worker found"), logged("session moved")
    with stack.scaled(target=2, draft=2):
        until(lambda: logged("worker found") >= found + 2, 30.0)
        second = stack.containers("target")[1]
        answers = asyncio.run(ask_all(stack, partial(docker, "kill", second)))
        assert logged("session moved") > moved
    assert [one.token_ids for one in answers if isinstance(one, Answer)] == [
        one.token_ids for one in undisturbed
    ]


def test_speculation_runs_and_changes_nothing(stack: ComposeStack) -> None:
    """Without it the greedy text is the same, and takes more steps."""
    greedy = SamplingSettings(temperature=0.0)
    asked = (
        GenerationRequest(
            text="The sky is", sampling=greedy, max_new_tokens=60, disable_speculation=alone
        )
        for alone in (False, True)
    )
    fast, slow = (asyncio.run(ask(Endpoint(stack.address), request)) for request in asked)
    assert fast.text == slow.text
    assert fast.completion.usage.step_count < slow.completion.usage.step_count


def test_the_engine_that_was_compiled_ahead_runs(stack: ComposeStack) -> None:
    """There is no compiler in the image, and none is needed."""
    tools = "command -v cc c++ gcc g++ clang ld as make"
    for service in ("target", "draft"):
        assert stack.run_in(service, tools) == ""
        logs = stack.compose("logs", "--no-color", service)
        assert "native engine compiled ahead" in logs
        assert "passes go through transformers" not in logs


def test_roles_can_write_nothing_but_temporary_files(stack: ComposeStack) -> None:
    """Not root, and neither the root file system nor the models can be written."""
    for service in ROLES:
        assert stack.run_in(service, "id -u").strip() == "10001"
        assert "Read-only file system" in stack.run_in(service, "touch /opt/sequoia/x")
        assert stack.run_in(service, "touch /tmp/x") == ""
    assert "Read-only file system" in stack.run_in("target", "touch /models/x")


def test_only_the_coordinator_reaches_outside(stack: ComposeStack) -> None:
    """Workers, planner and Redis are on networks without a way out, and workers on none with Redis."""
    networks = {service: stack.networks(service) for service in (*ROLES, "redis")}
    assert networks == {
        "coordinator": {"outside": False, "workers": True, "state": True},
        "planner": {"workers": True, "state": True},
        "target": {"workers": True},
        "draft": {"workers": True},
        "redis": {"state": True},
    }
    look_up = "python -c 'import socket; socket.getaddrinfo(\"redis\", 6379)'"
    assert "gaierror" in stack.run_in("target", look_up)
    assert stack.run_in("planner", look_up) == ""


def test_redis_wants_the_password_and_does_not_show_it(stack: ComposeStack) -> None:
    """It is neither in the engine's records nor on a command line."""
    assert "NOAUTH" in stack.run_in("redis", "redis-cli get sequoia:plan")
    authorised = 'REDISCLI_AUTH="$(cat /run/secrets/redis_password)" redis-cli exists sequoia:plan'
    assert stack.run_in("redis", authorised).strip() == "1"
    for service in ("redis", "planner", "coordinator"):
        assert "correct-horse" not in str(stack.inspect(service))
        assert "correct-horse" not in stack.run_in(service, "cat /proc/*/cmdline /proc/*/environ")
        assert "correct-horse" not in stack.compose("logs", "--no-color", service)


def test_the_stack_ends_in_order(stack: ComposeStack) -> None:
    """Every role ends with status 0 when it is asked to, before it is killed."""
    stack.compose("stop", *ROLES)
    try:
        for service in ROLES:
            assert stack.state(service)["ExitCode"] == 0, service
    finally:
        stack.compose("up", "--detach", "--wait", seconds=300)
