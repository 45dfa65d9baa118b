"""`sequoia distill`: from a target to a draft's folder, stopped and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, Qwen2Config

from sequoia.acceptance.pair import load_pair
from sequoia.distillation.budget import Budget
from sequoia.distillation.display import Moment
from sequoia.distillation.failures import DistillError
from sequoia.distillation.history import read_history
from sequoia.distillation.learning import lessons_of
from sequoia.distillation.order import Order
from sequoia.distillation.place import Place
from sequoia.distillation.preparation import prepare
from sequoia.distillation.recipe import distill
from sequoia.distillation.shards import load_shards
from sequoia.distillation.student import Student
from sequoia.runtime.loading import load_draft
from tests.tiny import byte_tokenizer, save_model, tiny_llama

CPU = torch.device("cpu")
TOKENS = 1000
CHAT = (
    "{% for m in messages %}<end>{{ m['role'] }}:{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}me:{% endif %}"
)
ALL_FILES = {
    ".work",
    "README.md",
    "acceptance.json",
    "config.json",
    "learning.png",
    "model.safetensors",
    "rejection.png",
    "sequoia_draft.json",
}
PNG = b"\x89PNG"


@pytest.fixture(scope="module", autouse=True)
def eager() -> Iterator[None]:
    """No compiler: it takes longer than everything else here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHDYNAMO_DISABLE", "1")
        yield


def tiny_target(folder: Path, kind: str = "llama", template: str | None = CHAT) -> str:
    """The folder of a random target over bytes."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    small: dict[str, Any] = {"vocab_size": 257, "initializer_range": 0.3}
    torch.manual_seed(2)
    if kind == "gpt2":
        shape: dict[str, Any] = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256}
        model = AutoModelForCausalLM.from_config(GPT2Config(**shape, **small))
    elif kind == "qwen2":
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
        heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
        model = AutoModelForCausalLM.from_config(Qwen2Config(**shape, **heads, **small))
    else:
        model = tiny_llama(257, seed=3, layers=3)
    return str(save_model(folder, model, tokenizer))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Llama with a chat template."""
    return tiny_target(tmp_path_factory.mktemp("target"))


def order_for(target: str, **changes: Any) -> Order:
    """A small order."""
    order = Order(
        target=target,
        layers="1",
        width=None,
        vocab_size=200,
        reads_features=True,
        beginning=None,
        prompts=(),
        texts=(),
        unseen=None,
        rows=8,
        batch_tokens=300,
        learning_rate=2e-3,
        seed=0,
    )
    return replace(order, **changes)


class Watcher:
    """A display that remembers, and that wants to stop at one of the reports of a stage."""

    def __init__(self, stage: str = "", reports: int = 0) -> None:
        self.stage, self.reports = stage, reports
        self.moments: list[Moment] = []
        self.said: list[str] = []

    def show(self, moment: Moment) -> None:
        self.moments.append(moment)
        if moment.stage == self.stage:
            self.reports -= 1
            if self.reports == 0:
                raise KeyboardInterrupt

    def say(self, text: str) -> None:
        self.said.append(text)


def make(order: Order, out: Path, watcher: Watcher | None = None, tokens: int = TOKENS) -> Place:
    """Run an order to its end, or to where the watcher stops it."""
    place = Place(out, out / ".work")
    place.prepare(resume=(out / ".work" / "settings.json").exists())
    distill(order, Budget(tokens=tokens), place, CPU, "sequoia distill …", watcher or Watcher())
    return place


def make_unmeasured(order: Order, out: Path, tokens: int = TOKENS) -> Place:
    """The same without the judging, which takes as long as all the rest."""
    with pytest.raises(KeyboardInterrupt):
        make(order, out, Watcher("measuring", 1), tokens)
    return Place(out, out / ".work")


def learned(place: Place) -> dict[str, torch.Tensor]:
    """The weights of a run in full precision."""
    state = torch.load(place.checkpoint / "trainer.pt", weights_only=True)
    tensors: dict[str, torch.Tensor] = state["learned"]
    return tensors


