"""What the kernel says of a process: its memory and what it has read. Linux alone tells."""

from __future__ import annotations

from pathlib import Path

from sequoia.proc import read_field


def peak_memory(pid: int) -> int | None:
    """The most bytes that were resident at a time; None when the process is gone."""
    return read_field(Path(f"/proc/{pid}/status"), "VmHWM")


def bytes_read(pid: int) -> int | None:
    """Bytes that a process has had read from disks, page faults included; None when it is gone.

    What came out of the page cache is not counted.
    """
    return read_field(Path(f"/proc/{pid}/io"), "read_bytes")
