"""Between the wire and the domain, for what workers and coordinators say to each other.

Decoders raise a `SequoiaError` that names the field; they never return a half-valid value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray

from sequoia import messages as m
from sequoia.errors import InvalidArgumentError, MalformedMessageError, MalformedTreeError
from sequoia.rpc.method import SMALL_LIMIT_BYTES, Method, nothing, parse
from sequoia.settings import DrawRule, SamplingSettings
from sequoia.tree import Topology, Tree, TreeError
from sequoia.v1 import array_pb2, draft_pb2, sampling_pb2, target_pb2, worker_pb2

_ELEMENT_TYPES: dict[array_pb2.ElementType, np.dtype[Any]] = {
    array_pb2.ELEMENT_TYPE_FLOAT16: np.dtype("<f2"),
    array_pb2.ELEMENT_TYPE_FLOAT32: np.dtype("<f4"),
    array_pb2.ELEMENT_TYPE_UINT32: np.dtype("<u4"),
    # numpy has no bfloat16: its bits.
    array_pb2.ELEMENT_TYPE_BFLOAT16: np.dtype("<u2"),
}
_ELEMENT_NUMBERS = {dtype: number for number, dtype in _ELEMENT_TYPES.items()}
_DRAW_RULES = {
    worker_pb2.DRAW_RULE_GREEDY: DrawRule.GREEDY,
    worker_pb2.DRAW_RULE_WITHOUT_REPLACEMENT: DrawRule.WITHOUT_REPLACEMENT,
    worker_pb2.DRAW_RULE_COUPLED: DrawRule.COUPLED,
}
_DRAW_RULE_NUMBERS = {rule: number for number, rule in _DRAW_RULES.items()}
_SETTING_NAMES = tuple(SamplingSettings.__dataclass_fields__)


def encode_array(array: NDArray[Any]) -> array_pb2.Array:
    """A dense array of one of the wire's element types."""
    little = array.dtype.newbyteorder("<")
    return array_pb2.Array(
        element_type=_ELEMENT_NUMBERS[little],
        shape=array.shape,
        data=array.astype(little, copy=False).tobytes(),
    )


def decode_array(array: array_pb2.Array, field: str, expected: str, rank: int = 1) -> NDArray[Any]:
    """An array of the expected element type (`<u4`, `<f2`, `<f4`, `<u2`) and rank.

    Raises:
        InvalidArgumentError: another type or rank, or the data do not fill the shape.
    """
    dtype = _ELEMENT_TYPES.get(array.element_type)
    if dtype != np.dtype(expected):
        raise InvalidArgumentError(f"{field}.element_type", "wrong element type", expected, dtype)
    if len(array.shape) != rank or math.prod(array.shape) * dtype.itemsize != len(array.data):
        raise InvalidArgumentError(
            f"{field}.shape",
            f"shape {list(array.shape)} does not describe {len(array.data)} bytes of {dtype}",
            len(array.data),
        )
    return np.frombuffer(array.data, dtype=dtype).reshape(array.shape)


def _encode_features(features: m.Features | None) -> array_pb2.Array | None:
    return None if features is None else encode_array(features)


def _decode_features(message: Any) -> m.Features | None:
    """The field `features` of a message, where it is set."""
    if not message.HasField("features"):
        return None
    return decode_array(message.features, "features", "<u2", rank=2)


def encode_seconds(seconds: float) -> Duration:
    """A duration, to the nanosecond."""
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def decode_seconds(time: Duration | Timestamp) -> float:
    """Seconds of a duration, or since the epoch.

    Raises:
        MalformedMessageError: seconds and nanoseconds that are none.
    """
    try:
        return time.ToNanoseconds() / 1e9
    except ValueError as error:
        raise MalformedMessageError(str(error), expected=time.DESCRIPTOR.name) from error


def encode_sampling(settings: SamplingSettings) -> sampling_pb2.SamplingSettings:
    """Sampling settings, every field set."""
    return sampling_pb2.SamplingSettings(
        **{name: getattr(settings, name) for name in _SETTING_NAMES}
    )


