"""What can go wrong while a model is widened, and what is looked at before the first byte is written."""

from __future__ import annotations

import shutil
from pathlib import Path


class WidenError(Exception):
    """A model cannot be widened as asked; the message is one line.

    Attributes:
        option: the command's option that is wrong; None where none is.
    """

    def __init__(self, message: str, option: str | None = None) -> None:
        super().__init__(f"{option}: {message}" if option else message)
        self.option = option


def require_new(out: Path) -> None:
    """Check that nothing would be overwritten.

    Raises:
        WidenError: `out` is there and is no empty folder, or cannot be looked into.
    """
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise WidenError(f"{out} is there already: name a new or an empty folder", "--out")
    except OSError as error:
        raise WidenError(f"{out}: {error.strerror or error}", "--out") from error


def require_room(folder: Path, byte_count: int) -> None:
    """Check that a folder, which must be there, has room for what is about to be written.

    Raises:
        WidenError: it has not.
    """
    free = shutil.disk_usage(folder).free
    if free < byte_count:
        raise WidenError(
            f"{folder}: {byte_count / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free"
        )
