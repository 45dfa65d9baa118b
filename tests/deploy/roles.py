"""What a role reads, as its own command line says."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import pytest
import typer.main

ROLES = ("coordinator", "draft_service", "target_service", "planner")
# Read by no option: where models are, and what the hub's library reads.
OTHERS = frozenset({"SEQUOIA_CACHE", "HF_HOME", "HF_HUB_OFFLINE", "HF_TOKEN", "HF_TOKEN_PATH"})


@cache
def command(role: str) -> Any:
    """The role's command line, as click or typer's own copy of it has it."""
    return typer.main.get_command(importlib.import_module(f"{role}.__main__").app)


def variables(role: str) -> frozenset[str]:
    """Every variable that the role reads."""
    named = [parameter.envvar or [] for parameter in command(role).params]
    return OTHERS.union(*([one] if isinstance(one, str) else one for one in named))


def default_port(role: str) -> int:
    """Where it listens when nobody says."""
    (port,) = (one.default for one in command(role).params if one.name == "port")
    assert isinstance(port, int)
    return port


def read_options(
    role: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> dict[str, object]:
    """The options that a role would start with; a wrong value raises, and names its option."""
    with monkeypatch.context() as patched:
        for name, value in environment.items():
            patched.setenv(name, value)
        with command(role).make_context(role, [], None) as context:
            return dict(context.params)
