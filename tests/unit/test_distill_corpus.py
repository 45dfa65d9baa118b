"""Conversations, foreign text, and the corpus that is made of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from sequoia.distillation.conversation import Conversation, conversations
from sequoia.distillation.corpus import Writer, read_corpus, write_corpus
from sequoia.distillation.decode_llama import LlamaDecoder
from sequoia.distillation.extent import Extent, Limit
from sequoia.distillation.failures import DistillError
from sequoia.distillation.foreign import pieces, require_text
from sequoia.distillation.loss import examples_of
from sequoia.distillation.shards import extent_of, load_shards
from sequoia.distillation.shelf import Shelf
from sequoia.distillation.target import Target
from sequoia.distillation.template import Template, TemplateError
from tests.tiny import byte_tokenizer, save_model, tiny_llama, word_tokenizer

WORDS = 40
ENDS = frozenset({0})
TEMPLATE = Template((1, 3, 4), (1, 4), (2, 5), ENDS | {2}, ENDS | {2})
RAW = Template((), (), (), ENDS, ENDS)
CHAT = (
    "{% for m in messages %}<end>{{ m['role'] }}:{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}me:{% endif %}"
)
END = 256


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    """A target over words."""
    folder = tmp_path_factory.mktemp("target")
    save_model(folder, tiny_llama(WORDS, seed=1), word_tokenizer(WORDS))
    return Target.load("tiny", folder, torch.device("cpu"))


def decoder_of(target: Target, rows: int, length: int) -> LlamaDecoder:
    """In fp32, so that every pass says the same."""
    return LlamaDecoder(target.config, target.weights, rows, length, torch.float32)


def chat_tokenizer(template: str | None = CHAT) -> Any:
    """Bytes, with a template whose turns a special token ends."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def ids(text: str) -> tuple[int, ...]:
    """Token ids of a text with `<end>` in it."""
    return tuple(chat_tokenizer().encode(text))


def written(writer: Writer) -> list[Conversation]:
    """All that a writer has to write."""
    found = []
    while writer.unfinished:
        found += writer.step()
    return found


def test_the_template_is_read_off_a_rendered_turn() -> None:
    """Opening, bare opening and what stands between the turns; the end of a turn ends both."""
    tokenizer = chat_tokenizer("sys<end>user:{{ messages[0]['content'] }}<end>me:")
    template = Template.of(tokenizer, frozenset({7}))
    assert template.opening == ids("sys<end>user:")
    assert template.bare == template.opening  # no special token shows where a turn begins
    assert template.middle == ids("<end>me:")
    assert template.user_ends == template.answer_ends == {7, END}
    assert template.invents


def test_the_bare_opening_is_that_of_the_last_turn() -> None:
    """A system block in front of the user's turn is left out."""
    tokenizer = chat_tokenizer("<end>sys:be nice<end>user:{{ messages[0]['content'] }}<end>me:")
    template = Template.of(tokenizer, frozenset())
    assert template.opening == ids("<end>sys:be nice<end>user:")
    assert template.bare == ids("<end>user:")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "no chat template"),
        ("{{ raise_exception('no users') }}", "no users"),
        ("hello", "does not write the user's text once"),
        ("{{ messages[0]['content'] * 2 }}", "does not write the user's text once"),
    ],
)
def test_a_template_of_no_use_says_why(template: str | None, words: str) -> None:
    """None at all, one that fails, one that does not repeat what the user says."""
    with pytest.raises(TemplateError, match=words):
        Template.of(chat_tokenizer(template), frozenset())


def test_a_conversation_is_forced_where_the_template_speaks(target: Target) -> None:
    """Opening, prompt and turn change stand as given; the answer begins right after them."""
    asked = Conversation(TEMPLATE.opening, (11, 12), 1.0, 0.0, limit=15)
    invented = Conversation(TEMPLATE.bare, None, 1.0, 1.0, limit=15)
    stream = iter([asked, invented])
    decoder = decoder_of(target, 1, 16)
    found = written(Writer(decoder, TEMPLATE, stream, torch.Generator().manual_seed(0), rows=1))
    assert found == [asked, invented]
    assert asked.token_ids[:7] == [1, 3, 4, 11, 12, 2, 5]
    assert asked.answer_start == 7
    assert tuple(invented.token_ids[:2]) == TEMPLATE.bare
    assert all(len(one.features) == len(one.token_ids) <= 15 for one in found)


