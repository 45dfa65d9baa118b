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

class GetReportRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetReportResponse(_message.Message):
    __slots__ = ("plan", "estimates", "measurements", "time_ratios")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    ESTIMATES_FIELD_NUMBER: _ClassVar[int]
    MEASUREMENTS_FIELD_NUMBER: _ClassVar[int]
    TIME_RATIOS_FIELD_NUMBER: _ClassVar[int]
    plan: Plan
    estimates: _containers.RepeatedCompositeFieldContainer[AcceptanceEstimate]
    measurements: _containers.RepeatedCompositeFieldContainer[TreeMeasurement]
    time_ratios: _containers.RepeatedCompositeFieldContainer[TimeRatio]
    def __init__(self, plan: _Optional[_Union[Plan, _Mapping]] = ..., estimates: _Optional[_Iterable[_Union[AcceptanceEstimate, _Mapping]]] = ..., measurements: _Optional[_Iterable[_Union[TreeMeasurement, _Mapping]]] = ..., time_ratios: _Optional[_Iterable[_Union[TimeRatio, _Mapping]]] = ...) -> None: ...

class AcceptanceEstimate(_message.Message):
    __slots__ = ("request_class", "node_count", "shift_count", "dispersion", "acceptance", "deviations")
    REQUEST_CLASS_FIELD_NUMBER: _ClassVar[int]
    NODE_COUNT_FIELD_NUMBER: _ClassVar[int]
    SHIFT_COUNT_FIELD_NUMBER: _ClassVar[int]
    DISPERSION_FIELD_NUMBER: _ClassVar[int]
    ACCEPTANCE_FIELD_NUMBER: _ClassVar[int]
    DEVIATIONS_FIELD_NUMBER: _ClassVar[int]
    request_class: str
    node_count: float
    shift_count: int
    dispersion: float
    acceptance: _containers.RepeatedScalarFieldContainer[float]
    deviations: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, request_class: _Optional[str] = ..., node_count: _Optional[float] = ..., shift_count: _Optional[int] = ..., dispersion: _Optional[float] = ..., acceptance: _Optional[_Iterable[float]] = ..., deviations: _Optional[_Iterable[float]] = ...) -> None: ...

class TreeMeasurement(_message.Message):
    __slots__ = ("step_count", "other_step_count", "tokens_per_step", "seconds_per_token", "sessions_per_pass", "prefix_length", "cause")
    STEP_COUNT_FIELD_NUMBER: _ClassVar[int]
    OTHER_STEP_COUNT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_STEP_FIELD_NUMBER: _ClassVar[int]
    SECONDS_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_PER_PASS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    step_count: int
    other_step_count: int
    tokens_per_step: float
    seconds_per_token: float
    sessions_per_pass: float
    prefix_length: float
    cause: str
    def __init__(self, step_count: _Optional[int] = ..., other_step_count: _Optional[int] = ..., tokens_per_step: _Optional[float] = ..., seconds_per_token: _Optional[float] = ..., sessions_per_pass: _Optional[float] = ..., prefix_length: _Optional[float] = ..., cause: _Optional[str] = ...) -> None: ...

class TimeRatio(_message.Message):
    __slots__ = ("part", "batch_size", "has_tree", "ratio", "deviation")
    PART_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    HAS_TREE_FIELD_NUMBER: _ClassVar[int]
    RATIO_FIELD_NUMBER: _ClassVar[int]
    DEVIATION_FIELD_NUMBER: _ClassVar[int]
    part: str
    batch_size: int
    has_tree: bool
    ratio: float
    deviation: float
    def __init__(self, part: _Optional[str] = ..., batch_size: _Optional[int] = ..., has_tree: _Optional[bool] = ..., ratio: _Optional[float] = ..., deviation: _Optional[float] = ...) -> None: ...
