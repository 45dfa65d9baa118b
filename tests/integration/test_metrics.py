"""What scrapes of a running system say, against what its clients saw."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from coordinator.clients import Clients
from planner.service import PlannerService
from planner.settings import PlannerSettings
from sequoia.embedded_valkey import EmbeddedValkey
from sequoia.errors import Reason
from sequoia.generation import GenerationRequest
from sequoia.plans import Plan
from sequoia.rpc.channel import Endpoint
from sequoia.rpc.errors import CODES, RemoteError
from sequoia.rpc.generation_codec import GENERATE
from sequoia.rpc.server import RpcServer
from sequoia.settings import SamplingSettings
from tests.deploy.metric_names import documented
from tests.scraping import Scrape, Scraped, scraped
from tests.stack import HOST, Generated, Stack, Stream, running_stack
from tests.tiny import byte_pair

GREEDY = GenerationRequest(
    text="Hello, world",
    sampling=SamplingSettings(temperature=0.0),
    max_new_tokens=24,
    ignore_end_of_text=True,
)
REQUESTS = [
    GREEDY,
    replace(GREEDY, text="ab", max_new_tokens=1),
    replace(GREEDY, sampling=SamplingSettings(temperature=0.9), max_new_tokens=17),
    replace(GREEDY, sampling=SamplingSettings(temperature=0.5), seed=3, max_new_tokens=9),
    replace(GREEDY, disable_speculation=True, max_new_tokens=5),
]
CLASSES = {"greedy", "flat", "sharp-seeded"}
TOKEN, OTHER_TOKEN = "sequoia_alice", "sequoia_mallory"
OUTPUT = {"gen_ai_token_type": "output"}
LABELS = {
    "gen_ai_operation_name": "text_completion",
    "gen_ai_provider_name": "sequoia",
}
METHOD = "sequoia.v1.GenerationService/Generate"


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """A running system that has served nobody yet."""
    async with running_stack(*byte_pair(tmp_path)) as running:
        yield running


@pytest.fixture
async def scrape(stack: Stack) -> AsyncIterator[Scraped]:
    """Reads what its roles tell."""
    assert stack.target.server
    assert stack.draft.server
    registries = {
        "coordinator": stack.server.registry,
        "target": stack.target.server.registry,
        "draft": stack.draft.server.registry,
    }
    with scraped(registries) as scrape:
        yield scrape


async def generated(stack: Stack) -> list[Generated]:
    """Every request's text, asked for at the same time."""
    done = await asyncio.gather(*(stack.generate(request) for request in REQUESTS))
    engine = stack.coordinator.engine
    assert engine
    await stack.until(lambda: engine.active_count == 0)
    return done


async def test_requests_and_tokens_are_those_of_the_clients(stack: Stack, scrape: Scraped) -> None:
    """To the last one, in every metric that counts them, histograms included."""
    usages = [one.completion.usage for one in await generated(stack)]
    seen = await scrape("coordinator")
    prompts = sum(usage.prompt_token_count for usage in usages)
    texts = sum(usage.completion_token_count for usage in usages)
    labels = {**LABELS, "gen_ai_request_model": str(stack.target.folder)}

    assert seen.value("sequoia_requests_total", outcome="length") == len(REQUESTS)
    assert seen.total("sequoia_requests_total") == len(REQUESTS)
    for kind, count in (("input", prompts), ("output", texts)):
        by_client = {"client": "anyone", "gen_ai_token_type": kind}
        assert seen.value("sequoia_client_tokens_total", **by_client) == count
        usage = {**labels, "gen_ai_token_type": kind}
        assert seen.value("gen_ai_client_token_usage_sum", **usage) == count
        assert seen.value("gen_ai_client_token_usage_count", **usage) == len(REQUESTS)
    durations = "gen_ai_server_request_duration_seconds"
    assert seen.value(f"{durations}_count", **labels, error_type="") == len(REQUESTS)
    first = "gen_ai_server_time_to_first_token_seconds"
    assert seen.value(f"{first}_count", **labels) == len(REQUESTS)
    longer = [usage for usage in usages if usage.step_count > 1]
    later = "gen_ai_server_time_per_output_token_seconds"
    assert seen.value(f"{later}_count", **labels) == len(longer) < len(REQUESTS)
    gaps = sum(usage.step_count - 1 for usage in usages)
    assert seen.value("sequoia_between_chunks_seconds_count") == gaps
    assert seen.value("sequoia_queue_seconds_count") == len(REQUESTS)
    answered = {"rpc_method": METHOD, "rpc_response_status_code": "OK"}
    assert seen.value("rpc_server_call_duration_seconds_count", **answered) == len(REQUESTS)
    assert seen.total("sequoia_rpc_failures_total") == 0