def test_a_user_turn_ends_where_the_target_ends_it() -> None:
    """The words up to the end of the turn are the user's, then the template speaks."""
    talk = Conversation((1, 4), None, 1.0, 0.5, limit=50, token_ids=[1, 4], upcoming=8)
    said = []
    for drawn in (9, 2, 30, 31, 32, 33, 2):
        said.append((talk.upcoming, talk.temperature))
        talk.token_ids.append(talk.upcoming)
        goes_on = talk.advance(drawn, TEMPLATE)
    assert said == [(8, 1.0), (9, 1.0), (2, 0.5), (5, 0.5), (31, 0.5), (32, 0.5), (33, 0.5)]
    assert talk.answer_start == 6
    assert not goes_on


def test_a_text_without_a_template_is_continued_as_it_is(target: Target) -> None:
    """The prompt comes first, and what follows is the target's."""
    stream = conversations(RAW, [(11, 12, 13)], 16, 0, seed=0)
    decoder = decoder_of(target, 1, 16)
    writer = Writer(decoder, RAW, itertools.islice(stream, 2), torch.Generator(), rows=1)
    first, second = written(writer)
    assert first.token_ids[:3] == second.token_ids[:3] == [11, 12, 13]
    assert first.answer_start == 3
    assert list(conversations(RAW, [], 16, 0, seed=0)) == []


def test_conversations_are_a_function_of_seed_and_number() -> None:
    """A later start gives the rest of the same list; some answer given prompts, others invent."""
    prompts = [(11, 12), (13, 14)]
    whole = list(itertools.islice(conversations(TEMPLATE, prompts, 64, 0, seed=3), 30))
    rest = list(itertools.islice(conversations(TEMPLATE, prompts, 64, 10, seed=3), 20))
    assert whole[10:] == rest
    asked = [one for one in whole if one.prompt is not None]
    assert [one.prompt for one in asked] == [(11, 12), (13, 14)] * 2 + [(11, 12)]
    assert [one.answer_temperature for one in asked] == [0.0, 0.0, 0.6, 0.6, 1.0]
    assert len({one.answer_temperature for one in whole}) > 2


def test_a_long_prompt_leaves_room_for_an_answer() -> None:
    """It is cut, and the conversation is long enough to go on behind it."""
    long = tuple(range(3, 40)) * 3
    one = next(conversations(TEMPLATE, [long], 64, 0, seed=0))
    assert one.prompt is not None
    assert len(TEMPLATE.around(one.prompt)) + 8 <= one.limit <= 64


def test_a_corpus_goes_on_with_new_conversations(target: Target, tmp_path: Path) -> None:
    """A second run adds to the first one's shards and repeats none of its conversations."""
    for limit in (200, 400):
        shelf = Shelf(tmp_path, shard_tokens=64)
        write_corpus(decoder_of(target, 4, 24), TEMPLATE, [], shelf, Limit(tokens=limit))
        assert limit <= extent_of(tmp_path).tokens < limit + 8
    texts = [tuple(example.token_ids.tolist()) for example in examples_of(load_shards(tmp_path))]
    assert len(texts) > 4
    assert len(set(texts)) == len(texts)


