"""Bad input gets its status, its reason, the field and the limit, and the server goes on."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from sequoia.errors import InvalidArgumentError, Reason
from sequoia.generation import ChatMessage, GenerationRequest
from sequoia.messages import GrowTree, Prefill, ProfileSpec, SessionSettings, StepHeader, VerifyTree
from sequoia.rpc.channel import RpcChannel
from sequoia.rpc.codec import GROW_TREE, PREFILL, PROFILE, VERIFY_TREE
from sequoia.rpc.errors import RemoteError, from_rpc_error
from sequoia.rpc.generation_codec import GENERATE, REQUEST_LIMIT_BYTES
from sequoia.settings import DrawRule, SamplingSettings
from sequoia.tree import Topology, Tree
from tests.stack import HOST, Stack, running_stack, take_step
from tests.tiny import byte_pair

GOOD = GenerationRequest(text="good", sampling=SamplingSettings(temperature=0.0), max_new_tokens=3)
SETTINGS = SessionSettings(SamplingSettings(temperature=0.0), DrawRule.GREEDY, 0, 3, 257)
CHAIN = Tree(Topology((-1, 0)), (7, 8))

# One running system for all tests of this file.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A target and a draft over bytes."""
    return byte_pair(tmp_path_factory.mktemp("pair"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(pair: tuple[Path, Path]) -> AsyncIterator[Stack]:
    """A running system."""
    async with running_stack(*pair) as running:
        yield running


def settings(**fields: Any) -> SamplingSettings:
    """Sampling settings that would not pass their own checks, as a foreign client may send them."""
    unchecked = object.__new__(SamplingSettings)
    for name in SamplingSettings.__dataclass_fields__:
        default = SamplingSettings.__dataclass_fields__[name].default
        object.__setattr__(unchecked, name, fields.get(name, default))
    return unchecked


REFUSED: dict[str, tuple[GenerationRequest, Reason, str]] = {
    "no prompt": (replace(GOOD, text=None), Reason.INVALID_ARGUMENT, "prompt"),
    "empty text": (replace(GOOD, text=""), Reason.INVALID_ARGUMENT, "text"),
    "empty chat": (replace(GOOD, text=None, chat=()), Reason.INVALID_ARGUMENT, "chat.messages"),
    "unknown role": (
        replace(GOOD, text=None, chat=(ChatMessage("wizard", "hi"),)),
        Reason.INVALID_ARGUMENT,
        "chat.messages[0].role",
    ),
    "no tokens": (
        replace(GOOD, text=None, token_ids=()),
        Reason.INVALID_ARGUMENT,
        "tokens.token_ids",
    ),
    "token outside the vocabulary": (
        replace(GOOD, text=None, token_ids=(1, 257)),
        Reason.INVALID_ARGUMENT,
        "tokens.token_ids",
    ),
    "prompt over the context": (replace(GOOD, text="x" * 600), Reason.PROMPT_TOO_LONG, "prompt"),
    "prompt and new tokens over the context": (
        replace(GOOD, text="x" * 500, max_new_tokens=20),
        Reason.PROMPT_TOO_LONG,
        "max_new_tokens",
    ),
    "no new tokens": (replace(GOOD, max_new_tokens=0), Reason.INVALID_ARGUMENT, "max_new_tokens"),
    "too many new tokens": (
        replace(GOOD, max_new_tokens=4097),
        Reason.INVALID_ARGUMENT,
        "max_new_tokens",
    ),
    "too many stop strings": (
        replace(GOOD, stop_strings=("x",) * 17),
        Reason.INVALID_ARGUMENT,
        "stop_strings",
    ),
    "stop string too long": (
        replace(GOOD, stop_strings=("x" * 257,)),
        Reason.INVALID_ARGUMENT,
        "stop_strings[0]",
    ),
    "empty stop string": (
        replace(GOOD, stop_strings=("a", "")),
        Reason.INVALID_ARGUMENT,
        "stop_strings[1]",
    ),
    "stop token outside the vocabulary": (
        replace(GOOD, stop_token_ids=(300,)),
        Reason.INVALID_ARGUMENT,
        "stop_token_ids[0]",
    ),
    "too many logprobs": (
        replace(GOOD, logprob_count=21),
        Reason.INVALID_ARGUMENT,
        "logprob_count",
    ),
    **{
        f"{name} {value}": (
            replace(GOOD, sampling=settings(**{name: value})),
            Reason.INVALID_ARGUMENT,
            f"sampling.{name}",
        )
        for name, value in (
            ("temperature", -0.1),
            ("temperature", math.nan),
            ("temperature", math.inf),
            ("top_p", 0.0),
            ("top_p", 1.1),
            ("top_p", math.nan),
            ("min_p", -0.5),
            ("repetition_penalty", 0.0),
            ("presence_penalty", 11.0),
            ("frequency_penalty", math.nan),
        )
    },
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_bad_request_is_refused_by_field(stack: Stack, name: str) -> None:
    """The refusal names the field and the limit, and a good request works right after."""
    request, reason, field = REFUSED[name]

    with pytest.raises(RemoteError) as raised:
        await stack.generate(request)

    assert raised.value.reason is reason
    assert raised.value.metadata["field"] == field
    assert raised.value.metadata["limit"]
    assert len((await stack.generate(GOOD)).token_ids) == 3


async def call_raw(address: str, path: str, data: bytes) -> RemoteError:
    """Send bytes as they are, and return the failure."""
    async with grpc.aio.insecure_channel(address) as channel:
        try:
            await channel.unary_unary(path, None, None)(data)
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error)
    raise AssertionError("the call succeeded")


async def test_invalid_utf8_is_refused_by_field(stack: Stack) -> None:
    """A string that is not UTF-8 is named, however deep it lies."""
    content = b"\x12\x02\xff\xfe"  # ChatMessage.content
    message = b"\x0a" + bytes([len(content)]) + content  # ChatPrompt.messages
    chat = b"\x12" + bytes([len(message)]) + message  # GenerateRequest.chat

    error = await call_raw(stack.channel.address, GENERATE.path, chat)

    assert error.reason is Reason.INVALID_ARGUMENT
    assert error.metadata["field"] == "chat.messages.content"


async def test_bytes_that_are_no_message_are_refused(stack: Stack) -> None:
    """Garbage is INVALID_ARGUMENT, not an internal error."""
    error = await call_raw(stack.channel.address, GENERATE.path, b"\xff\xff\xff\xff")

    assert error.reason is Reason.MALFORMED_MESSAGE


async def test_an_oversized_message_is_refused_with_the_limit(stack: Stack) -> None:
    """A message over the limit is RESOURCE_EXHAUSTED and names the limit."""
    with pytest.raises(RemoteError) as raised:
        await stack.generate(replace(GOOD, text="x" * (REQUEST_LIMIT_BYTES + 1)))

    assert raised.value.reason is Reason.MESSAGE_TOO_LARGE
    assert raised.value.metadata["limit"] == str(REQUEST_LIMIT_BYTES)


@pytest_asyncio.fixture(loop_scope="module")
async def target(stack: Stack) -> AsyncIterator[RpcChannel]:
    """A channel to the target worker, with session `s` after three tokens, its next step 0."""
    channel = RpcChannel(f"{HOST}:{stack.target.port}")
    await channel.call(PREFILL, Prefill("s", (5, 6, 7), 0, SETTINGS))
    yield channel
    await channel.close()


async def refused(call: Callable[[], Any]) -> RemoteError:
    """The failure of a call."""
    with pytest.raises(RemoteError) as raised:
        await call()
    return raised.value


async def test_an_unknown_session_is_not_found(target: RpcChannel) -> None:
    """A step of a session that the worker does not hold is NOT_FOUND."""
    request = VerifyTree(StepHeader("other", 0, 3), CHAIN)

    error = await refused(lambda: take_step(target, VERIFY_TREE, request))

    assert error.reason is Reason.UNKNOWN_SESSION


@pytest.mark.parametrize(
    ("header", "field"),
    [
        (StepHeader("s", 4, 3), "header.step"),
        (StepHeader("s", 0, 9), "header.base_length"),
    ],
)
async def test_a_stale_step_is_refused(target: RpcChannel, header: StepHeader, field: str) -> None:
    """A step that does not fit what the session holds is FAILED_PRECONDITION."""
    error = await refused(lambda: take_step(target, VERIFY_TREE, VerifyTree(header, CHAIN)))

    assert error.reason is Reason.STALE_STEP
    assert error.metadata["field"] == field


async def test_a_repeated_step_gets_the_same_reply(target: RpcChannel) -> None:
    """The last step may be asked again; the answer is the one given before."""
    request = VerifyTree(StepHeader("s", 0, 3), CHAIN)

    first = await take_step(target, VERIFY_TREE, request)
    second = await take_step(target, VERIFY_TREE, request)

    assert first == second


async def test_accepted_nodes_that_are_no_path_are_refused(target: RpcChannel) -> None:
    """What was accepted must be a path of the last tree."""
    await take_step(target, VERIFY_TREE, VerifyTree(StepHeader("s", 0, 3), CHAIN))
    header = StepHeader("s", 1, 6, (1, 1))

    error = await refused(lambda: take_step(target, VERIFY_TREE, VerifyTree(header, CHAIN)))

    assert error.reason is Reason.MALFORMED_TREE
    assert error.metadata["field"] == "header.accepted_node_indices"


@pytest.mark.parametrize(
    ("tokens", "parents", "field"),
    [
        ((7, 8), (-1, 1), "tree.parent_indices"),
        ((7, 8), (-1,), "tree.token_ids"),
        ((7,), (0,), "tree.parent_indices"),
        ((), (), "tree.parent_indices"),
    ],
)
async def test_a_malformed_tree_is_refused(
    target: RpcChannel, tokens: tuple[int, ...], parents: tuple[int, ...], field: str
) -> None:
    """Arrays that are no tree are refused before they reach the model."""
    topology = object.__new__(Topology)
    object.__setattr__(topology, "parents", parents)
    tree = object.__new__(Tree)
    object.__setattr__(tree, "topology", topology)
    object.__setattr__(tree, "token_ids", tokens)

    request = VerifyTree(StepHeader("s", 0, 3), tree)
    error = await refused(lambda: take_step(target, VERIFY_TREE, request))

    assert error.reason is Reason.MALFORMED_TREE
    assert error.metadata["field"] == field


async def test_a_tree_token_outside_the_vocabulary_is_refused(target: RpcChannel) -> None:
    """A node's token must be one that the target knows."""
    tree = Tree(Topology((-1, 0)), (7, 9000))

    request = VerifyTree(StepHeader("s", 0, 3), tree)
    error = await refused(lambda: take_step(target, VERIFY_TREE, request))

    assert error.reason is Reason.INVALID_ARGUMENT
    assert error.metadata["limit"] == "256"


async def test_a_tree_over_the_node_limit_is_refused(stack: Stack) -> None:
    """The draft refuses a shape that is larger than it grows."""
    channel = RpcChannel(f"{HOST}:{stack.draft.port}")
    await channel.call(PREFILL, Prefill("s", (5, 6, 7), 0, SETTINGS))
    wide = Topology((-1, *(0 for _ in range(1024))))

    error = await refused(
        lambda: take_step(channel, GROW_TREE, GrowTree(StepHeader("s", 0, 3), 7, wide))
    )
    await channel.close()

    assert error.reason is Reason.MALFORMED_TREE
    assert error.metadata["limit"] == "1024"


async def test_an_unreasonable_profile_is_refused(target: RpcChannel) -> None:
    """Profiles are bounded in every number and in their combinations."""
    for spec, field in (
        (ProfileSpec((0,)), "node_counts"),
        (ProfileSpec((1,), (1,), (100_000,)), "prefix_lengths"),
        (ProfileSpec(tuple(range(1, 66))), "node_counts"),
        (ProfileSpec((1,), repetition_count=1000), "repetition_count"),
    ):
        error = await refused(lambda spec=spec: target.call(PROFILE, spec))  # type: ignore[misc]
        assert error.metadata["field"] == field


@pytest.mark.parametrize("fields", [{"seed": 2**64}, {"seed": -1}, {"max_new_tokens": -1}])
async def test_a_number_that_fits_no_field_is_refused_by_the_caller(
    stack: Stack, fields: dict[str, Any]
) -> None:
    """What the wire cannot hold is an error before anything is sent, not an empty request."""
    with pytest.raises(InvalidArgumentError) as refused:
        await stack.generate(replace(GOOD, **fields))
    assert [refused.value.metadata["field"]] == list(fields)
