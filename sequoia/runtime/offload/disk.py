"""Reads past the page cache, so that what is streamed does not fill the machine's memory."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import weakref
from collections.abc import Iterable
from pathlib import Path

import structlog
import torch
from torch import Tensor

from sequoia.runtime.catalogue import ModelError
from sequoia.runtime.offload.extents import BLOCK_BYTES, Extent, Layout

log = structlog.get_logger(__name__)

READ_BYTES = 4 * 2**20  # of one call; the disk is idle between two


class Pages:
    """Memory in whole pages, as direct reads need it.

    Attributes:
        bytes: the same memory as a tensor, uint8 `[byte_count]`.
    """

    def __init__(self, byte_count: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        memory = mmap.mmap(-1, max(byte_count, BLOCK_BYTES), flags=flags)
        with contextlib.suppress(AttributeError, OSError):  # a system without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
        self.view = memoryview(memory)
        self.bytes: Tensor = torch.frombuffer(memory, dtype=torch.uint8)


class Disk:
    """The files of a checkpoint, open for reading.

    Where the file system takes no direct reads, the page cache is told to forget what was read.

    Raises:
        ModelError: a file cannot be opened.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.read_bytes = 0
        self._files: dict[Path, tuple[int, bool]] = {}  # descriptor, and whether it is direct
        self._sizes: dict[Path, int] = {}
        for path in sorted(set(paths)):
            try:
                self._files[path] = _opened(path)
                self._sizes[path] = path.stat().st_size
            except OSError as error:
                raise ModelError(f"{path}: {error.strerror}") from error
        weakref.finalize(self, _close, [descriptor for descriptor, _ in self._files.values()])
        self.is_direct = all(is_direct for _, is_direct in self._files.values())
        if not self.is_direct:
            log.warning("no direct reads", folder=str(next(iter(self._files)).parent))

    def read(self, layout: Layout, pages: Pages) -> None:
        """Read all extents of a layout.

        Raises:
            OSError: naming the file: it cannot be read, or is shorter than it was.
        """
        for extent in layout.extents:
            self._read_extent(extent, pages.view)

    def _read_extent(self, extent: Extent, memory: memoryview) -> None:
        descriptor, is_direct = self._files[extent.path]
        needed = min(extent.byte_count, self._sizes[extent.path] - extent.start)
        done = 0
        while done < needed:
            count = min(READ_BYTES, extent.byte_count - done)
            at = extent.position + done
            try:
                read = os.preadv(descriptor, [memory[at : at + count]], extent.start + done)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(extent.path)) from error
            if not read:
                raise OSError(errno.EIO, "the file has become shorter", str(extent.path))
            if not is_direct:
                os.posix_fadvise(descriptor, extent.start + done, read, os.POSIX_FADV_DONTNEED)
            done += read
            self.read_bytes += read


def _opened(path: Path) -> tuple[int, bool]:
    """A descriptor, direct where reading a block that way works."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, os.O_RDONLY), False
    try:
        os.preadv(descriptor, [mmap.mmap(-1, BLOCK_BYTES)], 0)
    except OSError as error:
        os.close(descriptor)
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, os.O_RDONLY), False
    return descriptor, True


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
