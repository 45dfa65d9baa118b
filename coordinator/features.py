"""The target's features of one sequence, kept for drafts that read them."""

from __future__ import annotations

import numpy as np

from sequoia.messages import Features


class FeatureHistory:
    """Features of every committed token but the last, in the order of the tokens.

    Kept here, and not on the draft worker alone, so that a draft's lost session can be rebuilt.
    """

    def __init__(self) -> None:
        self._rows: Features = np.empty((0, 0), dtype=np.uint16)
        self._count = 0

    @property
    def rows(self) -> Features:
        """All of them, `[committed tokens - 1, hidden]`."""
        return self._rows[: self._count]

    def restart(self, features: Features) -> None:
        """Begin again with what a target's prefill gave."""
        self._rows, self._count = features, len(features)

    def append(self, features: Features) -> None:
        """Add those of further positions; the room doubles as it fills."""
        end = self._count + len(features)
        if end > len(self._rows):
            grown = np.empty((2 * end, features.shape[1]), dtype=features.dtype)
            grown[: self._count] = self.rows
            self._rows = grown
        self._rows[self._count : end] = features
        self._count = end

    def last(self, count: int) -> Features:
        """Those of the last `count` positions; fewer where there are fewer."""
        return self._rows[max(self._count - count, 0) : self._count]
