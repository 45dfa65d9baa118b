from __future__ import annotations

from contextlib import suppress
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sequoia.errors import InvalidArgumentError, MalformedTreeError, SequoiaError
from sequoia.generation import (
    ChatMessage,
    Completion,
    FinishReason,
    GeneratedToken,
    GenerationChunk,
    GenerationRequest,
    Usage,
)
from sequoia.messages import (
    DraftDistribution,
    Features,
    ForwardTime,
    GrownTree,
    GrowTree,
    NodeLogprobs,
    Prefill,
    Prefilled,
    ProfileSpec,
    SessionSettings,
    StepHeader,
    TargetDistribution,
    Verdict,
    VerifyTree,
    WorkerInfo,
)
from sequoia.plans import BUILT_IN_PLAN, Plan
from sequoia.randomness import MAX_SEED
from sequoia.rpc.codec import (
    CLOSE_SESSION,
    GET_INFO,
    GROW_TREE,
    PREFILL,
    PROFILE,
    VERIFY_TREE,
    decode_array,
    encode_array,
)
from sequoia.rpc.generation_codec import GENERATE
from sequoia.rpc.method import Method
from sequoia.rpc.planner_codec import GET_PLAN, REPLAN
from sequoia.settings import DrawRule, SamplingSettings
from sequoia.tree import Topology, Tree
from sequoia.v1 import array_pb2, draft_pb2, generation_pb2, target_pb2, worker_pb2

HEADER = StepHeader("session", 2**40, 17, (1, 3))
TREE = Tree(Topology((-1, 0, 0, 1)), (9, 2**31, 12, 13))
# Every field away from its default, so that one that is lost on the way shows.
SAMPLING = SamplingSettings(0.7, 40, 0.9, 0.05, 1.2, -0.5, 0.25)
USAGE = Usage(1, 2, 3, 4, 5, 0.5, 0.25, 0.125, 1.5, 0.75, 2**40, 64, 0.375)


def uint32(*values: int) -> NDArray[np.uint32]:
    """Token ids as they lie on the wire."""
    return np.array(values, dtype=np.uint32)


def float32(*values: float) -> NDArray[np.float32]:
    """Probabilities as they lie on the wire."""
    return np.array(values, dtype=np.float32)


FEATURES: Features = np.array([[0, 1, 2**16 - 1], [5, 6, 7]], dtype=np.uint16)


def session_settings(rule: DrawRule, logprob_count: int | None) -> SessionSettings:
    """Settings of a session with every field set."""
    return SessionSettings(SAMPLING, rule, MAX_SEED, 5, 49152, logprob_count, True)