@pytest.fixture(scope="module")
def whole(target: str, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """An unbroken run."""
    return make(order_for(target), tmp_path_factory.mktemp("whole") / "draft")


def test_the_folder_holds_a_draft_and_its_papers(whole: Place, target: str) -> None:
    """An ordinary draft, its card, acceptance vectors by temperature, and two pictures."""
    assert {path.name for path in whole.out.iterdir()} == ALL_FILES
    card = (whole.out / "README.md").read_text()
    assert "sequoia distill …" in card
    assert "Unfinished" not in card
    assert "Not measured" not in card
    found = json.loads((whole.out / "acceptance.json").read_text())
    assert list(found) == ["0", "0.6", "1"]
    for one in found.values():
        assert len(one["vector"]) == 34
        assert sum(one["vector"]) == pytest.approx(1)
        assert one["positions"] > 0
        assert len(one["levels"]) == 3
    for name in ("rejection.png", "learning.png"):
        assert (whole.out / name).read_bytes().startswith(PNG)
    pair = load_pair(target, str(whole.out), "float32", "cpu")
    assert pair.draft.reads_features
    assert pair.draft.token_ids is not None
    assert len(pair.draft.token_ids) == 200


@pytest.mark.parametrize(("stage", "reports"), [("learning", 7), ("measuring", 1)])
def test_a_stopped_run_goes_on_exactly(
    stage: str, reports: int, whole: Place, target: str, tmp_path: Path
) -> None:
    """Interrupted and resumed, the weights are bit for bit those of the unbroken run."""
    watcher = Watcher(stage, reports)
    with pytest.raises(KeyboardInterrupt):
        make(order_for(target), tmp_path / "draft", watcher)
    steps = len(read_history(tmp_path / "draft/.work/history.jsonl"))
    resumed = make_unmeasured if stage == "learning" else make
    place = resumed(order_for(target), tmp_path / "draft")
    mine, theirs = learned(place), learned(whole)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name
    points = read_history(place.history)
    assert [point.step for point in points] == list(range(1, len(points) + 1))
    assert points == read_history(whole.history)
    assert steps == (reports if stage == "learning" else len(points))
    weights = [load_file(run.out / "model.safetensors") for run in (place, whole)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    if stage == "measuring":
        found = [(run.out / "acceptance.json").read_text() for run in (place, whole)]
        assert found[0] == found[1]


@pytest.mark.parametrize(("stage", "reports"), [("writing", 120), ("learning", 3)])
def test_a_stopped_run_leaves_a_draft_that_works(
    stage: str, reports: int, target: str, tmp_path: Path
) -> None:
    """The folder loads with its target, and its card says that it is not finished."""
    watcher = Watcher(stage, reports)
    with pytest.raises(KeyboardInterrupt):
        make(order_for(target), tmp_path / "draft", watcher)
    assert "--resume" in watcher.said[-1]
    assert "Unfinished" in (tmp_path / "draft/README.md").read_text()
    assert not (tmp_path / "draft/acceptance.json").exists()
    load_pair(target, str(tmp_path / "draft"), "float32", "cpu")


def test_a_stopped_corpus_is_written_on(target: str, tmp_path: Path) -> None:
    """Nothing that was written is lost, and nothing is written twice."""
    with pytest.raises(KeyboardInterrupt):
        make(order_for(target), tmp_path / "draft", Watcher("writing", 120))
    place = Place(tmp_path / "draft", tmp_path / "draft/.work")
    (before,) = load_shards(place.corpus)
    make_unmeasured(order_for(target), place.out)
    shards = load_shards(place.corpus)
    assert torch.equal(shards[0]["token_ids"], before["token_ids"])
    texts = [
        tuple(text.tolist())
        for shard in shards
        for text in torch.split(shard["token_ids"], shard["lengths"].tolist())
    ]
    assert len(set(texts)) == len(texts) > 4
    opening = prepare(order_for(target), CPU).template.opening
    assert sum(map(len, texts)) - len(opening) * len(texts) <= TOKENS + 8


def test_a_run_that_is_stopped_before_the_first_answer_leaves_no_draft(
    target: str, tmp_path: Path
) -> None:
    """There is nothing to cut a head by; what was written is kept all the same."""
    with pytest.raises(KeyboardInterrupt):
        make(order_for(target), tmp_path / "draft", Watcher("writing", 1))
    assert {path.name for path in (tmp_path / "draft").iterdir()} == {".work"}
    assert len(load_shards(tmp_path / "draft/.work/corpus")) == 1


def test_a_larger_budget_goes_on(target: str, tmp_path: Path) -> None:
    """More is written and more is learned; stopped in between, the draft stays what it is."""
    place = make_unmeasured(order_for(target), tmp_path / "draft", tokens=600)
    tensors = load_file(place.head)
    before = read_history(place.history)[-1].tokens
    weights = (place.out / "model.safetensors").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        make(order_for(target), place.out, Watcher("writing", 5))
    assert (place.out / "model.safetensors").read_bytes() == weights
    make_unmeasured(order_for(target), place.out)
    assert (place.out / "model.safetensors").read_bytes() != weights
    assert read_history(place.history)[-1].tokens > 1.5 * before
    assert torch.equal(load_file(place.head)["token_ids"], tensors["token_ids"])


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"width": 24, "layers": "0,2"}),
        ("qwen2", {"width": 16}),
        ("gpt2", {}),
        ("gpt2", {"reads_features": False, "layers": "2"}),
    ],
)
def test_any_decoder_becomes_a_draft_that_says_what_was_taught(
    kind: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    """Saved and loaded as a worker does it, the draft gives the student's logits."""
    order = order_for(tiny_target(tmp_path / "target", kind), **changes)
    place = make_unmeasured(order, tmp_path / "draft", tokens=600)
    ready = prepare(order, CPU)
    student = Student.load(place.out, ready.target).eval()
    draft = load_draft(place.out, ready.folder, torch.float32, CPU)
    example = lessons_of(ready, place).examples[0]
    ids, features = example.token_ids.long(), example.hidden.float()
    with torch.no_grad():
        (state,) = student(ids[None], features[None] if order.reads_features else None)
        expected = torch.nn.functional.linear(state[0], student.head.float())
    before = torch.cat([torch.zeros_like(features[:1]), features[:-1]])
    logits = draft.plain(ids.tolist(), before if order.reads_features else None).logits
    torch.testing.assert_close(logits, expected, rtol=0.02, atol=0.02 * float(expected.std()))
    assert draft.reads_features == order.reads_features


def test_a_draft_is_made_deeper(whole: Place, target: str, tmp_path: Path) -> None:
    """It says the same token ids as the other, has layers behind that one's, and learns with all."""
    order = order_for(target, layers="0,2", vocab_size=None, beginning=str(whole.out))
    place = make_unmeasured(order, tmp_path / "deep", tokens=3 * TOKENS)
    ready = prepare(order, CPU)
    earlier, deeper = (Student.load(one.out, ready.target) for one in (whole, place))
    assert deeper.shape.layers == (0, 2)
    assert torch.equal(deeper.head_token_ids, earlier.head_token_ids)
    assert deeper.learned()["model.layers.1.self_attn.o_proj.weight"].any()
    points = read_history(place.history)
    assert points[-1].divergence < points[0].divergence


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"layers": "1,2"}, "its layers are (0,), those of the new draft (1,)"),
        ({"width": 16}, "its width are None, those of the new draft 16"),
        ({"reads_features": False}, "its features are True"),
    ],
)
def test_a_draft_of_another_kind_is_no_beginning(
    changes: dict[str, Any], complaint: str, whole: Place, target: str, tmp_path: Path
) -> None:
    """What differs is named before anything is written."""
    order = order_for(target, vocab_size=None, beginning=str(whole.out), **changes)
    with pytest.raises(DistillError) as refused:
        make(order, tmp_path / "draft")
    assert complaint in str(refused.value)
    assert refused.value.option == "--from"


