"""Logging to stderr with structlog: coloured lines on a terminal, elsewhere JSON, one a line."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from sequoia.tracing import spans


def configure_logging(role: str, level: str = "info") -> None:
    """Set up logging for a process; every line names the role, in a call the request and its trace."""
    on_terminal = sys.stderr.isatty()
    renderer: Any = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if on_terminal
        else structlog.processors.JSONRenderer()
    )
    exceptions = [] if on_terminal else [structlog.processors.format_exc_info]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _adder(role),
            add_trace,
            *exceptions,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)


def add_trace(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Name the trace and the span in which a line was written, if it is in any."""
    event.update(spans.identifiers())
    return event


def _adder(role: str) -> Any:
    def add_role(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
        event["role"] = role
        return event

    return add_role