REQUESTS: list[tuple[Method[Any, Any], Any]] = [
    (GROW_TREE, GrowTree(HEADER, 9, TREE.topology)),
    (GROW_TREE, GrowTree(HEADER, 9, TREE.topology, FEATURES)),
    (GROW_TREE, GrowTree(HEADER, 9, TREE.topology, FEATURES[:0])),
    (VERIFY_TREE, VerifyTree(HEADER, TREE, (uint32(1, 2**32 - 1), uint32(7)))),
    (VERIFY_TREE, VerifyTree(StepHeader("s", 0, 1), Tree.root_only(0))),
    *(
        (PREFILL, Prefill("s", (1, 2, 2**32 - 1), 2**50, session_settings(rule, count), FEATURES))
        for rule in DrawRule
        for count in (None, 0, 20)
    ),
    (CLOSE_SESSION, "session"),
    (PROFILE, ProfileSpec((1, 64), (1, 8), (128, 1024), 5)),
    (GET_INFO, None),
    (GENERATE, GenerationRequest(text="naïve 😀")),
    (GENERATE, GenerationRequest(text="")),
    (GENERATE, GenerationRequest(token_ids=(0, 2**32 - 1))),
    (GENERATE, GenerationRequest(token_ids=())),
    (GENERATE, GenerationRequest(chat=(ChatMessage("user", "hi"), ChatMessage("", "")))),
    (GENERATE, GenerationRequest(chat=())),
    (
        GENERATE,
        GenerationRequest(
            text="x",
            sampling=SAMPLING,
            seed=MAX_SEED,
            max_new_tokens=7,
            stop_strings=("é", "\n\n"),
            stop_token_ids=(3, 4),
            ignore_end_of_text=True,
            logprob_count=3,
            echo_prompt_token_ids=True,
            disable_speculation=True,
        ),
    ),
    (GENERATE, GenerationRequest(text="x", seed=0, max_new_tokens=0, logprob_count=0)),
    (GET_PLAN, None),
    (REPLAN, None),
]
INFO = WorkerInfo(
    "m",
    "sha",
    49152,
    8192,
    "float32",
    "cpu",
    64,
    2**40,
    3,
    2**33,
    1024,
    "id",
    576,
    2**33,
    model_sha256="af",
    active_session_count=2,
)
REPLIES: list[tuple[Method[Any, Any], Any]] = [
    (GROW_TREE, GrownTree(TREE)),
    (
        GROW_TREE,
        GrownTree(
            TREE,
            (DraftDistribution(uint32(5, 6), np.array([1.0, 6e-8], dtype=np.float16)),) * 2,
            0.125,
        ),
    ),
    (VERIFY_TREE, Verdict((1, 2, 3))),
    (
        VERIFY_TREE,
        Verdict(
            (1, 2),
            (TargetDistribution(float32(0.5, 0.0), 0.5),),
            (
                NodeLogprobs(-0.5, float32(-1, -2), uint32(4), float32(-0.25)),
                NodeLogprobs(-1.5, float32(), uint32(), float32()),
            ),
            FEATURES,
            0.0625,
            8,
        ),
    ),
    (PREFILL, Prefilled(1.25)),
    (PREFILL, Prefilled(0.5, FEATURES, "af", "bfloat16")),
    (CLOSE_SESSION, None),
    (PROFILE, [ForwardTime(1, 2, 3, 0.5), ForwardTime(4, 5, 6, 1e-9)]),
    (PROFILE, []),
    (GET_INFO, INFO),
    (GENERATE, GenerationChunk("text", (GeneratedToken(1), GeneratedToken(2**31)))),
    (GENERATE, GenerationChunk(tokens=(GeneratedToken(1, -0.0, ((1, -0.5), (2, -2.0))),))),
    (GENERATE, GenerationChunk(prompt_token_ids=(1, 2, 3))),
    *(
        (GENERATE, GenerationChunk(completion=Completion(reason, USAGE, "stop")))
        for reason in FinishReason
    ),
    (GET_PLAN, BUILT_IN_PLAN),
    (REPLAN, Plan(2**40, 1.5e9, BUILT_IN_PLAN.trees)),
]
METHODS: list[Method[Any, Any]] = [
    GROW_TREE,
    VERIFY_TREE,
    PREFILL,
    CLOSE_SESSION,
    PROFILE,
    GET_INFO,
    GENERATE,
]
METHODS += [GET_PLAN, REPLAN]


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, types of arrays included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return bool(one.dtype == other.dtype and np.array_equal(one, other))
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    if is_dataclass(one):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    return bool(one == other)


@pytest.mark.parametrize(("method", "request_"), REQUESTS)
def test_requests_survive_the_wire(method: Method[Any, Any], request_: Any) -> None:
    """Every field of every request arrives as it was sent."""
    assert same(method.decode_request(method.encode_request(request_)), request_)


@pytest.mark.parametrize(("method", "reply"), REPLIES)
def test_replies_survive_the_wire(method: Method[Any, Any], reply: Any) -> None:
    """Every field of every reply arrives as it was sent."""
    assert same(method.decode_reply(method.encode_reply(reply)), reply)