def prompts_file(folder: Path, *prompts: str) -> Path:
    """A file of prompts."""
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in prompts))
    return path


def test_a_target_without_a_chat_template_continues_prompts_and_reads_text(
    tmp_path: Path,
) -> None:
    """Raw prompts take the place of conversations, and text is up to half of the corpus."""
    target = tiny_target(tmp_path / "target", template=None)
    prompts = prompts_file(tmp_path, "Once upon", "In the beginning", "Der Hahn")
    text = tmp_path / "text.txt"
    text.write_text("All that is gold does not glitter. " * 40)
    order = order_for(target, prompts=(prompts,), texts=(text,))
    watcher = Watcher("learning", 1)
    with pytest.raises(KeyboardInterrupt):
        make(order, tmp_path / "draft", watcher)
    place = Place(tmp_path / "draft", tmp_path / "draft/.work")
    assert any("no chat template" in line for line in watcher.said)
    starts = torch.cat([shard["answer_starts"] for shard in load_shards(place.corpus)]).tolist()
    assert {1, len("Once upon"), len("In the beginning")} <= set(starts)


def test_text_alone_is_enough(tmp_path: Path) -> None:
    """A target that can invent nothing learns from what it reads."""
    text = tmp_path / "text.txt"
    text.write_text("Not all those who wander are lost. " * 80)
    order = order_for(tiny_target(tmp_path / "target", template=None), texts=(text,))
    place = make_unmeasured(order, tmp_path / "draft")
    assert {x for shard in load_shards(place.corpus) for x in shard["answer_starts"].tolist()} == {
        1
    }
    assert (place.out / "model.safetensors").exists()


