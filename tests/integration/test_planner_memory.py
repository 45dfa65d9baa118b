"""What a planner knows outlives it: measurements of the same workers, and the plan that rests on them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import redis
from structlog.testing import capture_logs

from planner import service as planner_service
from planner.scope import Scope
from planner.service import PlannerService
from planner.settings import PlannerSettings
from sequoia import embedded_valkey
from sequoia.embedded_valkey import EmbeddedValkey
from sequoia.measurement_store import workers_name
from sequoia.messages import WorkerInfo
from sequoia.plan_store import PLAN_KEY, PlanStore
from sequoia.plans import AcceptanceCounts, Plan, PlannedTree, pair_name
from sequoia.rpc.channel import RpcChannel
from sequoia.rpc.planner_codec import GET_REPORT, REPLAN
from sequoia.rpc.server import RpcServer
from tests.stack import HOST
from tests.unit.test_profiler import INFO, FakeWorker, served

SECONDS = 30.0


class Worker(FakeWorker):
    """A fake that begins anew, under its old address, when it is told to."""

    def __init__(self, name: str, pass_seconds: float) -> None:
        super().__init__(lambda batch, nodes: pass_seconds * (1 + 0.01 * batch * nodes))
        self.info = replace(INFO, model=name, instance_id=f"{name}-1")

    async def get_info(self, _request: None, _: Any) -> WorkerInfo:
        return self.info

    def begin_anew(self) -> None:
        """Another instance."""
        self.info = replace(self.info, instance_id=f"{self.info.instance_id}+")


@dataclass
class System:
    """Two workers, and a Valkey."""

    draft: Worker
    target: Worker
    addresses: tuple[str, str]
    valkey: EmbeddedValkey
    key: str = field(init=False)

    def __post_init__(self) -> None:
        self.key = f"sequoia:measurements:{workers_name(self.draft.info, self.target.info)}"

    @property
    def profile_count(self) -> int:
        """Passes that were asked for so far."""
        return len(self.draft.asked) + len(self.target.asked)

    def by_hand(self) -> redis.Redis:
        """Somebody who reads and writes."""
        return redis.Redis.from_url(self.valkey.url)


@pytest.fixture
def valkey(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedValkey]:
    """A server that comes back on its port when it is started again."""
    with EmbeddedValkey() as server:
        monkeypatch.setattr(embedded_valkey, "_free_port", lambda: server.port)
        yield server


@pytest.fixture
async def system(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[System]:
    """Workers of which passes alone are measured, for one and two streams."""
    scope = Scope(8, 4, (1, 2), times_steps=False)
    monkeypatch.setattr(planner_service, "scope_for", lambda *_: scope)
    draft, target = Worker("draft", 0.001), Worker("target", 0.03)
    async with served(draft) as at_draft, served(target) as at_target:
        addresses = at_target.channel.address, at_draft.channel.address
        yield System(draft, target, addresses, valkey)


@dataclass
class RunningPlanner:
    """A planner, and what it logs."""

    service: PlannerService
    channel: RpcChannel
    logs: Sequence[MutableMapping[str, Any]]

    @property
    def plan(self) -> Plan:
        assert self.service.plan
        return self.service.plan

    @property
    def causes(self) -> list[str]:
        """Of the plans that it published."""
        return [entry["cause"] for entry in self.logs if entry["event"] == "plan published"]

    def count(self, event: str) -> int:
        """How often something was logged."""
        return sum(entry["event"] == event for entry in self.logs)


@asynccontextmanager
async def planner(system: System) -> AsyncIterator[RunningPlanner]:
    """One from its start, with a plan and its measurements stored, until it is gone."""
    server = RpcServer()
    target, draft = system.addresses
    settings = PlannerSettings([target], [draft], system.valkey.url, replan_seconds=0.05)
    with capture_logs() as logs:
        service = PlannerService(server, settings)
        channel = RpcChannel(f"{HOST}:{await server.start(HOST, 0)}")
        try:
            async with asyncio.timeout(SECONDS):
                await service.get_ready()
            await looked(service)
            yield RunningPlanner(service, channel, logs)
        finally:
            await channel.close()
            await service.stop()
            await server.stop()


async def looked(service: PlannerService, count: int = 2) -> None:
    """Wait until it has looked so many times more."""

    def looks() -> float:
        samples = [s for metric in service._metrics.looks.collect() for s in metric.samples]
        return sum(s.value for s in samples if s.labels.get("outcome") == "looked")

    before = looks()
    async with asyncio.timeout(SECONDS):
        while looks() < before + count:  # noqa: ASYNC110 any condition
            await asyncio.sleep(0.01)


async def test_the_next_planner_goes_on_without_measuring(system: System) -> None:
    """On the same workers it asks for no pass, and the plan that stands stays in force."""
    async with planner(system) as first:
        assert first.causes == ["first plan"]
    measured = system.profile_count
    assert measured > 0
    async with planner(system) as second:
        assert second.plan == first.plan
        report = await second.channel.call(GET_REPORT, None, timeout=SECONDS)
        assert second.causes == []
        assert second.count("plan taken over") == 1
    assert report.plan == first.plan
    assert system.profile_count == measured


async def test_the_next_plan_is_of_the_next_version(system: System) -> None:
    """A planner that has taken a plan over publishes as the one before would have."""
    async with planner(system) as first:
        pass
    async with planner(system) as second:
        with system.by_hand() as client:
            client.delete(PLAN_KEY)
        await looked(second.service)
        assert second.causes == ["plan lost"]
        assert second.plan.version == first.plan.version + 1
        assert second.plan.trees == first.plan.trees


async def test_counts_of_earlier_times_do_not_change_a_plan_that_is_taken_over(
    system: System,
) -> None:
    """They would change a first plan, for they count traffic of all times alike."""
    store = PlanStore(system.valkey.url)
    async with planner(system) as first:
        pass
    rest = (0,) * 63
    counts = AcceptanceCounts((5000, *rest), (50, *rest))
    await store.add_counts(pair_name(system.draft.info, system.target.info), {"greedy": counts})
    await store.close()
    async with planner(system) as second:
        assert second.plan == first.plan
    with system.by_hand() as client:
        client.delete(PLAN_KEY)
    async with planner(system) as third:
        assert third.causes == ["first plan"]
        assert third.plan.trees[0].parents != first.plan.trees[0].parents


async def test_a_plan_that_does_not_fit_is_replaced(system: System) -> None:
    """Measurements are recalled all the same; the plan is made anew of them."""
    async with planner(system) as first:
        pass
    measured = system.profile_count
    with system.by_hand() as client:
        client.set(PLAN_KEY, Plan(9, 1.0, (PlannedTree("greedy", 1, (-1,), 1, 0, 0),)).to_json())
    async with planner(system) as second:
        assert second.causes == ["first plan"]
        assert second.plan.trees == first.plan.trees
    assert system.profile_count == measured


@pytest.mark.parametrize("role", ["draft", "target"])
async def test_a_worker_that_began_anew_is_measured(system: System, role: str) -> None:
    """By the next planner, and by the one that runs; the workers before are known as long as they return."""
    async with planner(system):
        pass
    before = system.draft.info, system.target.info
    worker = system.draft if role == "draft" else system.target
    measured = system.profile_count
    worker.begin_anew()
    async with planner(system) as second:
        assert second.causes == ["first plan"]
        assert system.profile_count == 2 * measured
        worker.begin_anew()
        await looked(second.service)
        assert second.causes == ["first plan", "measured anew"]
        assert system.profile_count == 3 * measured
        before_that = second.plan
        system.draft.info, system.target.info = before
        await looked(second.service)
        assert second.causes[2:] == ["recalled"]
        assert second.plan.trees == before_that.trees
        assert system.profile_count == 3 * measured


async def test_another_scope_is_measured(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other limits of the operator's need other times, which are then the ones that are stored."""
    async with planner(system):
        pass
    scope = Scope(4, 3, (1,), times_steps=False)
    monkeypatch.setattr(planner_service, "scope_for", lambda *_: scope)
    measured = system.profile_count
    for _ in range(2):
        async with planner(system) as other:
            assert {tree.batch_size for tree in other.plan.trees} == {1}
            assert other.count("measurements refused") == 0
    assert measured < system.profile_count < 2 * measured


