"""Between the wire and the domain for the public API."""

from __future__ import annotations

from sequoia.errors import InvalidArgumentError
from sequoia.generation import (
    ChatMessage,
    Completion,
    FinishReason,
    GeneratedToken,
    GenerationChunk,
    GenerationRequest,
    Usage,
)
from sequoia.rpc.codec import decode_sampling, decode_seconds, encode_sampling, encode_seconds
from sequoia.rpc.method import Method, parse
from sequoia.v1 import generation_pb2

# A million tokens and more; reading a message takes the event loop's time from everyone.
REQUEST_LIMIT_BYTES = 4 * 2**20

_FINISH_NUMBERS = {
    FinishReason.STOP: generation_pb2.FINISH_REASON_STOP,
    FinishReason.STOP_STRING: generation_pb2.FINISH_REASON_STOP_STRING,
    FinishReason.LENGTH: generation_pb2.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: generation_pb2.FINISH_REASON_CANCELLED,
}
_FINISH_REASONS = {number: reason for reason, number in _FINISH_NUMBERS.items()}
_COUNTS = (
    "prompt_token_count",
    "completion_token_count",
    "step_count",
    "drafted_token_count",
    "accepted_token_count",
    "plan_version",
    "largest_node_count",
)


def _encode_request(request: GenerationRequest) -> bytes:
    message = generation_pb2.GenerateRequest(
        sampling=encode_sampling(request.sampling),
        seed=request.seed,
        max_new_tokens=request.max_new_tokens,
        stop_strings=request.stop_strings,
        stop_token_ids=request.stop_token_ids,
        ignore_end_of_text=request.ignore_end_of_text,
        logprob_count=request.logprob_count,
        echo_prompt_token_ids=request.echo_prompt_token_ids,
        disable_speculation=request.disable_speculation,
    )
    if request.text is not None:
        message.text = request.text
    if request.chat is not None:
        turns = [
            generation_pb2.ChatMessage(role=turn.role, content=turn.content)
            for turn in request.chat
        ]
        message.chat.CopyFrom(generation_pb2.ChatPrompt(messages=turns))
    if request.token_ids is not None:
        message.tokens.CopyFrom(generation_pb2.TokenPrompt(token_ids=request.token_ids))
    return message.SerializeToString()


def _decode_request(data: bytes) -> GenerationRequest:
    message = parse(generation_pb2.GenerateRequest, data)
    prompt = message.WhichOneof("prompt")
    if prompt is None:
        raise InvalidArgumentError("prompt", "one of text, chat, tokens must be set", "exactly one")
    chat = tuple(ChatMessage(turn.role, turn.content) for turn in message.chat.messages)
    return GenerationRequest(
        text=message.text if prompt == "text" else None,
        chat=chat if prompt == "chat" else None,
        token_ids=tuple(message.tokens.token_ids) if prompt == "tokens" else None,
        sampling=decode_sampling(message.sampling),
        seed=message.seed if message.HasField("seed") else None,
        max_new_tokens=message.max_new_tokens if message.HasField("max_new_tokens") else None,
        stop_strings=tuple(message.stop_strings),
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_end_of_text=message.ignore_end_of_text,
        logprob_count=message.logprob_count if message.HasField("logprob_count") else None,
        echo_prompt_token_ids=message.echo_prompt_token_ids,
        disable_speculation=message.disable_speculation,
    )


def _encode_chunk(chunk: GenerationChunk) -> bytes:
    message = generation_pb2.GenerateResponse(
        text_delta=chunk.text,
        tokens=[
            generation_pb2.GeneratedToken(
                token_id=token.token_id,
                logprob=token.logprob,
                top_logprobs=[
                    generation_pb2.TokenLogprob(token_id=token_id, logprob=logprob)
                    for token_id, logprob in token.top_logprobs
                ],
            )
            for token in chunk.tokens
        ],
        prompt_token_ids=chunk.prompt_token_ids,
    )
    if chunk.completion is not None:
        message.completion.CopyFrom(_encode_completion(chunk.completion))
    return message.SerializeToString()


def _encode_completion(completion: Completion) -> generation_pb2.Completion:
    usage = completion.usage
    return generation_pb2.Completion(
        finish_reason=_FINISH_NUMBERS[completion.finish_reason],
        stop_string=completion.stop_string,
        usage=generation_pb2.Usage(
            **{name: getattr(usage, name) for name in _COUNTS},
            tokens_per_step=usage.tokens_per_step,
            draft_time=encode_seconds(usage.draft_seconds),
            target_time=encode_seconds(usage.target_seconds),
            transport_time=encode_seconds(usage.transport_seconds),
            total_time=encode_seconds(usage.total_seconds),
            time_to_first_token=encode_seconds(usage.seconds_to_first_token),
            queue_duration=encode_seconds(usage.queued_seconds),
        ),
    )


def _decode_chunk(data: bytes) -> GenerationChunk:
    message = parse(generation_pb2.GenerateResponse, data)
    tokens = tuple(
        GeneratedToken(
            token.token_id,
            token.logprob if token.HasField("logprob") else None,
            tuple((top.token_id, top.logprob) for top in token.top_logprobs),
        )
        for token in message.tokens
    )
    completion = _decode_completion(message.completion) if message.HasField("completion") else None
    return GenerationChunk(message.text_delta, tokens, tuple(message.prompt_token_ids), completion)


def _decode_completion(message: generation_pb2.Completion) -> Completion:
    usage = message.usage
    if message.finish_reason not in _FINISH_REASONS:
        raise InvalidArgumentError(
            "completion.finish_reason", "not set or unknown", "1 to 4", message.finish_reason
        )
    return Completion(
        _FINISH_REASONS[message.finish_reason],
        Usage(
            **{name: getattr(usage, name) for name in _COUNTS},
            draft_seconds=decode_seconds(usage.draft_time),
            target_seconds=decode_seconds(usage.target_time),
            transport_seconds=decode_seconds(usage.transport_time),
            total_seconds=decode_seconds(usage.total_time),
            seconds_to_first_token=decode_seconds(usage.time_to_first_token),
            queued_seconds=decode_seconds(usage.queue_duration),
        ),
        message.stop_string,
    )


GENERATE = Method(
    "sequoia.v1.GenerationService",
    "Generate",
    _encode_request,
    _decode_request,
    _encode_chunk,
    _decode_chunk,
    request_limit_bytes=REQUEST_LIMIT_BYTES,
)
