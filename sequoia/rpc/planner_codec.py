"""Between the wire and the domain for the planner's own calls."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from sequoia.errors import MalformedMessageError
from sequoia.planner_report import ClassReport, Report, TimeReport, TreeReport
from sequoia.plans import Plan, PlanError, PlannedTree
from sequoia.rpc.codec import decode_seconds
from sequoia.rpc.method import SMALL_LIMIT_BYTES, Method, nothing, parse
from sequoia.v1 import planner_pb2

_PREDICTIONS = (
    "expected_tokens_per_step",
    "predicted_seconds_per_token",
    "predicted_seconds_per_token_without_speculation",
)

_MEASURED = (
    "step_count",
    "other_step_count",
    "tokens_per_step",
    "seconds_per_token",
    "sessions_per_pass",
    "prefix_length",
    "cause",
)
_TIMED = ("part", "batch_size", "has_tree", "ratio", "deviation")


def _encode_plan(plan: Plan) -> planner_pb2.Plan:
    created = Timestamp()
    created.FromNanoseconds(round(plan.created_at * 1e9))
    trees = [
        planner_pb2.PlannedTree(
            request_class=tree.request_class,
            batch_size=tree.batch_size,
            parent_indices=tree.parents,
            **{name: getattr(tree, name) for name in _PREDICTIONS},
        )
        for tree in plan.trees
    ]
    return planner_pb2.Plan(version=plan.version, create_time=created, trees=trees)


def _decode_plan(message: planner_pb2.Plan) -> Plan:
    try:
        trees = tuple(
            PlannedTree(
                tree.request_class,
                tree.batch_size,
                tuple(tree.parent_indices),
                **{name: getattr(tree, name) for name in _PREDICTIONS},
            )
            for tree in message.trees
        )
    except PlanError as error:
        raise MalformedMessageError(f"plan.trees.{error}", field="plan.trees") from error
    return Plan(message.version, decode_seconds(message.create_time), trees)


def _encode_report(report: Report) -> planner_pb2.GetReportResponse:
    return planner_pb2.GetReportResponse(
        plan=_encode_plan(report.plan),
        estimates=[
            planner_pb2.AcceptanceEstimate(
                request_class=one.request_class,
                node_count=one.node_count,
                shift_count=one.shift_count,
                dispersion=one.dispersion,
                acceptance=one.vector,
                deviations=one.deviations,
            )
            for one in report.classes
        ],
        measurements=[
            planner_pb2.TreeMeasurement(**{name: getattr(one, name) for name in _MEASURED})
            for one in report.trees
        ],
        time_ratios=[
            planner_pb2.TimeRatio(**{name: getattr(one, name) for name in _TIMED})
            for one in report.times
        ],
    )


def _decode_report(message: planner_pb2.GetReportResponse) -> Report:
    plan = _decode_plan(message.plan)
    if len(message.measurements) != len(plan.trees):
        count = len(message.measurements)
        raise MalformedMessageError(
            f"measurements: {count} for {len(plan.trees)} trees", field="measurements"
        )
    for index, one in enumerate(message.estimates):
        if len(one.acceptance) != len(one.deviations):
            raise MalformedMessageError(
                f"estimates[{index}].deviations: {len(one.deviations)} for "
                f"{len(one.acceptance)} probabilities",
                field="estimates.deviations",
            )
    return Report(
        plan,
        tuple(
            ClassReport(
                one.request_class,
                one.node_count,
                one.shift_count,
                one.dispersion,
                tuple(one.acceptance),
                tuple(one.deviations),
            )
            for one in message.estimates
        ),
        tuple(
            TreeReport(tree, *(getattr(one, name) for name in _MEASURED))
            for tree, one in zip(plan.trees, message.measurements, strict=True)
        ),
        tuple(TimeReport(*(getattr(one, name) for name in _TIMED)) for one in message.time_ratios),
    )


GET_PLAN = Method(
    "sequoia.v1.PlannerService",
    "GetPlan",
    lambda _: planner_pb2.GetPlanRequest().SerializeToString(),
    lambda data: nothing(planner_pb2.GetPlanRequest, data),
    lambda plan: planner_pb2.GetPlanResponse(plan=_encode_plan(plan)).SerializeToString(),
    lambda data: _decode_plan(parse(planner_pb2.GetPlanResponse, data).plan),
    request_limit_bytes=SMALL_LIMIT_BYTES,
)
REPLAN = Method(
    "sequoia.v1.PlannerService",
    "Replan",
    lambda _: planner_pb2.ReplanRequest().SerializeToString(),
    lambda data: nothing(planner_pb2.ReplanRequest, data),
    lambda plan: planner_pb2.ReplanResponse(plan=_encode_plan(plan)).SerializeToString(),
    lambda data: _decode_plan(parse(planner_pb2.ReplanResponse, data).plan),
    request_limit_bytes=SMALL_LIMIT_BYTES,
)
GET_REPORT = Method(
    "sequoia.v1.PlannerService",
    "GetReport",
    lambda _: planner_pb2.GetReportRequest().SerializeToString(),
    lambda data: nothing(planner_pb2.GetReportRequest, data),
    lambda report: _encode_report(report).SerializeToString(),
    lambda data: _decode_report(parse(planner_pb2.GetReportResponse, data)),
    request_limit_bytes=SMALL_LIMIT_BYTES,
)
