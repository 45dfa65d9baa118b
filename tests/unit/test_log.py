"""What stands in every line of the log, and that no line's own facts get in its way."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("sequoia", "draft_service", "target_service", "coordinator", "planner")
METHODS = ("debug", "info", "warning", "error", "exception", "critical")
PROGRAM = """
import structlog
from sequoia.log import configure_logging
configure_logging("sower")
structlog.contextvars.bind_contextvars(request_id="7")
structlog.get_logger().warning("hello", worker="draft")
"""


def line() -> dict[str, str]:
    """A line of the log of a process without a terminal."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    found: dict[str, str] = json.loads(done.stderr)
    return found


def facts() -> Iterator[tuple[str, str]]:
    """Every fact that some call to a log names, with its place."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
                match node:
                    case ast.Call(func=ast.Attribute(value=ast.Name(id="log"), attr=method)) if (
                        method in METHODS
                    ):
                        for keyword in node.keywords:
                            yield f"{path.relative_to(ROOT)}:{node.lineno}", keyword.arg or ""


def test_a_line_names_its_role_and_its_request() -> None:
    """Beside its own facts, as JSON on stderr."""
    found = line()
    assert (found["role"], found["request_id"], found["worker"]) == ("sower", "7", "draft")
    assert (found["event"], found["level"]) == ("hello", "warning")


def test_no_call_names_a_fact_that_every_line_has() -> None:
    """It would be overwritten, or overwrite: which role logs would be lost, or what it says."""
    own = line().keys() - {"worker"}
    named = list(facts())
    assert len(named) > 50
    assert [(place, fact) for place, fact in named if fact in own] == []
