"""The disk by itself: how fast the checkpoint can be read past the page cache, from end to end."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from sequoia.bench.errors import UnavailableError

BLOCK_BYTES = 4 * 2**20


class DiskReader:
    """Reads files one after the other with direct reads, and begins again at the end of the last.

    Every call goes on where the one before stopped, so that no cache in the device is asked twice for
    the same bytes within a round.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._blocks = [
            (file, start) for file in files for start in range(0, file.stat().st_size, BLOCK_BYTES)
        ]
        self._next = 0

    def bytes_per_second(self, byte_count: int) -> float:
        """The rate over so many bytes, in whole blocks, and over at most one round of all files.

        Raises:
            UnavailableError: the files cannot be read so, as on file systems without direct reads.
        """
        count = min(-(-byte_count // BLOCK_BYTES), len(self._blocks))
        places = [self._blocks[(self._next + step) % len(self._blocks)] for step in range(count)]
        self._next = (self._next + count) % len(self._blocks)
        try:
            with ExitStack() as cleanup:
                buffer = cleanup.enter_context(
                    mmap.mmap(-1, BLOCK_BYTES)
                )  # direct reads want pages
                descriptors = {}
                for file in {file for file, _ in places}:
                    descriptors[file] = os.open(file, os.O_RDONLY | os.O_DIRECT)
                    cleanup.callback(os.close, descriptors[file])
                started = time.perf_counter()
                done = sum(os.preadv(descriptors[file], [buffer], start) for file, start in places)
                return done / (time.perf_counter() - started)
        except OSError as error:
            raise UnavailableError(f"direct reads of {places[0][0]}: {error.strerror}") from error
