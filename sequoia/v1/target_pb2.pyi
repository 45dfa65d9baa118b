import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from sequoia.v1 import array_pb2 as _array_pb2
from sequoia.v1 import worker_pb2 as _worker_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class VerifyTreeRequest(_message.Message):
    __slots__ = ("header", "tree", "supports")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    TREE_FIELD_NUMBER: _ClassVar[int]
    SUPPORTS_FIELD_NUMBER: _ClassVar[int]
    header: _worker_pb2.StepHeader
    tree: _worker_pb2.Tree
    supports: _containers.RepeatedCompositeFieldContainer[_array_pb2.Array]
    def __init__(self, header: _Optional[_Union[_worker_pb2.StepHeader, _Mapping]] = ..., tree: _Optional[_Union[_worker_pb2.Tree, _Mapping]] = ..., supports: _Optional[_Iterable[_Union[_array_pb2.Array, _Mapping]]] = ...) -> None: ...

class VerifyTreeResponse(_message.Message):
    __slots__ = ("token_ids", "distributions", "logprobs", "device_time", "batch_size", "features")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    DISTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_TIME_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    distributions: _containers.RepeatedCompositeFieldContainer[TargetDistribution]
    logprobs: _containers.RepeatedCompositeFieldContainer[NodeLogprobs]
    device_time: _duration_pb2.Duration
    batch_size: int
    features: _array_pb2.Array
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., distributions: _Optional[_Iterable[_Union[TargetDistribution, _Mapping]]] = ..., logprobs: _Optional[_Iterable[_Union[NodeLogprobs, _Mapping]]] = ..., device_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., batch_size: _Optional[int] = ..., features: _Optional[_Union[_array_pb2.Array, _Mapping]] = ...) -> None: ...

class TargetDistribution(_message.Message):
    __slots__ = ("probabilities", "tail_mass")
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    TAIL_MASS_FIELD_NUMBER: _ClassVar[int]
    probabilities: _array_pb2.Array
    tail_mass: float
    def __init__(self, probabilities: _Optional[_Union[_array_pb2.Array, _Mapping]] = ..., tail_mass: _Optional[float] = ...) -> None: ...

class NodeLogprobs(_message.Message):
    __slots__ = ("token_logprob", "support_logprobs", "top_token_ids", "top_logprobs")
    TOKEN_LOGPROB_FIELD_NUMBER: _ClassVar[int]
    SUPPORT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    token_logprob: float
    support_logprobs: _array_pb2.Array
    top_token_ids: _array_pb2.Array
    top_logprobs: _array_pb2.Array
    def __init__(self, token_logprob: _Optional[float] = ..., support_logprobs: _Optional[_Union[_array_pb2.Array, _Mapping]] = ..., top_token_ids: _Optional[_Union[_array_pb2.Array, _Mapping]] = ..., top_logprobs: _Optional[_Union[_array_pb2.Array, _Mapping]] = ...) -> None: ...