async def test_times_add_up_to_those_of_the_clients(stack: Stack, scrape: Scraped) -> None:
    """The sums of the times lie between what the coordinator and what its clients measured."""
    done = await generated(stack)
    seen = await scrape("coordinator")
    usages = [one.completion.usage for one in done]
    first = seen.total("gen_ai_server_time_to_first_token_seconds_sum")
    whole = seen.total("gen_ai_server_request_duration_seconds_sum")
    assert sum(usage.seconds_to_first_token for usage in usages) <= first <= whole
    assert sum(usage.total_seconds for usage in usages) <= whole
    parts = seen.total("sequoia_step_part_seconds_total")
    assert parts == pytest.approx(seen.total("sequoia_step_seconds_sum"), rel=1e-6)
    for part, measured in (
        ("draft", sum(usage.draft_seconds for usage in usages)),
        ("target", sum(usage.target_seconds for usage in usages)),
    ):
        assert seen.value("sequoia_step_part_seconds_total", part=part) == pytest.approx(measured)


async def test_steps_and_trees_agree_over_all_roles(stack: Stack, scrape: Scraped) -> None:
    """What the clients' usage says, the coordinator's steps and the workers' batches."""
    usages = [one.completion.usage for one in await generated(stack)]
    steps = sum(usage.step_count for usage in usages)
    nodes = steps + sum(usage.drafted_token_count for usage in usages)
    seen, target, draft = [await scrape(role) for role in ("coordinator", "target", "draft")]

    assert seen.total("sequoia_steps_total") == steps
    for name in ("step_seconds", "step_tokens", "tree_nodes"):
        assert seen.total(f"sequoia_{name}_count") == steps
        assert {
            dict(labels)["request_class"]
            for its_name, labels in seen.samples
            if its_name == f"sequoia_{name}_count"
        } == CLASSES
    assert seen.total("sequoia_tree_nodes_sum") == nodes
    assert seen.total("sequoia_step_tokens_sum") >= sum(
        usage.completion_token_count for usage in usages
    )
    assert target.value("sequoia_worker_tree_nodes_count", role="target") == steps
    assert target.value("sequoia_worker_tree_nodes_sum", role="target") == nodes
    assert target.value("sequoia_worker_batch_sessions_sum", role="target") == steps
    batches = target.value("sequoia_worker_batch_seconds_count", role="target")
    assert batches == target.value("sequoia_worker_batch_sessions_count", role="target") <= steps
    calls = {
        "rpc_method": "sequoia.v1.TargetService/VerifyTree",
        "rpc_response_status_code": "OK",
    }
    assert target.value("rpc_server_call_duration_seconds_count", **calls) == steps
    grown = draft.value("sequoia_worker_tree_nodes_sum", role="draft")
    alone = steps - draft.value("sequoia_worker_tree_nodes_count", role="draft")
    assert grown + alone == nodes
    assert target.value("sequoia_worker_sessions_opened_total", role="target") == len(REQUESTS)
    read = target.value("sequoia_worker_prefill_tokens_total", role="target")
    assert read == sum(usage.prompt_token_count - 1 for usage in usages)


async def test_acceptance_is_told_by_depth_and_by_rank(stack: Stack, scrape: Scraped) -> None:
    """A depth is tried where the one above was accepted, and every accepted child has a rank."""
    usages = [one.completion.usage for one in await generated(stack)]
    seen = await scrape("coordinator")
    for name in CLASSES:
        trials, accepts = [
            [
                seen.value(
                    f"sequoia_acceptance_depth_{what}_total", request_class=name, depth=depth
                )
                for depth in ("1", "2", "3")
            ]
            for what in ("trials", "accepts")
        ]
        assert trials[0] >= accepts[0] >= trials[1] >= accepts[1] >= trials[2]
    accepted = seen.total("sequoia_acceptance_depth_accepts_total")
    assert accepted == seen.total("sequoia_acceptance_rank_accepts_total")
    assert accepted >= sum(usage.accepted_token_count for usage in usages) > 0
    assert seen.total("sequoia_acceptance_rank_trials_total") >= accepted