def test_every_method_is_among_the_examples() -> None:
    """A new method needs its examples above."""
    names = {method.path for method in METHODS}
    assert {method.path for method, _ in REQUESTS} == names
    assert {method.path for method, _ in REPLIES} == names


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@settings(max_examples=100)
@given(data=st.binary(max_size=60))
def test_random_bytes_are_a_value_or_an_error_of_ours(
    method: Method[Any, Any], data: bytes
) -> None:
    """Nothing that a stranger sends raises what the server does not know."""
    for decode in (method.decode_request, method.decode_reply):
        with suppress(SequoiaError):
            decode(data)


@settings(max_examples=300)
@given(data=st.data())
def test_damaged_messages_are_a_value_or_an_error_of_ours(data: st.DataObject) -> None:
    """The same for valid messages of which some bytes were changed, added or lost."""
    examples = [(m.encode_request(value), m.decode_request) for m, value in REQUESTS]
    examples += [(m.encode_reply(value), m.decode_reply) for m, value in REPLIES]
    encoded, decode = data.draw(st.sampled_from(examples))
    damaged = bytearray(encoded)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(damaged)))
        end = data.draw(st.integers(start, min(start + 2, len(damaged))))
        damaged[start:end] = data.draw(st.binary(max_size=2))
    with suppress(SequoiaError):
        decode(bytes(damaged))


def test_unset_settings_keep_their_defaults() -> None:
    """An empty SamplingSettings means temperature 1 and nothing cut off."""
    data = generation_pb2.GenerateRequest(text="x").SerializeToString()
    request = GENERATE.decode_request(data)
    assert request == GenerationRequest(text="x")
    assert request.sampling == SamplingSettings()


def test_a_temperature_of_zero_is_not_unset() -> None:
    """Fields where zero means something are told apart from missing ones."""
    greedy = GenerationRequest(text="x", sampling=SamplingSettings(temperature=0))
    assert GENERATE.decode_request(GENERATE.encode_request(greedy)).sampling.is_greedy


def test_an_unset_profile_has_the_documented_defaults() -> None:
    """One sequence, 128 tokens before it, three repetitions."""
    data = worker_pb2.ProfileRequest(node_counts=[4]).SerializeToString()
    assert PROFILE.decode_request(data) == ProfileSpec((4,), (1,), (128,), 3)


def prefill_message(**settings: Any) -> worker_pb2.PrefillRequest:
    """A valid PrefillRequest but for some settings."""
    defaults: dict[str, Any] = {"draw_rule": worker_pb2.DRAW_RULE_GREEDY}
    return worker_pb2.PrefillRequest(
        session_id="s", settings=worker_pb2.SessionSettings(**defaults | settings)
    )


def test_a_session_without_a_vocabulary_is_unbounded() -> None:
    """0 means no bound: every id is inside."""
    prefill = PREFILL.decode_request(prefill_message().SerializeToString())
    assert prefill.settings.vocabulary_size > 2**20


HEADER_MESSAGE = worker_pb2.StepHeader(session_id="s")
ROOT_MESSAGE = worker_pb2.Tree(token_ids=[1], parent_indices=[-1])


def verify_message(**fields: Any) -> target_pb2.VerifyTreeRequest:
    """A valid VerifyTreeRequest but for some fields."""
    defaults: dict[str, Any] = {"header": HEADER_MESSAGE, "tree": ROOT_MESSAGE}
    return target_pb2.VerifyTreeRequest(**defaults | fields)


