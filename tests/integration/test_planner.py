"""The planner with real workers, a real Valkey and a coordinator that follows its plans."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    MutableMapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs

from planner import service as planner_service
from planner.estimator import PRIOR
from planner.scope import Scope
from planner.service import PlannerService
from planner.settings import PlannerSettings
from sequoia import embedded_valkey
from sequoia.embedded_valkey import EmbeddedValkey
from sequoia.errors import Reason, SequoiaError
from sequoia.generation import GenerationRequest
from sequoia.plan_store import PlanStore
from sequoia.plans import REQUEST_CLASSES, Plan, PlannedTree
from sequoia.rpc.channel import RpcChannel
from sequoia.rpc.planner_codec import GET_PLAN, GET_REPORT, REPLAN
from sequoia.rpc.server import RpcServer
from sequoia.runtime.worker import WorkerLimits
from sequoia.settings import SamplingSettings
from tests.stack import HOST, DraftRole, Stack, TargetRole, running_stack
from tests.tiny import nudged, save_model, tiny_llama, word_tokenizer

WORDS = 12
LAYERS = 24
SECONDS = 60.0
GREEDY = SamplingSettings(temperature=0.0)

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A slow target and a draft that says nearly the same in a fraction of the time.

    All layers of the target but the first add nothing; the draft is the first, slightly disturbed.
    """
    folder = tmp_path_factory.mktemp("pair")
    target, draft = (tiny_llama(WORDS, seed=5, layers=layers) for layers in (LAYERS, 1))
    with torch.no_grad():
        for layer in target.model.layers[1:]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    draft.load_state_dict(target.state_dict(), strict=False)
    return (
        save_model(folder / "target", target, word_tokenizer(WORDS)),
        save_model(folder / "draft", nudged(draft, 0.02, seed=6), word_tokenizer(WORDS)),
    )


@pytest.fixture
def one_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees for requests that run alone, by the times of passes: where those pay, a tree is planned."""
    scope = Scope(8, 4, (1,), times_steps=False)
    monkeypatch.setattr(planner_service, "scope_for", lambda *_: scope)


@pytest.fixture
def valkey(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedValkey]:
    """A server that comes back on its port when it is started again."""
    with EmbeddedValkey() as server:
        monkeypatch.setattr(embedded_valkey, "_free_port", lambda: server.port)
        yield server


@dataclass
class RunningPlanner:
    """A planner and an operator's channel to it."""

    service: PlannerService
    channel: RpcChannel

    async def plan(self) -> Plan:
        return await self.channel.call(GET_PLAN, None, timeout=SECONDS)

    async def replan(self) -> Plan:
        return await self.channel.call(REPLAN, None, timeout=SECONDS)

    async def version_is_above(self, version: int) -> bool:
        return self.service.plan is not None and self.service.plan.version > version


@asynccontextmanager
async def running_planner(
    target: TargetRole, draft: DraftRole, redis_url: str
) -> AsyncIterator[RunningPlanner]:
    """Start a planner as its process does, with small limits and short intervals."""
    addresses = [f"{HOST}:{target.port}"], [f"{HOST}:{draft.port}"]
    server = RpcServer()
    settings = PlannerSettings(*addresses, redis_url, max_nodes=8, max_levels=4, replan_seconds=0.1)
    service = PlannerService(server, settings)
    channel = RpcChannel(f"{HOST}:{await server.start(HOST, 0)}")

    async def become_ready() -> None:
        await service.get_ready()
        await server.set_serving(True)

    getting_ready = asyncio.create_task(become_ready())
    try:
        yield RunningPlanner(service, channel)
    finally:
        getting_ready.cancel()
        await channel.close()
        await service.stop()
        await server.stop()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(SECONDS):
        while not await condition():  # noqa: ASYNC110 any condition
            await asyncio.sleep(0.02)


def request(tokens: int) -> GenerationRequest:
    """A greedy continuation of some length."""
    return GenerationRequest(
        token_ids=(3, 4, 5), sampling=GREEDY, max_new_tokens=tokens, ignore_end_of_text=True
    )


