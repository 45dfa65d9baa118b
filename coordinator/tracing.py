"""What a coordinator's spans say of a request, in OpenTelemetry's words for generative AI; never its text."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from coordinator.step import Step
from sequoia.generation import Completion, GenerationRequest
from sequoia.tracing import spans


def note_request(request: GenerationRequest, model: str) -> None:
    """What is asked for."""
    sampling = request.sampling
    attributes: dict[str, spans.Value] = {
        "gen_ai.operation.name": "text_completion" if request.chat is None else "chat",
        "gen_ai.provider.name": "sequoia",
        "gen_ai.request.model": model,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k,
    }
    if request.max_new_tokens is not None:
        attributes["gen_ai.request.max_tokens"] = request.max_new_tokens
    spans.note(attributes)


def note_completion(completion: Completion, request_class: str) -> None:
    """How it ended, and all its steps together."""
    usage = completion.usage
    spans.note(
        {
            "gen_ai.response.finish_reasons": [completion.finish_reason.value],
            "gen_ai.usage.input_tokens": usage.prompt_token_count,
            "gen_ai.usage.output_tokens": usage.completion_token_count,
            "sequoia.request_class": request_class,
            "sequoia.step_count": usage.step_count,
            "sequoia.drafted_token_count": usage.drafted_token_count,
            "sequoia.accepted_token_count": usage.accepted_token_count,
            "sequoia.draft_seconds": usage.draft_seconds,
            "sequoia.target_seconds": usage.target_seconds,
            "sequoia.transport_seconds": usage.transport_seconds,
            "sequoia.plan_version": usage.plan_version,
        }
    )


async def traced(number: int, step: Coroutine[Any, Any, Step]) -> Step:
    """A step, in a span of its own if its turn has come."""
    with spans.step_span(number) as span:
        done = await step
        if span:
            span.note(
                {
                    "sequoia.node_count": done.grown.tree.topology.node_count,
                    "sequoia.draft_seconds": done.times.draft_seconds,
                    "sequoia.target_seconds": done.times.target_seconds,
                    "sequoia.session_count": done.times.session_count,
                    "sequoia.plan_version": done.plan_version,
                }
            )
        return done
