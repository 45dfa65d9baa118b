"""`sequoia generate`: one text, from a running system or from one started for it."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import typer

from coordinator.prompt import MAX_NEW_TOKENS
from coordinator.request_limits import check_request
from sequoia import config, security_options
from sequoia.cli.session import interrupt_on_terminate, quiet_system
from sequoia.errors import Reason, SequoiaError
from sequoia.generation import ChatMessage, Completion, FinishReason, GenerationRequest
from sequoia.launcher import LaunchOptions
from sequoia.randomness import MAX_SEED
from sequoia.rpc.channel import Endpoint
from sequoia.rpc.generation_codec import GENERATE
from sequoia.rpc.method import encoded
from sequoia.security import endpoint
from sequoia.settings import SamplingSettings

COUNT_LIMIT = 2**32 - 1  # what the wire holds; a coordinator's own limit is its to say


@dataclass(frozen=True, slots=True)
class Answer:
    """One call's whole answer, and the seconds that it took as seen from here."""

    text: str
    token_ids: tuple[int, ...]
    completion: Completion
    seconds: float

    def as_json(self) -> dict[str, object]:
        """What `--json` prints."""
        usage = self.completion.usage
        return {
            "text": self.text,
            "token_ids": self.token_ids,
            "finish_reason": self.completion.finish_reason.value,
            "prompt_token_count": usage.prompt_token_count,
            "completion_token_count": usage.completion_token_count,
            "step_count": usage.step_count,
            "tokens_per_step": usage.tokens_per_step,
            "seconds": self.seconds,
            "seconds_per_token": self.seconds / max(usage.completion_token_count, 1),
        }


async def ask(
    place: Endpoint, request: GenerationRequest, show: Callable[[str], None] = lambda _: None
) -> Answer:
    """Call Generate, showing the text as it comes.

    Raises:
        SequoiaError: the call was refused or failed.
    """
    channel = place.open()
    started = time.perf_counter()
    text, token_ids = "", []
    try:
        async for chunk in channel.stream(GENERATE, request):
            show(chunk.text)
            text += chunk.text
            token_ids += [token.token_id for token in chunk.tokens]
            if chunk.completion:
                seconds = time.perf_counter() - started
                return Answer(text, tuple(token_ids), chunk.completion, seconds)
    finally:
        await channel.close()
    raise SequoiaError("the stream ended without a completion")


def generate(
    prompt: Annotated[str, typer.Argument(help="A user message, or with --raw plain text.")],
    address: config.Address = None,
    raw: Annotated[bool, typer.Option("--raw", help="No chat template.")] = False,
    temperature: Annotated[float, typer.Option(help="0 means greedy.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Keep this much of the mass.")] = 1.0,
    top_k: Annotated[
        int, typer.Option(min=0, max=2**31 - 1, help="Keep this many tokens; 0 keeps all.")
    ] = 0,
    seed: Annotated[
        int | None, typer.Option(min=0, max=MAX_SEED, help="The same seed gives the same text.")
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, max=COUNT_LIMIT, help="Most tokens to generate.")
    ] = 256,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the generation.")] = None,
    no_speculation: Annotated[
        bool, typer.Option("--no-speculation", help="One token a step, from the target alone.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    target: config.Target = config.DEFAULT_TARGET,
    draft: config.Draft = None,
    dtype: config.DTypeOption = config.DType.AUTO,
    device: config.DeviceOption = config.Device.AUTO,
    placement: config.PlacementOption = config.Placement.AUTO,
    device_memory: config.DeviceMemory = None,
    host_memory: config.HostMemory = None,
    tls_certificate: security_options.TlsCertificate = None,
    tls_key: security_options.TlsKey = None,
    tls_authority: security_options.TlsAuthority = None,
    token_file: security_options.TokenFile = None,
) -> None:
    """Generate the continuation of a prompt; model options apply when no address is given.

    TLS and the token are for the system at the address.
    """
    interrupt_on_terminate()
    try:
        request = GenerationRequest(
            text=prompt if raw else None,
            chat=None if raw else (ChatMessage("user", prompt),),
            sampling=SamplingSettings(temperature, top_k, top_p),
            seed=seed,
            max_new_tokens=max_new_tokens,
            stop_strings=tuple(stop or ()),
            disable_speculation=no_speculation,
        )
        options = LaunchOptions(
            target,
            draft,
            dtype=dtype,
            device=device,
            placement=placement,
            device_memory=device_memory,
            host_memory=host_memory,
            max_batch_size=1,  # there is one request
        )
        show = _silent if as_json else show_text
        if address:
            place = endpoint(address, tls_certificate, tls_key, tls_authority, token_file)
            answer = asyncio.run(ask(place, request, show))
        else:
            encoded(
                GENERATE, request
            )  # what the wire cannot hold is refused before anything starts
            check_request(request, MAX_NEW_TOKENS)
            with quiet_system(options) as system:
                answer = asyncio.run(ask(Endpoint(system.address), request, show))
    except SequoiaError as error:
        status = 2 if error.reason in (Reason.INVALID_ARGUMENT, Reason.PROMPT_TOO_LONG) else 1
        config.fail(f"{error.reason}: {error.message}", status)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    typer.echo(json.dumps(answer.as_json()) if as_json else "")
    if answer.completion.finish_reason is FinishReason.CANCELLED:
        config.fail("the server stopped before the text was complete")


def show_text(text: str) -> None:
    """Write a piece of text to stdout at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _silent(_: str) -> None:
    pass
