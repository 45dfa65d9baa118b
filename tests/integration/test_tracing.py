"""Traces over all roles, as a real collector gets them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from sequoia.errors import Reason
from sequoia.generation import GenerationRequest
from sequoia.log import add_trace
from sequoia.rpc.errors import RemoteError
from sequoia.settings import SamplingSettings
from sequoia.tracing import spans
from sequoia.tracing.provider import CLOSE_SECONDS, OtelTracer, otlp_tracer
from tests.collector import Collector, Seen, running_collector
from tests.scraping import free_port
from tests.stack import Generated, Stack, Stream, running_stack
from tests.tiny import byte_pair

REQUEST = GenerationRequest(
    text="Hello, world",
    sampling=SamplingSettings(temperature=0.0),
    max_new_tokens=24,
    ignore_end_of_text=True,
)
GENERATE = "sequoia.v1.GenerationService/Generate"
VERIFY = "sequoia.v1.TargetService/VerifyTree"
GROW = "sequoia.v1.DraftService/GrowTree"
PREFILL = "sequoia.v1.WorkerService/Prefill"
SERVICES = {"sequoia-coordinator", "sequoia-target", "sequoia-draft"}
INTERNAL, SERVER, CLIENT = 1, 2, 3  # as OTLP numbers them


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector that listens."""
    with running_collector() as running:
        yield running


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A target and a draft."""
    return byte_pair(tmp_path)


@asynccontextmanager
async def traced_stack(
    pair: tuple[Path, Path], collector: Collector, step_interval: int = 4
) -> AsyncIterator[Stack]:
    """A running system whose roles export their spans; all have arrived when it has ended."""
    tracers: list[OtelTracer] = []
    async with running_stack(*pair) as stack:
        servers = {
            "coordinator": stack.server,
            "target": stack.target.server,
            "draft": stack.draft.server,
        }
        for role, server in servers.items():
            assert server
            server.tracer = otlp_tracer(role, collector.address, step_interval)
            tracers.append(server.tracer)
        yield stack
        engine = stack.coordinator.engine
        assert engine
        await stack.until(lambda: engine.active_count == 0)
    for tracer in tracers:
        await asyncio.to_thread(tracer.close)


async def traced(
    pair: tuple[Path, Path], collector: Collector, step_interval: int = 4
) -> tuple[Generated, Seen]:
    """One traced request, and the span of its call."""
    async with traced_stack(pair, collector, step_interval) as stack:
        generated = await stack.generate(REQUEST)
    (root,) = collector.named(GENERATE)
    return generated, root


async def test_one_trace_spans_all_roles(pair: tuple[Path, Path], collector: Collector) -> None:
    """Every span of every role is of the request's trace, and has a parent in it but for the first."""
    _, root = await traced(pair, collector)
    assert {span.service for span in collector.spans} == SERVICES
    assert {span.trace_id for span in collector.spans} == {root.trace_id}
    known = {span.span_id for span in collector.spans}
    assert root.parent_id == ""
    assert all(span.parent_id in known for span in collector.spans if span is not root)


@pytest.mark.parametrize("method", [VERIFY, GROW, PREFILL])
async def test_a_workers_call_is_below_the_coordinators(
    pair: tuple[Path, Path], collector: Collector, method: str
) -> None:
    """A client's span under the request, and the server's under that; in time, the one within the other."""
    generated, root = await traced(pair, collector)
    served = [span for span in collector.named(method) if span.kind == SERVER]
    calls = {span.span_id: span for span in collector.named(method) if span.kind == CLIENT}
    assert len(served) == len(calls) == (2 if method == PREFILL else 1)
    for span in served:
        call = calls[span.parent_id]
        assert span.service in SERVICES - {"sequoia-coordinator"}
        assert call.service == "sequoia-coordinator"
        assert root.began <= call.began <= span.began
        assert span.attributes["rpc.method"] == method
        if method == PREFILL:
            assert span.attributes["rpc.response.status_code"] == "OK"
            tokens = generated.completion.usage.prompt_token_count
            assert span.attributes["sequoia.token_count"] == tokens
            assert span.ended <= call.ended
        else:
            assert call.parent_id == root.span_id


