"""Spans of the call in hand, where it is traced.

Whoever serves a call begins its span (`Tracer.serving`); everything that happens under it, in tasks as well,
finds it here. Without tracing every function here looks at one variable and returns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

Value = str | bool | int | float | Sequence[str]
Attributes = Mapping[str, Value]
Metadata = list[tuple[str, str]]


class Kind(Enum):
    """What a span is to a call."""

    INTERNAL = "internal"
    CLIENT = "client"
    SERVER = "server"


class Span(Protocol):
    """A piece of work with a beginning and an end."""

    @property
    def is_recording(self) -> bool:
        """Whether anyone will see it."""

    @property
    def identifiers(self) -> dict[str, str]:
        """`trace_id` and `span_id` as logs show them."""

    @property
    def metadata(self) -> Metadata:
        """What tells a callee about it, in the form of W3C Trace Context."""

    def note(self, attributes: Attributes) -> None:
        """Add attributes."""

    def fail(self, error_type: str) -> None:
        """Say that the work has failed, and why in a word."""

    def end(self) -> None:
        """The work is over."""


class Tracer(Protocol):
    """Begins spans."""

    @property
    def step_interval(self) -> int:
        """One step in so many has a span of its own; 0: none."""

    def begin(
        self,
        name: str,
        kind: Kind,
        attributes: Attributes,
        parent: Span | Metadata | None,
        seconds_ago: float = 0.0,
    ) -> Span:
        """A span of one name, below another, a caller's or none."""

    def close(self) -> None:
        """Hand over what has ended."""


@dataclass(frozen=True, slots=True)
class _Scope:
    tracer: Tracer
    served: Span  # of the call that is being served
    span: Span  # the innermost


_scope: ContextVar[_Scope | None] = ContextVar("sequoia_scope", default=None)


@contextmanager
def serving(
    tracer: Tracer | None, name: str, metadata: Metadata, attributes: Attributes
) -> Iterator[Span | None]:
    """The span of a call while it is served, below its caller's where the metadata tell of one."""
    if tracer is None:
        yield None
        return
    span = tracer.begin(name, Kind.SERVER, attributes, metadata)
    with _inside(_Scope(tracer, span, span)):
        yield span


@contextmanager
def span(
    name: str, attributes: Attributes | None = None, kind: Kind = Kind.INTERNAL
) -> Iterator[Span | None]:
    """A span below the innermost one; None where nothing is traced."""
    scope = _scope.get()
    if scope is None or not scope.span.is_recording:
        yield None
        return
    inner = scope.tracer.begin(name, kind, attributes or {}, scope.span)
    with _inside(_Scope(scope.tracer, scope.served, inner)):
        yield inner


@contextmanager
def step_span(number: int) -> Iterator[Span | None]:
    """A span of one step in so many; the same ones in every role, which agree on their numbers."""
    scope = _scope.get()
    if scope is None or not scope.tracer.step_interval or number % scope.tracer.step_interval:
        yield None
        return
    with span("step", {"sequoia.step": number}) as inner:
        yield inner


def lasting(name: str, attributes: Attributes) -> Span | None:
    """A client's span below the served call's, which outlives the innermost one and is ended by hand."""
    scope = _scope.get()
    if scope is None or not scope.served.is_recording:
        return None
    return scope.tracer.begin(name, Kind.CLIENT, attributes, scope.served)


def past(name: str, seconds: float) -> None:
    """Something that has just ended after so many seconds."""
    scope = _scope.get()
    if scope is not None and scope.span.is_recording:
        scope.tracer.begin(name, Kind.INTERNAL, {}, scope.span, seconds).end()


def note(attributes: Attributes) -> None:
    """Add attributes to the served call's span."""
    if (scope := _scope.get()) is not None:
        scope.served.note(attributes)


def fail(error_type: str) -> None:
    """Say of the served call that it has failed."""
    if (scope := _scope.get()) is not None:
        scope.served.fail(error_type)


def metadata() -> Metadata:
    """What tells a callee about the innermost span; empty where nothing is traced."""
    scope = _scope.get()
    return [] if scope is None else scope.span.metadata


def identifiers() -> dict[str, str]:
    """Trace and span for a line of the log; empty where nothing is traced."""
    scope = _scope.get()
    return {} if scope is None else scope.span.identifiers


@contextmanager
def _inside(scope: _Scope) -> Iterator[None]:
    token = _scope.set(scope)
    try:
        yield
    except Exception as error:  # whoever is cancelled has not failed
        scope.span.fail(str(getattr(error, "reason", type(error).__name__)))
        raise
    finally:
        _scope.reset(token)
        scope.span.end()
