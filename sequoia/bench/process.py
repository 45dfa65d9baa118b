"""What the kernel says of a process: its memory and what it has read. Linux alone tells."""

from __future__ import annotations

from pathlib import Path

KIB = 1024


def memory_field(path: Path, name: str) -> int | None:
    """Bytes in the line of a file under `/proc` that begins with a name; such lines are in KiB."""
    kib = _field(path, name)
    return None if kib is None else kib * KIB


def peak_memory(pid: int) -> int | None:
    """The most bytes that were resident at a time; None when the process is gone."""
    return memory_field(Path(f"/proc/{pid}/status"), "VmHWM:")


def bytes_read(pid: int) -> int | None:
    """Bytes that a process has had read from disks, page faults included; None when it is gone.

    What came out of the page cache is not counted.
    """
    return _field(Path(f"/proc/{pid}/io"), "read_bytes:")


def _field(path: Path, name: str) -> int | None:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), None)
