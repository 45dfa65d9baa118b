"""A system to talk to: the one at an address, or one of our own for the length of a command."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from sequoia import config
from sequoia.embedded_valkey import EmbeddedValkeyError
from sequoia.launcher import LaunchError, LaunchOptions, LocalSystem
from sequoia.log import configure_logging
from sequoia.runtime.catalogue import ModelError, default_draft, resolve
from sequoia.runtime.progress import stderr_progress

LOG_TAIL_LINES = 15


@contextmanager
def quiet_system(options: LaunchOptions) -> Iterator[LocalSystem]:
    """A system whose logs go to a file; progress and the launcher's warnings are told on stderr.

    Ends the process with status 1 and one clear message when the system does not start.
    """
    configure_logging("launcher", config.LogLevel.WARNING)
    fetch_models(options)
    with tempfile.NamedTemporaryFile(prefix="sequoia-", suffix=".log") as errors:
        try:
            with LocalSystem(options, errors, say) as system:
                yield system
        except (LaunchError, EmbeddedValkeyError) as error:
            lines = Path(errors.name).read_text(encoding="utf-8", errors="replace").splitlines()
            complaints = [line for line in lines if line.startswith(("error:", "Error:"))]
            for line in complaints or lines[-LOG_TAIL_LINES:]:
                typer.echo(line, err=True)
            config.fail(str(error))


def fetch_models(options: LaunchOptions) -> None:
    """Find, fetch and convert the models before any role needs them.

    Ends the process with status 1 when a model cannot be had.
    """
    try:
        with stderr_progress() as progress:
            resolve(options.target, progress=progress)
            reference = options.draft or default_draft(options.target)
            if reference is None:
                config.fail(f"{options.target} has no draft of its own: name one with --draft")
            resolve(reference, progress=progress)
    except ModelError as error:
        config.fail(str(error))


def interrupt_on_terminate() -> None:
    """Treat SIGTERM like Ctrl-C, so that both end the children."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def say(what: str) -> None:
    """Tell on stderr what goes on."""
    typer.echo(f"==> {what}", err=True)
