"""Inputs that only have to be read: messages, plans, files of clients."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from coordinator.clients import ClientsError, parse_clients
from sequoia.errors import SequoiaError
from sequoia.plans import Plan, PlanError
from tests.fuzz.inputs import client_files, messages, plans, rpcs
from tests.fuzz.tally import Tally


def read_messages(count: int, seed: int) -> Tally:
    """Requests of every RPC as a server reads them, replies as a caller does."""
    tally = Tally("messages")
    generator = random.Random(seed)
    others = [data for rpc in rpcs() for data in (*rpc.requests, *rpc.replies)]
    readers: list[tuple[str, Callable[[bytes], object], Iterator[bytes]]] = []
    for rpc in rpcs():
        method = rpc.method
        requests = messages(rpc.request_type, rpc.requests, others, generator)
        replies = messages(rpc.reply_type, rpc.replies, others, generator)
        readers.append((f"{method.name} request", method.decode_request, requests))
        readers.append((f"{method.name} reply", method.decode_reply, replies))
    for number in range(count):
        label, read, inputs = readers[number % len(readers)]
        read_one(tally, label, read, next(inputs), SequoiaError)
    return tally


def read_plans(count: int, seed: int) -> Tally:
    """Plans as they may lie in Redis; one that is taken is as valid as any."""
    tally = Tally("plans")
    inputs = plans(random.Random(seed))
    for _ in range(count):
        read_one(tally, "plan", _read_plan, next(inputs), PlanError)
    return tally


def read_client_files(count: int, seed: int) -> Tally:
    """Files of clients."""
    tally = Tally("clients")
    inputs = client_files(random.Random(seed))
    for _ in range(count):
        read_one(tally, "file", parse_clients, next(inputs), ClientsError)
    return tally


def _read_plan(data: bytes) -> None:
    plan = Plan.from_json(data)
    if Plan.from_json(plan.to_json()) != plan:
        raise AssertionError("a plan does not read back")
    for tree in plan.trees:
        plan.tree_for(tree.request_class, 1)


def read_one(
    tally: Tally,
    label: str,
    read: Callable[[bytes], object],
    data: bytes,
    refusal: type[Exception],
) -> None:
    """Read one input; anything but a refusal breaks something."""
    with tally.on_processor(label, data):
        try:
            read(data)
        except refusal as error:
            reason = getattr(error, "reason", "refused")
            tally.outcomes[str(reason)] += 1
        except Exception as error:
            tally.outcomes["broken"] += 1
            tally.fail(label, data, f"{type(error).__name__}: {error}")
        else:
            tally.outcomes["taken"] += 1