def decode_sampling(message: sampling_pb2.SamplingSettings) -> SamplingSettings:
    """Sampling settings; what is unset keeps its default."""
    present = {name: getattr(message, name) for name in _SETTING_NAMES if message.HasField(name)}
    return SamplingSettings(**present)


def decode_topology(parents: Iterable[int], field: str) -> Topology:
    """A topology from parent indices.

    Raises:
        MalformedTreeError: the indices are not a tree in level order.
    """
    try:
        return Topology(tuple(parents))
    except TreeError as error:
        raise MalformedTreeError(f"{field}: {error}", field=field) from error


def encode_tree(tree: Tree) -> worker_pb2.Tree:
    """A token tree."""
    return worker_pb2.Tree(token_ids=tree.token_ids, parent_indices=tree.topology.parents)


def decode_tree(message: worker_pb2.Tree) -> Tree:
    """A token tree.

    Raises:
        MalformedTreeError: the arrays contradict each other.
    """
    topology = decode_topology(message.parent_indices, "tree.parent_indices")
    try:
        return Tree(topology, tuple(message.token_ids))
    except TreeError as error:
        raise MalformedTreeError(f"tree.token_ids: {error}", field="tree.token_ids") from error


def encode_header(header: m.StepHeader) -> worker_pb2.StepHeader:
    """A step's header."""
    return worker_pb2.StepHeader(
        session_id=header.session_id,
        step=header.step,
        base_length=header.base_length,
        accepted_node_indices=header.accepted_nodes,
    )


def decode_header(message: worker_pb2.StepHeader) -> m.StepHeader:
    """A step's header.

    Raises:
        InvalidArgumentError: no session id.
    """
    return m.StepHeader(
        _session_id(message.session_id, "header.session_id"),
        message.step,
        message.base_length,
        tuple(message.accepted_node_indices),
    )


def _session_id(session_id: str, field: str = "session_id") -> str:
    if not 0 < len(session_id) <= 128:
        raise InvalidArgumentError(field, "must hold 1 to 128 characters", 128, len(session_id))
    return session_id


def _encode_prefill(prefill: m.Prefill) -> bytes:
    s = prefill.settings
    settings = worker_pb2.SessionSettings(
        sampling=encode_sampling(s.sampling),
        draw_rule=_DRAW_RULE_NUMBERS[s.draw_rule],
        seed=s.seed,
        prompt_token_count=s.prompt_token_count,
        logprob_count=s.logprob_count,
        vocabulary_size=s.vocabulary_size,
        with_features=s.with_features,
    )
    return worker_pb2.PrefillRequest(
        session_id=prefill.session_id,
        token_ids=prefill.token_ids,
        next_step=prefill.next_step,
        settings=settings,
        features=_encode_features(prefill.features),
    ).SerializeToString()


def _decode_prefill(data: bytes) -> m.Prefill:
    message = parse(worker_pb2.PrefillRequest, data)
    s = message.settings
    if s.draw_rule not in _DRAW_RULES:
        raise InvalidArgumentError(
            "settings.draw_rule", "not set or unknown", "1 to 3", s.draw_rule
        )
    settings = m.SessionSettings(
        sampling=decode_sampling(s.sampling),
        draw_rule=_DRAW_RULES[s.draw_rule],
        seed=s.seed,
        prompt_token_count=s.prompt_token_count,
        vocabulary_size=s.vocabulary_size or 2**31 - 1,
        logprob_count=s.logprob_count if s.HasField("logprob_count") else None,
        with_features=s.with_features,
    )
    return m.Prefill(
        _session_id(message.session_id),
        tuple(message.token_ids),
        message.next_step,
        settings,
        _decode_features(message),
    )


def _encode_prefilled(prefilled: m.Prefilled) -> bytes:
    return worker_pb2.PrefillResponse(
        device_time=encode_seconds(prefilled.device_seconds),
        features=_encode_features(prefilled.features),
        model_sha256=prefilled.model_sha256,
        dtype=prefilled.dtype,
    ).SerializeToString()