async def test_a_requests_span_says_what_it_was(
    pair: tuple[Path, Path], collector: Collector
) -> None:
    """In the words of the conventions, with the figures that the client got, and without any text."""
    generated, root = await traced(pair, collector)
    usage = generated.completion.usage
    wanted = {
        "rpc.system.name": "grpc",
        "rpc.method": GENERATE,
        "rpc.response.status_code": "OK",
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "sequoia",
        "gen_ai.request.model": str(pair[0]),
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.max_tokens": 24,
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.input_tokens": usage.prompt_token_count,
        "gen_ai.usage.output_tokens": 24,
        "sequoia.step_count": usage.step_count,
        "sequoia.accepted_token_count": usage.accepted_token_count,
        "sequoia.request_class": "greedy",
    }
    assert wanted.items() <= root.attributes.items()
    assert root.kind == SERVER
    assert not root.has_failed
    assert "Hello" not in str(collector.spans)


async def test_time_in_line_is_a_span(pair: tuple[Path, Path], collector: Collector) -> None:
    """As long as the client was told, right below the request."""
    generated, root = await traced(pair, collector)
    (queue,) = collector.named("queue")
    assert queue.parent_id == root.span_id
    seconds = (queue.ended - queue.began) / 1e9
    assert seconds == pytest.approx(generated.completion.usage.queued_seconds, abs=0.005)


@pytest.mark.parametrize("interval", [0, 1, 4])
async def test_one_step_in_so_many_is_traced(
    pair: tuple[Path, Path], collector: Collector, interval: int
) -> None:
    """The same ones in all roles, each below its request or its stream of steps; 0 is none."""
    generated, root = await traced(pair, collector, interval)
    count = generated.completion.usage.step_count
    numbers = list(range(0, count, interval)) if interval else []
    streams = {
        "sequoia-coordinator": root,
        "sequoia-target": next(s for s in collector.named(VERIFY) if s.kind == SERVER),
        "sequoia-draft": next(s for s in collector.named(GROW) if s.kind == SERVER),
    }
    for service, parent in streams.items():
        steps = sorted(collector.named("step", service), key=lambda span: span.began)
        seen = [span.attributes["sequoia.step"] for span in steps]
        assert {span.parent_id for span in steps} <= {parent.span_id}
        if service == "sequoia-draft":  # the last step may grow no tree
            assert set(seen) <= set(numbers)
            assert len(seen) >= len(numbers) - 1
        else:
            assert seen == numbers
    assert len(numbers) < count or interval == 1


async def test_a_clients_trace_goes_on(pair: tuple[Path, Path], collector: Collector) -> None:
    """The request's span is below the one that the client's metadata tell of."""
    async with traced_stack(pair, collector) as stack:
        client = otlp_tracer("client", collector.address, 0)
        with spans.serving(client, "work", [], {}):
            await stack.generate(REQUEST)
        await asyncio.to_thread(client.close)
    (work,) = collector.named("work")
    (root,) = collector.named(GENERATE)
    assert (root.trace_id, root.parent_id) == (work.trace_id, work.span_id)


async def test_a_client_that_does_not_sample_gets_no_spans(
    pair: tuple[Path, Path], collector: Collector
) -> None:
    """Its decision holds in every role."""
    traceparent = f"00-{'ab' * 16}-{'cd' * 8}-00"

    class Unsampled:
        is_recording = False
        identifiers: dict[str, str] = {}  # noqa: RUF012 a fake's
        metadata = [("traceparent", traceparent)]  # noqa: RUF012

        def note(self, attributes: Any) -> None: ...
        def fail(self, error_type: str) -> None: ...
        def end(self) -> None: ...

    class Client:
        step_interval = 1

        def begin(self, *_: Any) -> spans.Span:
            return Unsampled()

        def close(self) -> None: ...

    async with traced_stack(pair, collector, 1) as stack:
        with spans.serving(Client(), "work", [], {}):
            await stack.generate(REQUEST)
    assert collector.spans == []


