"""What is fuzzed: every RPC's request and reply, plans, and files of clients."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from sequoia.generation import ChatMessage, GenerationRequest
from sequoia.messages import (
    DraftDistribution,
    GrownTree,
    GrowTree,
    Prefill,
    ProfileSpec,
    SessionSettings,
    StepHeader,
    TargetDistribution,
    Verdict,
    VerifyTree,
)
from sequoia.planner_report import ClassReport, Report, TimeReport, TreeReport
from sequoia.plans import BUILT_IN_PLAN, Plan, PlannedTree
from sequoia.rpc import codec, generation_codec, planner_codec
from sequoia.rpc.codec import CLOSE_SESSION, GROW_TREE, PREFILL, PROFILE, VERIFY_TREE
from sequoia.rpc.generation_codec import GENERATE
from sequoia.rpc.method import Method
from sequoia.rpc.planner_codec import GET_PLAN, GET_REPORT, REPLAN
from sequoia.settings import DrawRule, SamplingSettings
from sequoia.tree import Topology, Tree
from sequoia.v1 import draft_pb2, generation_pb2, planner_pb2, target_pb2, worker_pb2
from tests.fuzz.mutation import alter, damaged

CODECS: tuple[ModuleType, ...] = (codec, generation_codec, planner_codec)
SERVICES = (draft_pb2, generation_pb2, planner_pb2, target_pb2, worker_pb2)
SETTINGS = SessionSettings(SamplingSettings(), DrawRule.WITHOUT_REPLACEMENT, 7, 3, 257)
GREEDY = SessionSettings(SamplingSettings(temperature=0.0), DrawRule.GREEDY, 0, 3, 257)
SHAPE = Topology((-1, 0, 0, 1))
SESSION = "s"
SUPPORT = np.array([8, 9, 10], dtype=np.uint32)
WEIGHTS = np.array([0.5, 0.2, 0.1], dtype=np.float16)
PLAN = Plan(
    3, 1_700_000_000.5, (*BUILT_IN_PLAN.trees[:3], PlannedTree("flat", 1, (-1, 0), 1, 1, 1))
)
CLIENTS = f"""[clients.alice]
token_sha256 = "{"a1" * 32}"
concurrency = 4
[clients.bob]
token_sha256 = "{"b2" * 32}"
tokens_per_minute = 600
prompt_tokens = 20
""".encode()

# Valid requests by method; a method that is not here begins with an empty one.
REQUESTS: dict[str, list[Any]] = {
    GENERATE.path: [
        GenerationRequest(text="hello", max_new_tokens=2, seed=5, logprob_count=2),
        GenerationRequest(
            chat=(ChatMessage("user", "hi"), ChatMessage("assistant", "yes")),
            sampling=SamplingSettings(0.7, 5, 0.9, 0.01, 1.1, 0.5, 0.5),
            max_new_tokens=2,
            stop_strings=("x", "yz"),
        ),
        GenerationRequest(
            token_ids=(5, 6, 7),
            sampling=SamplingSettings(temperature=0.0),
            max_new_tokens=2,
            stop_token_ids=(9,),
            echo_prompt_token_ids=True,
        ),
    ],
    PREFILL.path: [Prefill(SESSION, (5, 6, 7), 0, SETTINGS), Prefill("t", (5, 6, 7), 2, GREEDY)],
    CLOSE_SESSION.path: [SESSION],
    PROFILE.path: [ProfileSpec((1, 4), (1,), (16,), 1)],
    GROW_TREE.path: [
        GrowTree(StepHeader(SESSION, 0, 3), 7, SHAPE),
        GrowTree(StepHeader("t", 2, 3), 7, SHAPE),
        GrowTree(StepHeader(SESSION, 1, 5, (1,)), 9, SHAPE),
    ],
    VERIFY_TREE.path: [
        VerifyTree(StepHeader("t", 2, 3), Tree(SHAPE, (7, 8, 9, 10))),
        VerifyTree(StepHeader("t", 3, 5, (1,)), Tree(SHAPE, (7, 8, 9, 10))),
        VerifyTree(StepHeader(SESSION, 0, 3), Tree(SHAPE, (7, 8, 9, 10)), (SUPPORT, SUPPORT)),
    ],
}
REPORT = Report(
    PLAN,
    (ClassReport("greedy", 812.5, 1, 1.7, (0.5, 0.2), (0.02, 0.01)),),
    tuple(TreeReport(tree, 300, 20, 2.1, 0.02, 1.5, 120.0, "latency") for tree in PLAN.trees),
    (TimeReport("target", 1, True, 1.1, 0.05),),
)
REPLIES: dict[str, list[Any]] = {
    GET_PLAN.path: [PLAN],
    REPLAN.path: [PLAN],
    GET_REPORT.path: [REPORT],
    GROW_TREE.path: [
        GrownTree(Tree(SHAPE, (7, 8, 9, 10)), (DraftDistribution(SUPPORT, WEIGHTS),) * 2, 0.01)
    ],
    VERIFY_TREE.path: [
        Verdict((1, 2, 3, 4), (TargetDistribution(WEIGHTS.astype(np.float32), 0.2),) * 2)
    ],
}


@dataclass(frozen=True, slots=True)
class Rpc:
    """One method, with what its requests and replies are made of."""

    method: Method[Any, Any]
    request_type: type[Message]
    reply_type: type[Message]

    @property
    def requests(self) -> list[bytes]:
        """Valid requests."""
        values = REQUESTS.get(self.method.path)
        return [self.method.encode_request(value) for value in values] if values else [b""]

    @property
    def replies(self) -> list[bytes]:
        """Valid replies, or an empty one."""
        values = REPLIES.get(self.method.path)
        return [self.method.encode_reply(value) for value in values] if values else [b""]


def described_methods() -> dict[str, MethodDescriptor]:
    """Every RPC of the protos, by its path."""
    return {
        f"/{service.full_name}/{method.name}": method
        for module in SERVICES
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


def rpcs() -> list[Rpc]:
    """Every RPC that a codec knows, in order of its path."""
    known = {
        value.path: value
        for module in CODECS
        for value in vars(module).values()
        if isinstance(value, Method)
    }
    described = described_methods()
    return [
        Rpc(
            known[path],
            GetMessageClass(described[path].input_type),
            GetMessageClass(described[path].output_type),
        )
        for path in sorted(known)
    ]


def messages(
    kind: type[Message], samples: list[bytes], others: list[bytes], generator: random.Random
) -> Iterator[bytes]:
    """Messages without end: damaged bytes, fields at the edges of their types, and both."""
    while True:
        data = generator.choice(samples)
        manner = generator.randrange(5)
        if manner != 0:
            data = _altered(kind, data, generator)
        if manner in (0, 1):
            data = damaged(data, others, generator)
        yield data


def _altered(kind: type[Message], data: bytes, generator: random.Random) -> bytes:
    message = kind.FromString(data)
    if not message.DESCRIPTOR.fields:
        return data
    for _ in range(generator.randint(1, 3)):
        try:
            alter(message, generator)
        except (ValueError, DecodeError):  # an enum without such a number, a text that is none
            continue
    return message.SerializeToString()


def plans(generator: random.Random, sample: Plan = PLAN) -> Iterator[bytes]:
    """What may lie in Redis where a plan should."""
    text = sample.to_json().encode()
    values: tuple[Any, ...] = (
        None,
        True,
        -1,
        0,
        10**40,
        1.5,
        "",
        "x" * 99,
        [],
        {},
        [[]],
        float("nan"),
        float("inf"),
    )
    while True:
        if generator.random() < 0.5:
            yield damaged(text, [text, CLIENTS], generator)
            continue
        plan = json.loads(text)
        place: Any = generator.choice((plan, *plan["trees"]))
        name = generator.choice([*place, "other"])
        if generator.random() < 0.2:
            place.pop(name, None)
        else:
            place[name] = generator.choice(values)
        if generator.random() < 0.3:
            tree = generator.choice(json.loads(text)["trees"])
            tree["parents"] = [generator.randint(-1, 9) for _ in range(generator.randint(0, 30))]
            plan["trees"] = [tree]
        yield json.dumps(plan).encode()


def client_files(generator: random.Random) -> Iterator[bytes]:
    """What may stand in a file of clients."""
    while True:
        yield damaged(CLIENTS, [CLIENTS, PLAN.to_json().encode()], generator)
