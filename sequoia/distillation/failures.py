"""What can go wrong while a draft is made, each as one line that says what to do."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

NO_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")
# What safetensors and torch say where Python would raise OSError with ENOSPC.
NO_ROOM = ("no space left on device", "pytorchstreamwriter", "unexpected pos")


class DistillError(Exception):
    """A draft cannot be made; the message is one line.

    Attributes:
        option: the command's option that is wrong; None where none is.
    """

    def __init__(self, message: str, option: str | None = None) -> None:
        super().__init__(f"{option}: {message}" if option else message)
        self.option = option


@contextmanager
def explained(folder: Path, setting: str | None) -> Iterator[None]:
    """Say of a full disk and of too little memory what to do; let every other error through.

    Args:
        folder: what the block writes to.
        setting: the option that lowers the memory which the block needs; None where none does.

    Raises:
        DistillError: there was no room, or no memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError, SafetensorError) as error:
        if is_out_of_memory(error):
            advice = f": lower {setting} and go on with --resume" if setting else ""
            raise DistillError(f"not enough memory{advice} ({_first_line(error)})") from error
        if is_out_of_room(error):
            raise DistillError(
                f"{folder}: the disk is full, {megabytes(free_bytes(folder))} are free; what was "
                "written before is kept: make room and go on with --resume"
            ) from error
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was asked for that neither the machine nor its GPU has."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # torch.OutOfMemoryError is a RuntimeError that says "out of memory".
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in said for words in NO_MEMORY)


def is_out_of_room(error: BaseException) -> bool:
    """Whether a file could not be written for want of room."""
    if isinstance(error, OSError):
        return error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    said = str(error).lower()
    return any(words in said for words in NO_ROOM)


def require_room(folder: Path, byte_count: int, what: str) -> None:
    """Check that a folder has room for what is about to be written.

    Raises:
        DistillError: it has not.
    """
    free = free_bytes(folder)
    if free < byte_count:
        raise DistillError(
            f"{folder}: {what} take about {megabytes(byte_count)}, and {megabytes(free)} are free: "
            "make room, lower the budget, or name another folder with --work"
        )


def free_bytes(folder: Path) -> int:
    """Bytes that can be written below a folder, which need not be there yet."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def megabytes(byte_count: int) -> str:
    """A size for people."""
    return f"{byte_count / 1e6:,.0f} MB"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