async def test_a_garbled_parent_is_no_failure(
    pair: tuple[Path, Path], collector: Collector
) -> None:
    """The request begins a trace of its own."""
    async with traced_stack(pair, collector) as stack:
        stack.channel._authorization = [("traceparent", "00-zz-!!-01"), ("tracestate", "=,=")]
        await stack.generate(REQUEST)
    (root,) = collector.named(GENERATE)
    assert root.parent_id == ""


async def test_a_failure_stands_in_its_span(pair: tuple[Path, Path], collector: Collector) -> None:
    """With its reason; a client that leaves has not failed."""
    async with traced_stack(pair, collector) as stack:
        with pytest.raises(RemoteError):
            await stack.generate(replace(REQUEST, text=""))
        stream = Stream(stack, replace(REQUEST, max_new_tokens=400))
        await stream.read(2)
        await stream.cancel()
    failed, left = collector.named(GENERATE)
    assert failed.has_failed
    assert failed.attributes["error.type"] == Reason.INVALID_ARGUMENT
    assert failed.attributes["rpc.response.status_code"] == "INVALID_ARGUMENT"
    assert not left.has_failed
    assert left.attributes["rpc.response.status_code"] == "CANCELLED"


async def test_logs_name_the_trace(pair: tuple[Path, Path], collector: Collector) -> None:
    """Of every role, and each the span that it was written in."""
    async with traced_stack(pair, collector) as stack:
        with capture_logs(processors=[add_trace]) as lines:
            await stack.generate(REQUEST)
    (root,) = collector.named(GENERATE)
    (finished,) = (line for line in lines if line["event"] == "generation finished")
    assert finished["trace_id"] == root.trace_id
    assert finished["span_id"] == root.span_id
    closed = [line for line in lines if line["event"] == "session closed"]
    assert {line.get("trace_id") for line in closed} <= {root.trace_id}


async def test_calls_of_no_request_begin_no_trace(
    pair: tuple[Path, Path], collector: Collector
) -> None:
    """Planners look at workers every second."""
    async with traced_stack(pair, collector) as stack:
        await stack.session_counts()
    assert collector.spans == []


async def test_a_collector_that_is_away_holds_up_nobody(pair: tuple[Path, Path]) -> None:
    """Requests are served, and a role ends within a few seconds."""
    away = Collector()
    away.address = f"http://127.0.0.1:{free_port()}"
    async with traced_stack(pair, away) as stack:
        generated = await stack.generate(REQUEST)
        started = time.monotonic()
    assert len(generated.tokens) == REQUEST.max_new_tokens
    assert time.monotonic() - started < 3 * CLOSE_SECONDS + 10


async def test_without_tracing_nothing_is_sent_along(pair: tuple[Path, Path]) -> None:
    """No metadata, no identifiers, no span."""
    async with AsyncExitStack() as cleanup:
        stack = await cleanup.enter_async_context(running_stack(*pair))
        with capture_logs(processors=[add_trace]) as lines:
            await stack.generate(REQUEST)
    assert spans.metadata() == []
    assert not any("trace_id" in line for line in lines)
    with spans.span("x") as none, spans.step_span(0) as neither:
        assert none is None
        assert neither is None


@pytest.mark.parametrize("role", ["coordinator", "draft_service", "target_service", "planner"])
def test_without_tracing_opentelemetry_is_not_loaded(role: str) -> None:
    """Off costs no memory and no time at start."""
    program = (
        "import sys, importlib\n"
        f"importlib.import_module('{role}.__main__')\n"
        "import sequoia.rpc.server, sequoia.rpc.channel, sequoia.tracing.opening\n"
        "assert sequoia.tracing.opening.opened('x', None, 1) is None\n"
        "print(*[name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
