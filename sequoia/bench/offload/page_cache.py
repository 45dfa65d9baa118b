"""The page cache's share of a model: the kernel keeps what was read as long as there is room.

A process that reads its weights through the page cache uses all memory of the machine, whatever budget it
was given. To hold it to the budget, pages are handed back as soon as they have been used.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np


def drop_cached(files: Iterable[Path]) -> None:
    """Hand the files' pages back, but for those that some process has mapped."""
    for file in files:
        drop_range(file, 0, 0)


def drop_range(file: Path, start: int, byte_count: int) -> None:
    """The same for a range of a file; 0 bytes mean up to its end."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, start, byte_count, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def cached_bytes(files: Iterable[Path]) -> int:
    """Bytes of the files that are in the page cache now; files must not be empty."""
    return sum(map(_cached_bytes, files))


def _cached_bytes(file: Path) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        view = np.frombuffer(mapped, dtype=np.uint8)
        pages = np.zeros(-(-len(mapped) // mmap.PAGESIZE), dtype=np.uint8)
        failed = libc.mincore(
            ctypes.c_void_p(view.ctypes.data),
            ctypes.c_size_t(len(mapped)),
            ctypes.c_void_p(pages.ctypes.data),
        )
        del view  # a mapping with a view on it cannot be closed
        if failed:
            raise OSError(ctypes.get_errno(), f"mincore of {file}")
    return int((pages & 1).sum()) * mmap.PAGESIZE