async def test_gauges_show_how_things_stand(stack: Stack, scrape: Scraped) -> None:
    """While a request runs, and after it; a lost worker is one less."""
    stream = Stream(stack, replace(GREEDY, max_new_tokens=400))
    await stream.read(4)
    seen, target = await scrape("coordinator"), await scrape("target")
    assert seen.value("sequoia_requests_active") == 1
    assert seen.value("sequoia_requests_queued") == 0
    assert seen.value("sequoia_plan_version") == 0
    assert target.value("sequoia_worker_sessions", role="target") == 1
    held = target.value("sequoia_worker_kv_cache_bytes", role="target")
    assert 0 < held <= target.value("sequoia_worker_kv_cache_limit_bytes", role="target")
    await stream.cancel()
    engine = stack.coordinator.engine
    assert engine
    await stack.until(lambda: engine.active_count == 0)
    assert (await scrape("coordinator")).value("sequoia_requests_active") == 0

    await stack.draft.kill()
    await stack.generate(GREEDY)
    seen = await scrape("coordinator")
    assert seen.value("sequoia_workers_available", worker="target") == 1
    assert seen.value("sequoia_workers_available", worker="draft") == 0


async def test_failures_are_counted_by_reason(stack: Stack, scrape: Scraped) -> None:
    """As the caller got them, with the status of the one table of reasons; others stay at 0."""
    bad = [
        (replace(GREEDY, text=""), Reason.INVALID_ARGUMENT),
        (replace(GREEDY, max_new_tokens=0), Reason.INVALID_ARGUMENT),
        (replace(GREEDY, text="x" * 9000), Reason.PROMPT_TOO_LONG),
    ]
    for request, reason in bad:
        with pytest.raises(RemoteError) as raised:
            await stack.generate(request)
        assert raised.value.reason is reason
    garbage = replace(GENERATE, encode_request=lambda _: b"\xff\xff")
    with pytest.raises(RemoteError):
        async for _ in stack.channel.stream(garbage, GREEDY):
            pass
    seen = await scrape("coordinator")
    wanted = {Reason.INVALID_ARGUMENT: 2, Reason.PROMPT_TOO_LONG: 1, Reason.MALFORMED_MESSAGE: 1}
    for reason in Reason:
        count = seen.value("sequoia_rpc_failures_total", rpc_method=METHOD, reason=reason.value)
        assert count == wanted.get(reason, 0), reason
    code = CODES[Reason.INVALID_ARGUMENT].name
    labels = {"rpc_method": METHOD, "rpc_response_status_code": code}
    assert seen.value("rpc_server_call_duration_seconds_count", **labels) == 4
    assert seen.value("sequoia_requests_total", outcome="failed") == 3
    errors = "gen_ai_server_request_duration_seconds_count"
    assert seen.total(errors, error_type="PROMPT_TOO_LONG") == 1


async def test_a_client_that_leaves_is_no_failure(stack: Stack, scrape: Scraped) -> None:
    """The request is abandoned, the call cancelled, and its tokens are counted."""
    stream = Stream(stack, replace(GREEDY, max_new_tokens=400))
    await stream.read(4)
    await stream.cancel()
    engine = stack.coordinator.engine
    assert engine
    await stack.until(lambda: engine.active_count == 0)
    seen = await scrape("coordinator")
    assert seen.value("sequoia_requests_total", outcome="abandoned") == 1
    cancelled = {"rpc_method": METHOD, "rpc_response_status_code": "CANCELLED"}
    assert seen.value("rpc_server_call_duration_seconds_count", **cancelled) == 1
    assert seen.total("sequoia_rpc_failures_total") == 0
    assert seen.total("sequoia_client_tokens_total", **OUTPUT) >= 4


async def test_tokens_are_counted_by_the_clients_of_the_file(tmp_path: Path) -> None:
    """Their names, which the operator gave them, and no other; who is not let in has no label."""
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    (file := tmp_path / "clients.toml").write_text(f'[clients.alice]\ntoken_sha256 = "{digest}"\n')
    endpoint = Endpoint("", token=TOKEN)
    pair = byte_pair(tmp_path)
    async with running_stack(*pair, clients=Clients(file), endpoint=endpoint) as stack:
        with scraped({"coordinator": stack.server.registry}) as scrape:
            done = await stack.generate(GREEDY)
            stranger = Endpoint(stack.channel.address, token=OTHER_TOKEN).open()
            with suppress(RemoteError):
                async for _ in stranger.stream(GENERATE, GREEDY):
                    pass
            await stranger.close()
            seen = await scrape("coordinator")
    names = {dict(labels)["client"] for name, labels in seen.samples if "client" in dict(labels)}
    assert names == {"alice"}
    counted = seen.value("sequoia_client_tokens_total", client="alice", **OUTPUT)
    assert counted == len(done.tokens)
    refused = seen.total("sequoia_rpc_failures_total", reason=Reason.UNAUTHENTICATED.value)
    assert refused == 1


def of_trees(seen: Scrape, name: str, source: str) -> dict[tuple[str, int], float]:
    """A planner's figures by request class and batch size."""
    return {
        (its["request_class"], int(its["batch_size"])): value
        for (its_name, labels), value in seen.samples.items()
        if its_name == name and (its := dict(labels)).get("source") == source
    }