@pytest.mark.parametrize(
    "garbage", [b"x", b"{}", b" " * 70_000, None], ids=["text", "object", "long", "list"]
)
async def test_garbage_is_measured_over(system: System, garbage: bytes | None) -> None:
    """It is refused once in the log, and the next planner finds what was measured."""
    with system.by_hand() as client:
        if garbage is None:
            client.rpush(system.key, "a", "b")
        else:
            client.set(system.key, garbage)
    async with planner(system) as first:
        assert first.count("measurements refused") == 1
    measured = system.profile_count
    assert measured > 0
    async with planner(system) as second:
        assert second.count("measurements refused") == 0
    assert system.profile_count == measured


async def test_replan_measures_and_stores_what_it_finds(system: System) -> None:
    """An operator's call is the way to measure workers that are known."""
    async with planner(system) as first:
        measured = system.profile_count
        with system.by_hand() as client:
            before = client.get(system.key)
            system.target.seconds = lambda batch, nodes: 0.05 * (1 + 0.01 * batch * nodes)
            await first.channel.call(REPLAN, None, timeout=SECONDS)
            assert system.profile_count == 2 * measured
            await looked(first.service)
            assert client.get(system.key) != before
    async with planner(system) as second:
        assert second.plan == first.plan
    assert system.profile_count == 2 * measured


async def test_a_redis_that_lost_everything_is_told_again(
    system: System, valkey: EmbeddedValkey
) -> None:
    """Nothing changes for the planner that runs, and the one after it finds what it needs."""
    async with planner(system) as first:
        measured = system.profile_count
        valkey.stop()
        valkey.start()
        await looked(first.service)
        with system.by_hand() as client:
            assert client.exists(system.key)
        assert first.causes == ["first plan", "plan lost"]
    async with planner(system) as second:
        assert second.plan == first.plan
    assert system.profile_count == measured
