"""Numbers that Linux keeps in files under /proc."""

from __future__ import annotations

from pathlib import Path

KIB = 1024


def read_field(path: Path, name: str) -> int | None:
    """The number in the line `name:`, in bytes where it is a size; None without such a file or line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        key, _, value = line.partition(":")
        if key == name:
            number, *unit = value.split()
            return int(number) * (KIB if unit == ["kB"] else 1)
    return None