async def in_force(stack: Stack, version: int) -> None:
    """Wait until the coordinator's engine works by a plan, and takes the planner's sessions for gone."""
    engine = stack.coordinator.engine
    assert engine
    await stack.until(lambda: engine.plan.version >= version, SECONDS)
    workers = stack.coordinator.target.workers
    await stack.until(lambda: all(not one.foreign_count for one in workers), SECONDS)


async def test_a_plan_is_published_and_comes_into_force(
    pair: tuple[Path, Path], valkey: EmbeddedValkey
) -> None:
    """The planner measures, publishes, reports itself ready, and the coordinator uses its trees."""
    async with (
        running_stack(*pair, redis_url=valkey.url) as stack,
        running_planner(stack.target, stack.draft, valkey.url) as planner,
    ):
        await until(planner.channel.is_serving)
        plan = await planner.plan()
        assert {tree.request_class for tree in plan.trees} == set(REQUEST_CLASSES)
        assert {tree.batch_size for tree in plan.trees} == {1, 2, 4, 8, 16}
        alone = plan.tree_for("greedy", 1)
        assert alone
        assert alone.topology.node_count > 1
        assert (
            alone.predicted_seconds_per_token
            < alone.predicted_seconds_per_token_without_speculation
        )
        await in_force(stack, plan.version)
        usage = (await stack.generate(request(40))).completion.usage
        assert usage.plan_version >= plan.version
        assert usage.largest_node_count > 1


async def test_plans_are_swapped_between_the_steps_of_a_request(
    pair: tuple[Path, Path], valkey: EmbeddedValkey
) -> None:
    """A plan that arrives during a generation is used by it, and the text stays the same."""
    store = PlanStore(valkey.url)
    chain = (-1, 0, 1, 2, 3, 4, 5, 6, 7)
    async with running_stack(*pair, redis_url=valkey.url) as stack:
        engine = stack.coordinator.engine
        assert engine
        alone = await store.publish((PlannedTree("greedy", 1, (-1,), 1, 0, 0),))
        await in_force(stack, alone.version)
        expected = await stack.generate(request(300))
        assert expected.completion.usage.largest_node_count == 1
        swapped = asyncio.create_task(stack.generate(request(300)))
        await stack.until(lambda: engine.active_count == 1)
        plan = await store.publish((PlannedTree("greedy", 1, chain, 9, 0, 0),))
        await in_force(stack, plan.version)
        assert not swapped.done()
        generated = await swapped
    usage = generated.completion.usage
    assert generated.token_ids == expected.token_ids
    assert usage.plan_version == plan.version
    assert usage.largest_node_count == len(chain)
    assert usage.tokens_per_step > 1.0
    await store.close()


@pytest.mark.usefixtures("one_load")
async def test_replanning_gives_a_higher_version(
    pair: tuple[Path, Path], valkey: EmbeddedValkey
) -> None:
    """An operator's call measures anew, and the answer is the plan that is then in force."""
    async with (
        running_stack(*pair, redis_url=valkey.url) as stack,
        running_planner(stack.target, stack.draft, valkey.url) as planner,
    ):
        await until(planner.channel.is_serving)
        first = await planner.plan()
        with capture_logs() as logs:
            second = await planner.replan()
        assert second.version > first.version
        assert second.created_at > first.created_at
        assert await planner.plan() == second
        await in_force(stack, second.version)
    published = [entry for entry in logs if entry["event"] == "plan published"]
    assert [entry["version"] for entry in published] == [second.version]
    assert any(entry["event"] == "measured" for entry in logs)


@pytest.mark.usefixtures("one_load")
async def test_what_was_accepted_changes_the_estimates_and_with_them_the_plan(
    pair: tuple[Path, Path], valkey: EmbeddedValkey
) -> None:
    """A draft that agrees more than assumed raises the estimate of its class, and no other.

    Whether another tree then is faster depends on the times that this machine shows; the plan that
    follows expects more of its tree in any case.
    """
    async with (
        running_stack(*pair, redis_url=valkey.url) as stack,
        running_planner(stack.target, stack.draft, valkey.url) as planner,
    ):
        await until(planner.channel.is_serving)
        before = await planner.plan()
        await in_force(stack, before.version)
        with capture_logs() as logs:
            async with asyncio.timeout(SECONDS):
                while not await planner.version_is_above(before.version):
                    await stack.generate(request(300))
        report = await planner.channel.call(GET_REPORT, None, timeout=SECONDS)
    estimates = {one.request_class: one for one in report.classes}
    assert estimates["greedy"].vector[0] > PRIOR[0] + 0.05
    assert estimates["flat"].node_count == 0
    assert estimates["flat"].vector[: len(PRIOR)] == pytest.approx(PRIOR)
    causes = {entry["cause"] for entry in logs if entry["event"] == "plan published"}
    assert causes
    assert causes <= {"faster trees", "predictions renewed"}
    old, new = (plan.tree_for("greedy", 1) for plan in (before, report.plan))
    assert old
    assert new
    assert new.expected_tokens_per_step > old.expected_tokens_per_step


