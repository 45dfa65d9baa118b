"""A call that carries one step after another, and stays open between them.

To open a call costs more than to send a message on an open one: with caches that a model's pass has just
swept, a millisecond, twice a step (ADR 0006).
"""

from __future__ import annotations

import asyncio
from typing import Any, Generic, Protocol, TypeVar, cast

import grpc
from grpc.aio import EOF  # type: ignore[attr-defined]

from sequoia.errors import Reason
from sequoia.rpc.errors import RemoteError, from_rpc_error
from sequoia.rpc.method import Method, encoded
from sequoia.tracing.spans import Span

Request = TypeVar("Request")
Reply = TypeVar("Reply")
Sent_contra = TypeVar("Sent_contra", contravariant=True)
Received_co = TypeVar("Received_co", covariant=True)


class Steps(Protocol[Sent_contra, Received_co]):
    """Steps that go to one worker, one at a time."""

    async def take(self, request: Sent_contra, timeout: float) -> Received_co:
        """Send a request and wait, so many seconds at most, for its reply.

        Raises:
            SequoiaError: as the worker or the transport reported it; no further steps can be taken.
        """

    def close(self) -> None:
        """Take no further steps."""


class StepStream(Generic[Request, Reply]):
    """Steps over gRPC; `span` is the call's, where it is traced."""

    def __init__(self, method: Method[Request, Reply], call: Any, span: Span | None = None) -> None:
        self._method = method
        self._call = call
        self._span = span

    async def take(self, request: Request, timeout: float) -> Reply:
        """See `Steps.take`."""
        data = encoded(self._method, request)
        try:
            async with asyncio.timeout(timeout):
                return await self._exchange(data)
        except TimeoutError as error:
            self._call.cancel()
            message = f"{self._method.name}: no reply within {timeout:g} s"
            raise RemoteError(Reason.DEADLINE_EXCEEDED, message, {}) from error
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def _exchange(self, data: bytes) -> Reply:
        await self._send(data)
        reply = await self._call.read()
        if reply is EOF:
            raise self._ended()
        return cast("Reply", reply)

    async def _send(self, data: bytes) -> None:
        try:
            await self._call.write(data)
        except asyncio.InvalidStateError:
            pass  # the call has ended, and to read says why
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.INTERNAL:  # gRPC's word for a call that is breaking
                raise self._ended() from error
            raise

    def _ended(self) -> RemoteError:
        message = f"{self._method.name}: the worker ended the call"
        return RemoteError(Reason.WORKER_UNAVAILABLE, message, {})

    def close(self) -> None:
        """See `Steps.close`."""
        self._call.cancel()
        if self._span:
            self._span.end()
