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

class GrowTreeRequest(_message.Message):
    __slots__ = ("header", "root_token_id", "parent_indices", "features")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    ROOT_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    PARENT_INDICES_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    header: _worker_pb2.StepHeader
    root_token_id: int
    parent_indices: _containers.RepeatedScalarFieldContainer[int]
    features: _array_pb2.Array
    def __init__(self, header: _Optional[_Union[_worker_pb2.StepHeader, _Mapping]] = ..., root_token_id: _Optional[int] = ..., parent_indices: _Optional[_Iterable[int]] = ..., features: _Optional[_Union[_array_pb2.Array, _Mapping]] = ...) -> None: ...

class GrowTreeResponse(_message.Message):
    __slots__ = ("tree", "distributions", "device_time")
    TREE_FIELD_NUMBER: _ClassVar[int]
    DISTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_TIME_FIELD_NUMBER: _ClassVar[int]
    tree: _worker_pb2.Tree
    distributions: _containers.RepeatedCompositeFieldContainer[DraftDistribution]
    device_time: _duration_pb2.Duration
    def __init__(self, tree: _Optional[_Union[_worker_pb2.Tree, _Mapping]] = ..., distributions: _Optional[_Iterable[_Union[DraftDistribution, _Mapping]]] = ..., device_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class DraftDistribution(_message.Message):
    __slots__ = ("token_ids", "weights")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _array_pb2.Array
    weights: _array_pb2.Array
    def __init__(self, token_ids: _Optional[_Union[_array_pb2.Array, _Mapping]] = ..., weights: _Optional[_Union[_array_pb2.Array, _Mapping]] = ...) -> None: ...