def _decode_prefilled(data: bytes) -> m.Prefilled:
    message = parse(worker_pb2.PrefillResponse, data)
    seconds, features = decode_seconds(message.device_time), _decode_features(message)
    return m.Prefilled(seconds, features, message.model_sha256, message.dtype)


def _encode_grow(request: m.GrowTree) -> bytes:
    return draft_pb2.GrowTreeRequest(
        header=encode_header(request.header),
        root_token_id=request.root_token_id,
        parent_indices=request.topology.parents,
        features=_encode_features(request.features),
    ).SerializeToString()


def _decode_grow(data: bytes) -> m.GrowTree:
    message = parse(draft_pb2.GrowTreeRequest, data)
    return m.GrowTree(
        decode_header(message.header),
        message.root_token_id,
        decode_topology(message.parent_indices, "parent_indices"),
        _decode_features(message),
    )


def _encode_grown(grown: m.GrownTree) -> bytes:
    return draft_pb2.GrowTreeResponse(
        tree=encode_tree(grown.tree),
        distributions=[
            draft_pb2.DraftDistribution(
                token_ids=encode_array(d.token_ids), weights=encode_array(d.weights)
            )
            for d in grown.distributions
        ],
        device_time=encode_seconds(grown.device_seconds),
    ).SerializeToString()


def _decode_grown(data: bytes) -> m.GrownTree:
    message = parse(draft_pb2.GrowTreeResponse, data)
    distributions = tuple(
        m.DraftDistribution(
            decode_array(d.token_ids, "distributions.token_ids", "<u4"),
            decode_array(d.weights, "distributions.weights", "<f2"),
        )
        for d in message.distributions
    )
    return m.GrownTree(
        decode_tree(message.tree), distributions, decode_seconds(message.device_time)
    )


def _encode_verify(request: m.VerifyTree) -> bytes:
    return target_pb2.VerifyTreeRequest(
        header=encode_header(request.header),
        tree=encode_tree(request.tree),
        supports=[encode_array(support) for support in request.supports],
    ).SerializeToString()


def _decode_verify(data: bytes) -> m.VerifyTree:
    message = parse(target_pb2.VerifyTreeRequest, data)
    supports = tuple(decode_array(support, "supports", "<u4") for support in message.supports)
    if any(support.size == 0 for support in supports):
        raise InvalidArgumentError("supports", "a support must not be empty", 1, 0)
    return m.VerifyTree(decode_header(message.header), decode_tree(message.tree), supports)


def _encode_verdict(verdict: m.Verdict) -> bytes:
    return target_pb2.VerifyTreeResponse(
        token_ids=verdict.token_ids,
        distributions=[
            target_pb2.TargetDistribution(
                probabilities=encode_array(d.probs), tail_mass=d.tail_mass
            )
            for d in verdict.distributions
        ],
        logprobs=[
            target_pb2.NodeLogprobs(
                token_logprob=n.token_logprob,
                support_logprobs=encode_array(n.support_logprobs),
                top_token_ids=encode_array(n.top_token_ids),
                top_logprobs=encode_array(n.top_logprobs),
            )
            for n in verdict.logprobs
        ],
        features=_encode_features(verdict.features),
        device_time=encode_seconds(verdict.device_seconds),
        batch_size=verdict.batch_size,
    ).SerializeToString()


def _decode_verdict(data: bytes) -> m.Verdict:
    message = parse(target_pb2.VerifyTreeResponse, data)
    return m.Verdict(
        tuple(message.token_ids),
        tuple(
            m.TargetDistribution(
                decode_array(d.probabilities, "distributions.probabilities", "<f4"), d.tail_mass
            )
            for d in message.distributions
        ),
        tuple(
            m.NodeLogprobs(
                n.token_logprob,
                decode_array(n.support_logprobs, "logprobs.support_logprobs", "<f4"),
                decode_array(n.top_token_ids, "logprobs.top_token_ids", "<u4"),
                decode_array(n.top_logprobs, "logprobs.top_logprobs", "<f4"),
            )
            for n in message.logprobs
        ),
        _decode_features(message),
        decode_seconds(message.device_time),
        message.batch_size,
    )


