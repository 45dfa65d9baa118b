import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetPlanRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetPlanResponse(_message.Message):
    __slots__ = ("plan",)
    PLAN_FIELD_NUMBER: _ClassVar[int]
    plan: Plan
    def __init__(self, plan: _Optional[_Union[Plan, _Mapping]] = ...) -> None: ...

class ReplanRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReplanResponse(_message.Message):
    __slots__ = ("plan",)
    PLAN_FIELD_NUMBER: _ClassVar[int]
    plan: Plan
    def __init__(self, plan: _Optional[_Union[Plan, _Mapping]] = ...) -> None: ...

class Plan(_message.Message):
    __slots__ = ("version", "create_time", "trees")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    TREES_FIELD_NUMBER: _ClassVar[int]
    version: int
    create_time: _timestamp_pb2.Timestamp
    trees: _containers.RepeatedCompositeFieldContainer[PlannedTree]
    def __init__(self, version: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., trees: _Optional[_Iterable[_Union[PlannedTree, _Mapping]]] = ...) -> None: ...

class PlannedTree(_message.Message):
    __slots__ = ("request_class", "batch_size", "parent_indices", "expected_tokens_per_step", "predicted_seconds_per_token", "predicted_seconds_per_token_without_speculation")
    REQUEST_CLASS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    PARENT_INDICES_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_TOKENS_PER_STEP_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_SECONDS_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_SECONDS_PER_TOKEN_WITHOUT_SPECULATION_FIELD_NUMBER: _ClassVar[int]
    request_class: str
    batch_size: int
    parent_indices: _containers.RepeatedScalarFieldContainer[int]
    expected_tokens_per_step: float
    predicted_seconds_per_token: float
    predicted_seconds_per_token_without_speculation: float
    def __init__(self, request_class: _Optional[str] = ..., batch_size: _Optional[int] = ..., parent_indices: _Optional[_Iterable[int]] = ..., expected_tokens_per_step: _Optional[float] = ..., predicted_seconds_per_token: _Optional[float] = ..., predicted_seconds_per_token_without_speculation: _Optional[float] = ...) -> None: ...
