"""From tokens to text to show: whole characters only, and nothing a stop string takes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"

Decode = Callable[[Sequence[int]], str]


class TextStream:
    """Turns tokens into text deltas as they come.

    New tokens are decoded together with a few before them, because many tokenizers write the same
    token differently at the start of a text.
    """

    def __init__(self, decode: Decode, stop_strings: Sequence[str] = ()) -> None:
        self.stop_string = ""  # the one that was found
        self._decode = decode
        self._stop_strings = stop_strings
        self._window: list[int] = []  # the tokens that are decoded together
        self._context_count = 0  # tokens of the window whose text has been read
        self._read_length = 0  # characters of the window's text that have been read
        self._held = ""

    def push(self, token_id: int) -> str:
        """Text that this token makes certain; may be empty, and is once a stop string was found."""
        self._window.append(token_id)
        self._held += self._new_characters()
        certain, self._held = self._split_at_stop()
        return certain

    def flush(self) -> str:
        """The rest of the text, when no more tokens follow; a broken last character is dropped."""
        rest, self._held = self._held, ""
        return rest

    def _new_characters(self) -> str:
        """The whole characters that the last token completed."""
        text = self._decode(self._window)
        whole = text.rstrip(INCOMPLETE)
        new = whole[self._read_length :]
        self._read_length = max(self._read_length, len(whole))
        if new and whole == text:
            self._window = self._window[self._context_count :]
            self._context_count = len(self._window)
            self._read_length = len(self._decode(self._window))
        elif whole and whole == text:
            self._window.pop()  # a special token, which no text shows
        return new

    def _split_at_stop(self) -> tuple[str, str]:
        """What can be shown, and what must wait."""
        if self.stop_string:
            return "", ""
        found = [(self._held.find(stop), stop) for stop in self._stop_strings if stop in self._held]
        if found:
            index, self.stop_string = min(found)
            return self._held[:index], ""
        waiting = max((_overlap(self._held, stop) for stop in self._stop_strings), default=0)
        certain = len(self._held) - waiting
        return self._held[:certain], self._held[certain:]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if stop.startswith(text[-n:])), 0)
