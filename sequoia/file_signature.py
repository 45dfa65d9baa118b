"""Whether a file is still the one that was read."""

from __future__ import annotations

from pathlib import Path

FileSignature = tuple[int, int, int]


def file_signature(path: Path) -> FileSignature:
    """Changes when the file is written or replaced; all 0 where there is none."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_mtime_ns, found.st_size, found.st_ino