def _encode_info(info: m.WorkerInfo) -> bytes:
    fields = {name: getattr(info, name) for name in m.WorkerInfo.__dataclass_fields__}
    pass_time = encode_seconds(fields.pop("pass_seconds"))
    return worker_pb2.GetInfoResponse(**fields, pass_time=pass_time).SerializeToString()


def _decode_info(data: bytes) -> m.WorkerInfo:
    message = parse(worker_pb2.GetInfoResponse, data)
    names = m.WorkerInfo.__dataclass_fields__.keys() - {"pass_seconds"}
    return m.WorkerInfo(
        **{name: getattr(message, name) for name in names},
        pass_seconds=decode_seconds(message.pass_time),
    )


def _encode_profile(spec: m.ProfileSpec) -> bytes:
    return worker_pb2.ProfileRequest(
        node_counts=spec.node_counts,
        batch_sizes=spec.batch_sizes,
        prefix_lengths=spec.prefix_lengths,
        repetition_count=spec.repetition_count,
    ).SerializeToString()


def _decode_profile(data: bytes) -> m.ProfileSpec:
    message = parse(worker_pb2.ProfileRequest, data)
    return m.ProfileSpec(
        tuple(message.node_counts),
        tuple(message.batch_sizes) or (1,),
        tuple(message.prefix_lengths) or (128,),
        message.repetition_count or 3,
    )


def _encode_times(times: list[m.ForwardTime]) -> bytes:
    return worker_pb2.ProfileResponse(
        forward_times=[
            worker_pb2.ForwardTime(
                node_count=t.node_count,
                batch_size=t.batch_size,
                prefix_length=t.prefix_length,
                duration=encode_seconds(t.seconds),
            )
            for t in times
        ]
    ).SerializeToString()


def _decode_times(data: bytes) -> list[m.ForwardTime]:
    message = parse(worker_pb2.ProfileResponse, data)
    return [
        m.ForwardTime(t.node_count, t.batch_size, t.prefix_length, decode_seconds(t.duration))
        for t in message.forward_times
    ]


GROW_TREE = Method(
    "sequoia.v1.DraftService", "GrowTree", _encode_grow, _decode_grow, _encode_grown, _decode_grown
)
VERIFY_TREE = Method(
    "sequoia.v1.TargetService",
    "VerifyTree",
    _encode_verify,
    _decode_verify,
    _encode_verdict,
    _decode_verdict,
)
PREFILL = Method(
    "sequoia.v1.WorkerService",
    "Prefill",
    _encode_prefill,
    _decode_prefill,
    _encode_prefilled,
    _decode_prefilled,
)
CLOSE_SESSION = Method(
    "sequoia.v1.WorkerService",
    "CloseSession",
    lambda session_id: worker_pb2.CloseSessionRequest(session_id=session_id).SerializeToString(),
    lambda data: _session_id(parse(worker_pb2.CloseSessionRequest, data).session_id),
    lambda _: worker_pb2.CloseSessionResponse().SerializeToString(),
    lambda data: nothing(worker_pb2.CloseSessionResponse, data),
    request_limit_bytes=SMALL_LIMIT_BYTES,
)
PROFILE = Method(
    "sequoia.v1.WorkerService",
    "Profile",
    _encode_profile,
    _decode_profile,
    _encode_times,
    _decode_times,
    request_limit_bytes=SMALL_LIMIT_BYTES,
)
GET_INFO = Method(
    "sequoia.v1.WorkerService",
    "GetInfo",
    lambda _: worker_pb2.GetInfoRequest().SerializeToString(),
    lambda data: nothing(worker_pb2.GetInfoRequest, data),
    _encode_info,
    _decode_info,
    request_limit_bytes=SMALL_LIMIT_BYTES,
)