def test_the_same_seed_writes_the_same_corpus(target: Target, tmp_path: Path) -> None:
    """An unbroken run is a function of its settings."""
    for name in ("one", "two"):
        shelf = Shelf(tmp_path / name, shard_tokens=64)
        write_corpus(decoder_of(target, 4, 24), TEMPLATE, [], shelf, Limit(tokens=200), seed=5)
    one, two = (load_shards(tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two) > 1
    for first, second in zip(one, two, strict=True):
        assert torch.equal(first["token_ids"], second["token_ids"])
        assert torch.equal(first["hidden"], second["hidden"])


def interrupt_at(tokens: int) -> Callable[[Extent], None]:
    """A report that wants to stop."""

    def report(extent: Extent) -> None:
        if extent.tokens >= tokens:
            raise KeyboardInterrupt

    return report


def test_an_interrupted_corpus_keeps_what_was_written(target: Target, tmp_path: Path) -> None:
    """Conversations are cut where they are, so that every token that was reported is there."""
    shelf = Shelf(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        write_corpus(
            decoder_of(target, 4, 64),
            TEMPLATE,
            [(11, 12)],
            shelf,
            Limit(tokens=10_000),
            report=interrupt_at(50),
        )
    kept = extent_of(tmp_path)
    assert 50 <= kept.tokens < 54
    assert kept.conversations >= 4
    (shard,) = load_shards(tmp_path)
    assert len(shard["token_ids"]) == len(shard["hidden"]) == int(shard["lengths"].sum())


def test_stored_features_give_back_the_targets_distribution(target: Target, tmp_path: Path) -> None:
    """A shard read back holds the feature after each of its tokens."""
    shelf = Shelf(tmp_path)
    decoder = decoder_of(target, 1, 32)
    # The first of the given prompts is answered greedily.
    write_corpus(decoder, RAW, [(11, 12)], shelf, Limit(tokens=20))
    example = examples_of(load_shards(tmp_path))[0]
    greedy = F.linear(example.hidden.float(), target.head).argmax(-1)
    start = example.answer_start
    agreed = greedy[start - 1 : -1] == example.token_ids[start:]
    assert agreed.float().mean() > 0.9  # features are kept in bfloat16


def test_foreign_text_is_read_piece_by_piece(target: Target, tmp_path: Path) -> None:
    """Every position is learned, the features are the target's, and a later run reads on."""
    texts = [[3 + (i * 7 + j) % 30 for j in range(12)] for i in range(20)]
    for limit in (60, 1000):
        read_corpus(target, iter(texts), Shelf(tmp_path), Limit(tokens=limit))
        assert extent_of(tmp_path).pieces == {60: 5, 1000: 20}[limit]
    examples = examples_of(load_shards(tmp_path))
    assert [example.token_ids.tolist() for example in examples] == texts
    assert {example.answer_start for example in examples} == {1}
    expected = target.model.plain(texts[9]).features
    torch.testing.assert_close(examples[9].hidden.float(), expected, rtol=0.1, atol=0.1)


def test_text_is_cut_into_pieces(tmp_path: Path) -> None:
    """No token is lost or said twice, whatever the blocks in which files are read."""
    words = [f"w{index % 30 + 2}" for index in range(3000)]
    (tmp_path / "a.txt").write_text(" ".join(words[:2000]))
    (tmp_path / "b.txt").write_text(" ".join(words[2000:]))
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    found = list(pieces(files, word_tokenizer(WORDS), 16))
    assert {len(piece) for piece in found[:-1]} == {16}
    # A word at the border of two blocks may be torn in two.
    assert abs(sum(map(len, found)) - 3000) <= 10


def test_pieces_begin_as_the_tokenizer_begins_a_text(tmp_path: Path) -> None:
    """A target that is used to a first token finds it in front of every piece."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = word_tokenizer(WORDS)
    tokenizer.bos_token = "w2"  # noqa: S105 a token, no password
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="w2 $A", special_tokens=[("w2", 2)]
    )
    (tmp_path / "a.txt").write_text("w5 w6 w7 w8 w9")
    assert list(pieces([tmp_path / "a.txt"], tokenizer, 4)) == [[2, 5, 6, 7], [2, 8, 9]]
    assert Template.none(tokenizer, ENDS).opening == (2,)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "cannot be read"), (b" \n\n", "holds no text"), (b"caf\xe9", "is not UTF-8")],
)
def test_a_text_that_cannot_be_read_is_named(
    content: bytes | None, words: str, tmp_path: Path
) -> None:
    """Missing, empty or in another encoding."""
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DistillError, match=words) as caught:
        require_text([path])
    assert str(path) in str(caught.value)
    assert caught.value.option == "--text"