@pytest.mark.parametrize(
    ("method", "message", "field"),
    [
        (GENERATE, generation_pb2.GenerateRequest(), "prompt"),
        (
            GENERATE,
            generation_pb2.GenerateRequest(text="x", sampling={"top_p": 0}),
            "sampling.top_p",
        ),
        (
            GENERATE,
            generation_pb2.GenerateRequest(text="x", sampling={"temperature": float("nan")}),
            "sampling.temperature",
        ),
        (
            GENERATE,
            generation_pb2.GenerateRequest(text="x", sampling={"top_k": 2**32 - 1}),
            "sampling.top_k",
        ),
        (CLOSE_SESSION, worker_pb2.CloseSessionRequest(), "session_id"),
        (CLOSE_SESSION, worker_pb2.CloseSessionRequest(session_id="x" * 129), "session_id"),
        (PREFILL, prefill_message(draw_rule=0), "settings.draw_rule"),
        (PREFILL, prefill_message(draw_rule=9), "settings.draw_rule"),
        (PREFILL, prefill_message(sampling={"min_p": 2}), "sampling.min_p"),
        (GROW_TREE, draft_pb2.GrowTreeRequest(parent_indices=[-1]), "header.session_id"),
        (GROW_TREE, draft_pb2.GrowTreeRequest(header=HEADER_MESSAGE), "parent_indices"),
        (VERIFY_TREE, verify_message(header=None), "header.session_id"),
        (VERIFY_TREE, verify_message(tree=None), "tree.parent_indices"),
        (
            VERIFY_TREE,
            verify_message(tree=worker_pb2.Tree(token_ids=[1, 2], parent_indices=[-1, 1])),
            "tree.parent_indices",
        ),
        (
            VERIFY_TREE,
            verify_message(tree=worker_pb2.Tree(token_ids=[1, 2], parent_indices=[-1])),
            "tree.token_ids",
        ),
        (VERIFY_TREE, verify_message(supports=[encode_array(uint32())]), "supports"),
        (VERIFY_TREE, verify_message(supports=[array_pb2.Array()]), "supports.element_type"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_request_with_a_wrong_field_names_it(
    method: Method[Any, Any], message: Any, field: str
) -> None:
    """The caller learns what to mend."""
    with pytest.raises((InvalidArgumentError, MalformedTreeError)) as caught:
        method.decode_request(message.SerializeToString())
    assert caught.value.metadata["field"] == field


@pytest.mark.parametrize("reason", [0, 9])
def test_a_completion_without_a_reason_is_refused(reason: int) -> None:
    """The stream of a server that speaks another version does not end in a KeyError."""
    message = generation_pb2.GenerateResponse(completion={"finish_reason": reason})
    with pytest.raises(InvalidArgumentError) as caught:
        GENERATE.decode_reply(message.SerializeToString())
    assert caught.value.metadata["field"] == "completion.finish_reason"


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<u4"])
def test_arrays_are_little_endian(dtype: str) -> None:
    """Whatever the order in memory, the wire has one, and so has the reader."""
    values = np.array([1, 2, 300]).astype(dtype)
    for array in (values, values.astype(values.dtype.newbyteorder(">"))):
        encoded = encode_array(array)
        assert encoded.data == values.tobytes()
        assert same(decode_array(encoded, "x", dtype), values)


def array_message(**fields: Any) -> array_pb2.Array:
    """Two token ids, but for some fields."""
    defaults: dict[str, Any] = {
        "element_type": array_pb2.ELEMENT_TYPE_UINT32,
        "shape": [2],
        "data": bytes(8),
    }
    return array_pb2.Array(**defaults | fields)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (array_message(element_type=0), "x.element_type"),
        (array_message(element_type=99), "x.element_type"),
        (array_message(element_type=array_pb2.ELEMENT_TYPE_FLOAT32), "x.element_type"),
        (array_message(shape=[]), "x.shape"),
        (array_message(shape=[3]), "x.shape"),
        (array_message(shape=[1]), "x.shape"),
        (array_message(shape=[2, 1]), "x.shape"),
        (array_message(shape=[2**32 - 1]), "x.shape"),
        (array_message(data=bytes(7)), "x.shape"),
        (array_message(data=b""), "x.shape"),
    ],
)
def test_an_array_that_contradicts_itself_is_refused(message: array_pb2.Array, field: str) -> None:
    """Another element type, another rank, or data that do not fill the shape."""
    with pytest.raises(InvalidArgumentError) as caught:
        decode_array(message, "x", "<u4")
    assert caught.value.metadata["field"] == field


def test_an_empty_array_is_an_array() -> None:
    """A node without a support has no numbers."""
    assert decode_array(array_message(shape=[0], data=b""), "x", "<u4").size == 0
