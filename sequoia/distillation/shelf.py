"""Texts on their way into shards."""

from __future__ import annotations

import time
from pathlib import Path

from sequoia.distillation.extent import Extent
from sequoia.distillation.shards import Record, extent_of, save_shard

SHARD_TOKENS = 32768


class Shelf:
    """Takes in texts and writes them as shards; knows how far the corpus is over all runs."""

    def __init__(self, folder: Path, shard_tokens: int = SHARD_TOKENS) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.shard_tokens = folder, shard_tokens
        self.kept = extent_of(folder)
        self.conversations, self.pieces = self.kept.conversations, self.kept.pieces
        self._records: list[Record] = []
        self._tokens = 0
        self._clock = time.monotonic() - self.kept.seconds

    def extent(self, unfinished: int = 0) -> Extent:
        """How far the corpus is, with so many tokens of texts that are being written."""
        tokens = self.kept.tokens + self._tokens + unfinished
        seconds = time.monotonic() - self._clock
        return Extent(tokens, self.conversations, self.pieces, seconds)

    def add(self, record: Record) -> None:
        """Take in a text; a shard is written once there is enough for one."""
        self._records.append(record)
        self._tokens += record.new_tokens
        if self._tokens >= self.shard_tokens:
            self.flush()

    def flush(self) -> None:
        """Write what has been taken in."""
        if not self._records:
            return
        extent = self.extent()
        save_shard(self.folder, self._records, extent)
        self.kept, self._records, self._tokens = extent, [], 0