@asynccontextmanager
async def running_planner(stack: Stack, redis_url: str) -> AsyncIterator[tuple[RpcServer, Plan]]:
    """A planner whose first plan the coordinator follows."""
    server = RpcServer()
    addresses = [f"{HOST}:{stack.target.port}"], [f"{HOST}:{stack.draft.port}"]
    settings = PlannerSettings(
        *addresses, redis_url, max_nodes=8, max_levels=4, max_batch_size=1, replan_seconds=0.1
    )
    service = PlannerService(server, settings)
    await server.start(HOST, 0)
    try:
        await service.get_ready()
        plan, engine = service.plan, stack.coordinator.engine
        assert plan
        assert engine
        await stack.until(lambda: engine.plan.version >= plan.version, 30)
        yield server, plan
    finally:
        await service.stop()
        await server.kill()


async def with_measurements(scrape: Scraped) -> Scrape:
    """A scrape of the planner, once it has seen steps under its plan."""
    async with asyncio.timeout(30):
        while True:
            seen = await scrape("planner")
            if of_trees(seen, "sequoia_planner_tokens_per_step", "measured"):
                return seen
            await asyncio.sleep(0.05)


@dataclass(frozen=True)
class Planned:
    """A whole system after some traffic: the plan in force, and what each role tells."""

    plan: Plan
    scrapes: dict[str, Scrape]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def planned(tmp_path_factory: pytest.TempPathFactory) -> Planned:
    """Scrapes of all roles; a planner measures for a while, so the tests share them."""
    pair = byte_pair(tmp_path_factory.mktemp("planned"))
    async with AsyncExitStack() as cleanup:
        valkey = cleanup.enter_context(EmbeddedValkey())
        stack = await cleanup.enter_async_context(running_stack(*pair, redis_url=valkey.url))
        server, plan = await cleanup.enter_async_context(running_planner(stack, valkey.url))
        assert stack.target.server
        assert stack.draft.server
        registries = {
            "coordinator": stack.server.registry,
            "target": stack.target.server.registry,
            "draft": stack.draft.server.registry,
        }
        scrape = cleanup.enter_context(scraped({**registries, "planner": server.registry}))
        await stack.generate(replace(GREEDY, max_new_tokens=200))
        seen = await with_measurements(scrape)
        others = {role: await scrape(role) for role in registries}
        return Planned(plan, {**others, "planner": seen})


@pytest.mark.timeout(240)
def test_a_planner_tells_predictions_beside_measurements(planned: Planned) -> None:
    """Those of the plan in force; and the coordinator says that it follows that plan."""
    seen, plan = planned.scrapes["planner"], planned.plan
    assert seen.value("sequoia_planner_plan_version") == plan.version
    assert planned.scrapes["coordinator"].value("sequoia_plan_version") == plan.version
    assert seen.value("sequoia_planner_plans_total", cause="first plan") == 1
    assert seen.total("sequoia_planner_looks_total", outcome="looked") >= 1
    predicted = of_trees(seen, "sequoia_planner_seconds_per_token", "predicted")
    assert predicted == {
        (tree.request_class, tree.batch_size): tree.predicted_seconds_per_token
        for tree in plan.trees
    }
    measured = of_trees(seen, "sequoia_planner_seconds_per_token", "measured")
    assert set(measured) == {("greedy", 1)}
    assert measured["greedy", 1] > 0


@pytest.mark.timeout(240)
def test_the_documented_metrics_are_those_of_the_roles(planned: Planned) -> None:
    """Name, type and labels of each, as scrapes of all roles show them after some traffic."""
    own: dict[tuple[str, str], frozenset[str]] = {}
    for seen in planned.scrapes.values():
        for family in seen.families:
            if not family.name.startswith("process_"):
                key = family.name, family.kind
                own[key] = own.get(key, frozenset()) | family.labels
    assert own == {(one.name, one.kind): one.labels for one in documented()}


async def test_a_call_that_ends_in_a_defect_counts_as_internal(
    stack: Stack, scrape: Scraped, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its caller sees it."""
    engine = stack.coordinator.engine
    assert engine
    monkeypatch.setattr(engine, "generate", None)
    with pytest.raises(RemoteError) as raised:
        await stack.generate(GREEDY)
    assert raised.value.reason is Reason.INTERNAL
    seen = await scrape("coordinator")
    assert seen.total("sequoia_rpc_failures_total") == 1
    assert seen.total("sequoia_rpc_failures_total", reason="INTERNAL") == 1
    labels = {"rpc_method": METHOD, "rpc_response_status_code": grpc.StatusCode.INTERNAL.name}
    assert seen.value("rpc_server_call_duration_seconds_count", **labels) == 1