def test_unseen_prompts_are_judged_by_and_nothing_is_held_out(target: str, tmp_path: Path) -> None:
    """With prompts of its own to be judged by, the draft learns from the whole corpus."""
    order = order_for(target, unseen=prompts_file(tmp_path, "Why?", "What for?"))
    place = make_unmeasured(order, tmp_path / "draft")
    lessons = lessons_of(prepare(order, CPU), place)
    assert len(lessons.unseen) == 2
    held_out = lessons_of(prepare(order_for(target), CPU), place)
    assert len(held_out.examples) < len(lessons.examples)
    assert not {tuple(x.token_ids[: x.answer_start].tolist()) for x in held_out.examples} & set(
        held_out.unseen
    )


def test_a_budget_without_an_answer_says_so(target: str, tmp_path: Path) -> None:
    """A corpus can be too small to learn from; a larger budget goes on with it."""
    with pytest.raises(DistillError, match="raise it and go on with --resume"):
        make(order_for(target), tmp_path / "draft", tokens=3)
    make_unmeasured(order_for(target), tmp_path / "draft", tokens=600)


def test_two_runs_do_not_share_a_folder(target: str, tmp_path: Path) -> None:
    """The second one is told that it is not alone."""
    place = Place(tmp_path / "draft", tmp_path / "work")
    place.prepare(resume=False)
    with place.claimed(), pytest.raises(DistillError, match="another run"):
        make_in(place, target)


def make_in(place: Place, target: str) -> None:
    """A run in a folder of its own for the work."""
    distill(order_for(target), Budget(tokens=TOKENS), place, CPU, "", Watcher())


def test_the_process_stops_between_steps_and_goes_on(target: str, tmp_path: Path) -> None:
    """SIGINT ends the whole command with status 130, a draft, and log lines on stderr."""
    arguments = [sys.executable, "-m", "sequoia", "distill", "--target", target]
    arguments += ["--out", str(tmp_path / "draft"), "--tokens", "20000", "--rows", "8"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(arguments, env=environment, **pipes) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        line = next(line for line in process.stderr if line.startswith("==> writing: 5%"))
        process.send_signal(signal.SIGINT)
        rest, stdout = process.stderr.read(), process.stdout.read()
    assert process.returncode == 130
    assert "a second" in line
    assert "left" in line
    assert "--resume goes on" in rest
    assert stdout == ""
    load_pair(target, str(tmp_path / "draft"), "float32", "cpu")
