import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from sequoia.v1 import array_pb2 as _array_pb2
from sequoia.v1 import sampling_pb2 as _sampling_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DrawRule(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DRAW_RULE_UNSPECIFIED: _ClassVar[DrawRule]
    DRAW_RULE_GREEDY: _ClassVar[DrawRule]
    DRAW_RULE_WITHOUT_REPLACEMENT: _ClassVar[DrawRule]
    DRAW_RULE_COUPLED: _ClassVar[DrawRule]
DRAW_RULE_UNSPECIFIED: DrawRule
DRAW_RULE_GREEDY: DrawRule
DRAW_RULE_WITHOUT_REPLACEMENT: DrawRule
DRAW_RULE_COUPLED: DrawRule

class Tree(_message.Message):
    __slots__ = ("token_ids", "parent_indices")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PARENT_INDICES_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    parent_indices: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., parent_indices: _Optional[_Iterable[int]] = ...) -> None: ...

class SessionSettings(_message.Message):
    __slots__ = ("sampling", "draw_rule", "seed", "prompt_token_count", "logprob_count", "vocabulary_size", "with_features")
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    DRAW_RULE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_COUNT_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_SIZE_FIELD_NUMBER: _ClassVar[int]
    WITH_FEATURES_FIELD_NUMBER: _ClassVar[int]
    sampling: _sampling_pb2.SamplingSettings
    draw_rule: DrawRule
    seed: int
    prompt_token_count: int
    logprob_count: int
    vocabulary_size: int
    with_features: bool
    def __init__(self, sampling: _Optional[_Union[_sampling_pb2.SamplingSettings, _Mapping]] = ..., draw_rule: _Optional[_Union[DrawRule, str]] = ..., seed: _Optional[int] = ..., prompt_token_count: _Optional[int] = ..., logprob_count: _Optional[int] = ..., vocabulary_size: _Optional[int] = ..., with_features: _Optional[bool] = ...) -> None: ...

class PrefillRequest(_message.Message):
    __slots__ = ("session_id", "token_ids", "next_step", "settings", "features")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEP_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    next_step: int
    settings: SessionSettings
    features: _array_pb2.Array
    def __init__(self, session_id: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., next_step: _Optional[int] = ..., settings: _Optional[_Union[SessionSettings, _Mapping]] = ..., features: _Optional[_Union[_array_pb2.Array, _Mapping]] = ...) -> None: ...

class PrefillResponse(_message.Message):
    __slots__ = ("device_time", "features", "model_sha256", "dtype")
    DEVICE_TIME_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    device_time: _duration_pb2.Duration
    features: _array_pb2.Array
    model_sha256: str
    dtype: str
    def __init__(self, device_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., features: _Optional[_Union[_array_pb2.Array, _Mapping]] = ..., model_sha256: _Optional[str] = ..., dtype: _Optional[str] = ...) -> None: ...

class StepHeader(_message.Message):
    __slots__ = ("session_id", "step", "base_length", "accepted_node_indices")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    BASE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_NODE_INDICES_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    step: int
    base_length: int
    accepted_node_indices: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, session_id: _Optional[str] = ..., step: _Optional[int] = ..., base_length: _Optional[int] = ..., accepted_node_indices: _Optional[_Iterable[int]] = ...) -> None: ...

class CloseSessionRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class CloseSessionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetInfoResponse(_message.Message):
    __slots__ = ("model", "tokenizer_sha256", "vocabulary_size", "context_length", "dtype", "device", "session_limit", "kv_cache_limit_bytes", "session_count", "kv_cache_bytes", "node_limit", "instance_id", "feature_size", "kv_bytes_per_token", "placement", "pass_time", "model_sha256", "active_session_count")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_SHA256_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_SIZE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    SESSION_LIMIT_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    SESSION_COUNT_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_BYTES_FIELD_NUMBER: _ClassVar[int]
    NODE_LIMIT_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    FEATURE_SIZE_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    PASS_TIME_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_SESSION_COUNT_FIELD_NUMBER: _ClassVar[int]
    model: str
    tokenizer_sha256: str
    vocabulary_size: int
    context_length: int
    dtype: str
    device: str
    session_limit: int
    kv_cache_limit_bytes: int
    session_count: int
    kv_cache_bytes: int
    node_limit: int
    instance_id: str
    feature_size: int
    kv_bytes_per_token: int
    placement: str
    pass_time: _duration_pb2.Duration
    model_sha256: str
    active_session_count: int
    def __init__(self, model: _Optional[str] = ..., tokenizer_sha256: _Optional[str] = ..., vocabulary_size: _Optional[int] = ..., context_length: _Optional[int] = ..., dtype: _Optional[str] = ..., device: _Optional[str] = ..., session_limit: _Optional[int] = ..., kv_cache_limit_bytes: _Optional[int] = ..., session_count: _Optional[int] = ..., kv_cache_bytes: _Optional[int] = ..., node_limit: _Optional[int] = ..., instance_id: _Optional[str] = ..., feature_size: _Optional[int] = ..., kv_bytes_per_token: _Optional[int] = ..., placement: _Optional[str] = ..., pass_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., model_sha256: _Optional[str] = ..., active_session_count: _Optional[int] = ...) -> None: ...

class ProfileRequest(_message.Message):
    __slots__ = ("node_counts", "batch_sizes", "prefix_lengths", "repetition_count")
    NODE_COUNTS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZES_FIELD_NUMBER: _ClassVar[int]
    PREFIX_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    REPETITION_COUNT_FIELD_NUMBER: _ClassVar[int]
    node_counts: _containers.RepeatedScalarFieldContainer[int]
    batch_sizes: _containers.RepeatedScalarFieldContainer[int]
    prefix_lengths: _containers.RepeatedScalarFieldContainer[int]
    repetition_count: int
    def __init__(self, node_counts: _Optional[_Iterable[int]] = ..., batch_sizes: _Optional[_Iterable[int]] = ..., prefix_lengths: _Optional[_Iterable[int]] = ..., repetition_count: _Optional[int] = ...) -> None: ...

class ProfileResponse(_message.Message):
    __slots__ = ("forward_times",)
    FORWARD_TIMES_FIELD_NUMBER: _ClassVar[int]
    forward_times: _containers.RepeatedCompositeFieldContainer[ForwardTime]
    def __init__(self, forward_times: _Optional[_Iterable[_Union[ForwardTime, _Mapping]]] = ...) -> None: ...

class ForwardTime(_message.Message):
    __slots__ = ("node_count", "batch_size", "prefix_length", "duration")
    NODE_COUNT_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    PREFIX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    DURATION_FIELD_NUMBER: _ClassVar[int]
    node_count: int
    batch_size: int
    prefix_length: int
    duration: _duration_pb2.Duration
    def __init__(self, node_count: _Optional[int] = ..., batch_size: _Optional[int] = ..., prefix_length: _Optional[int] = ..., duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...