@pytest.mark.usefixtures("one_load")
async def test_a_planner_waits_for_workers_and_measures_restarted_ones_anew(
    pair: tuple[Path, Path], valkey: EmbeddedValkey
) -> None:
    """Without workers there is no plan and a clear refusal; another instance gives another plan."""
    torch.set_num_threads(1)
    target = TargetRole(pair[0], WorkerLimits())
    draft = DraftRole(pair[1], pair[0], WorkerLimits())
    await target.start()
    await draft.start()
    await target.kill()
    async with running_planner(target, draft, valkey.url) as planner:
        for method, reason in ((GET_PLAN, Reason.NOT_READY), (REPLAN, Reason.WORKER_UNAVAILABLE)):
            with pytest.raises(SequoiaError) as refused:
                await planner.channel.call(method, None, timeout=SECONDS)
            assert refused.value.reason is reason
        assert not await planner.channel.is_serving()
        await target.start()
        await until(lambda: planner.version_is_above(0))
        with capture_logs() as logs:
            await target.kill()
            await target.start()
            await until(lambda: planner.version_is_above(1))
        assert await planner.channel.is_serving()
    causes = [entry["cause"] for entry in logs if entry["event"] == "plan published"]
    assert causes == ["measured anew"]
    await target.kill()
    await draft.kill()


@pytest.mark.usefixtures("one_load")
async def test_a_plan_that_is_not_the_planners_own_is_replaced(
    pair: tuple[Path, Path], valkey: EmbeddedValkey
) -> None:
    """Redis may come back from an old snapshot, or another may write there; steps follow one plan."""
    async with (
        running_stack(*pair) as stack,
        running_planner(stack.target, stack.draft, valkey.url) as planner,
    ):
        await until(planner.channel.is_serving)
        first = await planner.plan()
        store = PlanStore(valkey.url)
        with capture_logs() as logs:
            foreign = await store.publish((PlannedTree("greedy", 1, (-1,), 1, 0, 0),), after=50)
            await until(lambda: planner.version_is_above(foreign.version))
        await store.close()
        assert await _stored(valkey) == await planner.plan()
        assert (await planner.plan()).trees == first.trees
    causes = [entry["cause"] for entry in logs if entry["event"] == "plan published"]
    assert causes == ["plan overwritten"]


@pytest.mark.usefixtures("one_load")
async def test_a_planner_outlives_redis(pair: tuple[Path, Path], valkey: EmbeddedValkey) -> None:
    """Redis may be away at the start and lose everything later: when it is back, so is the plan."""
    valkey.stop()
    with capture_logs() as logs:
        async with (
            running_stack(*pair) as stack,
            running_planner(stack.target, stack.draft, valkey.url) as planner,
        ):
            await until(lambda: _logged(logs, "planning waits"))
            assert not await planner.channel.is_serving()
            valkey.start()
            await until(planner.channel.is_serving)
            first = await _stored(valkey)
            valkey.stop()
            with pytest.raises(SequoiaError) as refused:
                await planner.replan()
            assert refused.value.reason is Reason.NOT_READY
            assert await planner.plan() == first
            valkey.start()
            await until(lambda: planner.version_is_above(first.version))
            second = await _stored(valkey)
    assert second.version > first.version


async def _stored(valkey: EmbeddedValkey) -> Plan:
    store = PlanStore(valkey.url)
    plan = await store.read()
    await store.close()
    assert plan
    return plan


async def _logged(logs: Sequence[MutableMapping[str, object]], event: str) -> bool:
    return any(entry["event"] == event for entry in logs)
