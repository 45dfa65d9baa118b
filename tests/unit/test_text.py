from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from coordinator.text import INCOMPLETE, Decode, TextStream
from tests.tiny import byte_tokenizer

BYTES = byte_tokenizer()
VOCABULARY = BYTES.get_vocab()
END = VOCABULARY["<end>"]
SYMBOLS = bytes_to_unicode()

# Whole characters of 1 to 4 bytes, a real replacement character, and bytes that are none.
WHOLE = [b"a", b" ", "é".encode(), "€".encode(), "😀".encode(), INCOMPLETE.encode()]
BROKEN = [b"\x80", b"\xff", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98"]
byte_texts = st.lists(st.sampled_from(WHOLE + BROKEN), max_size=20).map(b"".join)


def decoder_of(tokenizer: PreTrainedTokenizerFast) -> Decode:
    """Decoding as the coordinator does it, special tokens left out."""

    def decode(token_ids: Sequence[int]) -> str:
        text = tokenizer.decode(list(token_ids), skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    return decode


decode_bytes = decoder_of(BYTES)


def ids_of(text: str | bytes) -> list[int]:
    """The tokens of a text, one per byte."""
    data = text.encode() if isinstance(text, str) else text
    return [VOCABULARY[SYMBOLS[byte]] for byte in data]


def deltas(
    token_ids: Sequence[int], stops: Sequence[str] = (), decode: Decode = decode_bytes
) -> Iterator[str]:
    """Everything that a stream shows, to the end of the tokens."""
    stream = TextStream(decode, stops)
    for token_id in token_ids:
        yield stream.push(token_id)
    yield stream.flush()


def word_decoder(*words: str) -> Decode:
    """A tokenizer whose token i is the i-th of some words, glued together as they are."""
    return lambda token_ids: "".join(words[token_id] for token_id in token_ids)


def shown(words: Sequence[str], *stops: str) -> tuple[str, str]:
    """The text shown of a sequence of tokens, and the stop string that ended it."""
    stream = TextStream(word_decoder(*words), stops)
    text = "".join(stream.push(index) for index in range(len(words)))
    return text + stream.flush(), stream.stop_string


@given(byte_texts)
@example(b"\x80\x80\x80" + "😀".encode())
@example(INCOMPLETE.encode() + "😀".encode())
@example(b"\x80" * 70 + "😀".encode() + b"a")
def test_deltas_add_up_to_the_text(data: bytes) -> None:
    """Whatever the bytes, they are the full decode, but for a broken character at its end."""
    token_ids = ids_of(data)
    assert "".join(deltas(token_ids)) == decode_bytes(token_ids).rstrip(INCOMPLETE)


@given(byte_texts)
def test_every_delta_continues_the_text(data: bytes) -> None:
    """What was shown is at any time the beginning of the full text: no half characters."""
    token_ids = ids_of(data)
    full, text = decode_bytes(token_ids), ""
    for delta in deltas(token_ids):
        text += delta
        assert full.startswith(text)


def test_a_character_is_shown_with_its_last_byte() -> None:
    """Three tokens of a four-byte character show nothing, the fourth shows it whole."""
    assert list(deltas(ids_of("a😀b"))) == ["a", "", "", "", "😀", "b", ""]


def test_text_before_a_broken_character_is_not_held_back() -> None:
    """A token that ends in half a character shows the whole ones before it."""
    stream = TextStream(word_decoder("hello " + INCOMPLETE, "…"))
    assert stream.push(0) == "hello "


def test_half_a_character_at_the_end_is_dropped() -> None:
    """What can no longer become a character is not shown."""
    assert "".join(deltas(ids_of("ab" + "😀")[:-1])) == "ab"


def test_special_tokens_have_no_text() -> None:
    """They neither show nor disturb what stands around them, half characters included."""
    first, *rest = ids_of("é")
    token_ids = [END, *ids_of("a"), END, END, first, END, *rest, *ids_of("b"), END]
    assert "".join(deltas(token_ids)) == "aéb"


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """Words as sentencepiece has them, a space before each, and bytes as a fallback."""
    names = ["<end>", "▁Hello", "▁world", "▁", "!", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")  # noqa: S106 a token


SENTENCEPIECE = sentencepiece_tokenizer()
EURO = [5 + byte for byte in "€".encode()]


@given(st.lists(st.sampled_from([[0], [1], [2], [3], [4], EURO]), max_size=15))
def test_the_space_before_a_word_is_kept(parts: list[list[int]]) -> None:
    """Tokenizers that drop the first space of a text do not drop it in the middle."""
    decode = decoder_of(SENTENCEPIECE)
    token_ids = [token_id for part in parts for token_id in part]
    assert "".join(deltas(token_ids, decode=decode)) == decode(token_ids)


def test_a_long_run_of_special_tokens_is_decoded_only_once() -> None:
    """The tokens decoded together stay few, so that a long text costs no more per token."""
    longest = 0

    def decode(token_ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(token_ids))
        return decode_bytes(token_ids)

    text = [*ids_of("a" * 100), *[END] * 100, *ids_of("é" * 100)]
    assert "".join(deltas(text, decode=decode)) == "a" * 100 + "é" * 100
    assert longest <= 8


@pytest.mark.parametrize(
    ("words", "stops", "text", "stop"),
    [
        (["one ", "STOP", " two"], ["STOP"], "one ", "STOP"),
        (["one S", "TO", "P two"], ["STOP"], "one ", "STOP"),
        (["one xSTOPx two"], ["STOP"], "one x", "STOP"),
        (["STOP"], ["STOP"], "", "STOP"),
        (["one STO", "NE"], ["STOP"], "one STONE", ""),
        (["one STO"], ["STOP"], "one STO", ""),
        (["aab", "aab", "aac"], ["aabaac"], "aab", "aabaac"),
        (["a", "a", "a", "b"], ["aab"], "a", "aab"),
        (["x", "y", "z"], ["yz", "xy"], "", "xy"),
        (["xyz"], ["yz", "xy"], "", "xy"),
        (["xyz"], ["z", "y"], "x", "y"),
        (["ab", "cd"], ["abc", "ab"], "", "ab"),
        (["abcd"], ["abc", "ab"], "", "ab"),
        (["1\n", "\nUser", ":"], ["\n\nUser:", "\n\n\n"], "1", "\n\nUser:"),
        (["naïve ", "é", "!"], ["é!"], "naïve ", "é!"),
    ],
)
def test_text_ends_before_the_stop_string(
    words: list[str], stops: list[str], text: str, stop: str
) -> None:
    """Across tokens, inside one, overlapping, one in another: the earliest stop wins."""
    assert shown(words, *stops) == (text, stop)


def test_what_may_become_a_stop_string_waits() -> None:
    """It is held back while it may, and shown as soon as it cannot any more."""
    words = ["a", "S", "T", "x", "b"]
    stream = TextStream(word_decoder(*words), ["STOP"])
    assert [stream.push(index) for index in range(5)] == ["a", "", "", "STx", "b"]


def test_nothing_is_shown_after_a_stop_string() -> None:
    """Further tokens, and the flush, have no text."""
    stream = TextStream(word_decoder("STOP", "more"), ["STOP"])
    assert [stream.push(0), stream.push(1), stream.flush()] == ["", "", ""]


def test_a_flush_shows_what_was_waiting_once() -> None:
    """The beginning of a stop string that never came is text."""
    stream = TextStream(word_decoder("aST"), ["STOP"])
    assert [stream.push(0), stream.flush(), stream.flush()] == ["a", "ST", ""]


def test_a_stop_string_may_end_before_half_a_character() -> None:
    """Text that stands before a broken last character can complete a stop string too."""
    assert shown(["ST", "OP" + INCOMPLETE], "STOP") == ("", "STOP")


stop_lists = st.lists(st.text("ab ", min_size=1, max_size=4), min_size=1, max_size=4)


@given(st.lists(st.text("ab ", max_size=3), max_size=12), stop_lists)
def test_no_text_is_ever_taken_back(words: list[str], stops: list[str]) -> None:
    """What is shown is the beginning of the final text, which ends before its first stop."""
    stream, text, parts = TextStream(word_decoder(*words), stops), "", []
    for index in range(len(words)):
        parts.append(stream.push(index))
        text += words[index]
        if stream.stop_string:
            break
    parts.append(stream.flush())
    first = min((text.find(stop) for stop in stops if stop in text), default=len(text))
    assert "".join(parts) == text[:first]
    assert bool(stream.stop_string) == (first < len(text))
