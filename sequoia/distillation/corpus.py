"""The target writes its own training text: token ids and features, in resumable shards.

Three sources: answers to given prompts, whole conversations that the target invents from the bare
opening of its chat template, and foreign text that it reads. The features make its distribution one
matrix product away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from sequoia.distillation.conversation import Conversation, conversations
from sequoia.distillation.decode import Decoder, draw
from sequoia.distillation.extent import Extent, Limit
from sequoia.distillation.shards import Record
from sequoia.distillation.shelf import Shelf
from sequoia.distillation.target import Target
from sequoia.distillation.template import Template
from sequoia.runtime.cache import KVCache
from sequoia.runtime.segment import Segment

READ_ROWS = 8
"""Pieces of foreign text in one pass."""

Report = Callable[[Extent], None]
"""Told after every pass how far the corpus is, what is not on disk yet included."""


class Writer:
    """Conversations side by side; a row that is free takes the next of `stream`."""

    def __init__(
        self,
        decoder: Decoder,
        template: Template,
        stream: Iterator[Conversation],
        generator: torch.Generator,
        rows: int,
    ) -> None:
        self.decoder, self.template = decoder, template
        self._stream, self._generator = stream, generator
        openings = {opening for opening in (template.opening, template.bare) if opening}
        self._prefixes = {opening: decoder.prefix_of(list(opening)) for opening in openings}
        self.begun = 0
        self.rows = [self._begin(row) for row in range(rows)]

    @property
    def unfinished(self) -> list[Conversation]:
        """What is being written."""
        return [row for row in self.rows if row is not None]

    def step(self) -> list[Conversation]:
        """Write one token a row; returns the conversations that have come to their end."""
        rows = self.rows
        positions = torch.tensor([len(row.token_ids) if row else 0 for row in rows])
        features = self.decoder.step(
            torch.tensor([row.upcoming if row else 0 for row in rows]), positions
        )
        temperatures = torch.tensor([row.temperature if row else 0.0 for row in rows])
        drawn = draw(self.decoder.logits(features), temperatures, self._generator).tolist()
        kept = features.to("cpu", torch.bfloat16)
        ended = []
        for index, row in enumerate(rows):
            if row is None:
                continue
            row.token_ids.append(row.upcoming)
            row.features.append(kept[index])
            if not row.advance(drawn[index], self.template):
                ended.append(row)
                self.rows[index] = self._begin(index)
        return ended

    def _begin(self, row: int) -> Conversation | None:
        fresh = next(self._stream, None)
        if fresh is None:
            return None
        self.begun += 1
        if fresh.opening:
            prefix = self._prefixes[fresh.opening]
            self.decoder.seed(row, prefix)
            fresh.token_ids = list(fresh.opening)
            fresh.features = list(prefix.features.to("cpu", torch.bfloat16))
        if fresh.prompt is not None:
            fresh.forced.extend((*fresh.prompt, *self.template.middle))
            fresh.upcoming = fresh.forced.popleft()
        else:
            first = self.decoder.logits(prefix.features[-1:])
            fresh.upcoming = int(draw(first, torch.tensor([fresh.temperature]), self._generator))
        return fresh


def write_corpus(
    decoder: Decoder,
    template: Template,
    prompts: Sequence[tuple[int, ...]],
    shelf: Shelf,
    limit: Limit,
    *,
    rows: int | None = None,
    seed: int = 0,
    report: Report = lambda extent: None,
) -> None:
    """Let the target write until the corpus is as far as `limit` says.

    Whatever ends it, conversations that are being written are cut where they are and kept. A later
    run goes on with the conversations after these, so nothing is lost and nothing written again; it
    does not write what an unbroken run would have written. A run that dies loses what is not in a
    shard yet.

    Args:
        decoder: of the target.
        template: its chat template.
        prompts: token ids of the given ones.
        shelf: takes the conversations.
        limit: where to end.
        rows: conversations side by side; None for as many as the decoder has room for.
        seed: of all conversations.
        report: may raise, to end the writing.
    """
    begun = shelf.conversations
    generator = torch.Generator().manual_seed(seed * 1_000_003 + begun)
    if limit.reached(shelf.extent()):
        return
    stream = conversations(template, prompts, decoder.length, begun, seed)
    writer = Writer(decoder, template, stream, generator, rows or decoder.rows)
    try:
        while writer.unfinished:
            shelf.conversations = begun + writer.begun
            for row in writer.step():
                shelf.add(_record(row))
            extent = shelf.extent(sum(row.new_tokens for row in writer.unfinished))
            report(extent)
            if limit.reached(extent):
                break
    finally:
        shelf.conversations = begun + writer.begun
        for row in writer.unfinished:
            shelf.add(_record(row))
        shelf.flush()


def read_corpus(
    target: Target,
    pieces: Iterator[list[int]],
    shelf: Shelf,
    limit: Limit,
    *,
    report: Report = lambda extent: None,
) -> None:
    """Let the target read foreign text, of which every position is learned.

    A later run goes on with the pieces that follow those in `shelf`.

    Args:
        target: the model.
        pieces: token ids of the whole text, piece by piece.
        shelf: takes the pieces.
        limit: where to end.
        report: may raise, to end the reading.
    """
    for _ in range(shelf.pieces):
        next(pieces, None)
    try:
        while not limit.reached(shelf.extent()):
            group = _some(pieces, limit.tokens - shelf.extent().tokens)
            if not group:
                break
            for record in _read(target, group):
                shelf.pieces += 1
                shelf.add(record)
            report(shelf.extent())
    finally:
        shelf.flush()


def _some(pieces: Iterator[list[int]], tokens: float) -> list[list[int]]:
    """The next pieces for one pass, no more than it takes for so many tokens."""
    group: list[list[int]] = []
    while len(group) < READ_ROWS and sum(map(len, group)) < tokens:
        piece = next(pieces, None)
        if piece is None:
            break
        group.append(piece)
    return group


def _read(target: Target, pieces: Sequence[list[int]]) -> list[Record]:
    segments = [Segment.chain(KVCache(), piece) for piece in pieces]
    with torch.autocast(target.model.device.type, torch.bfloat16):
        outputs = target.model.forward(segments, with_logits=False)
    return [
        Record(piece, output.features.to("cpu", torch.bfloat16), answer_start=1, temperature=0.0)
        for piece, output in zip(pieces, outputs, strict=True)
    ]


def _record(row: Conversation) -> Record:
    return Record(
        row.token_ids,
        torch.stack(row.features),
        row.answer_start,
        row.answer_temperature,
        len(row.opening),
    )
