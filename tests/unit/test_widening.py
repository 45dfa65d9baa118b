from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner, Result

from draft_service.grower import Grower
from sequoia.acceptance.pair import load_pair
from sequoia.cli import app
from sequoia.messages import Features, GrowTree, Prefill, SessionSettings, StepHeader
from sequoia.runtime.cache import KVCache
from sequoia.runtime.catalogue import ModelError, default_draft
from sequoia.runtime.features import pack_features
from sequoia.runtime.forward import PassOutput, TreeModel
from sequoia.runtime.loading import load_draft, load_model
from sequoia.runtime.progress import Stage, silent
from sequoia.runtime.segment import Segment
from sequoia.runtime.tokenization import end_of_text_ids, load_tokenizer, tokenizer_sha256
from sequoia.runtime.worker import WorkerLimits
from sequoia.settings import DrawRule, SamplingSettings
from sequoia.tree import Topology
from sequoia.widening.failures import WidenError, require_room
from sequoia.widening.folder import widen
from sequoia.widening.shapes import OUTLINES, Outline, Shape, fit, read_outline
from tests.tiny import feature_draft, save_model, tiny_llama, word_tokenizer

WORDS = 12
TEXT = (3, 4, 5, 6, 1, 2, 7, 8)
TREE = Topology((-1, 0, 0, 1, 1, 2, 3))
TREE_TOKENS = (7, 2, 9, 4, 1, 3, 5)
CPU = torch.device("cpu")
WIDER = Outline(3, 96, 160, 96)
SMOLLM2 = Shape(layers=30, hidden=576, ffn=1536, heads=9, kv_heads=3, head_dim=64)
GREEDY = SessionSettings(SamplingSettings(temperature=0), DrawRule.GREEDY, 7, 1, WORDS)

SOURCES: dict[str, dict[str, Any]] = {
    "grouped": {},
    "tied": {"tie_word_embeddings": True},
    "as many KV heads": {"num_key_value_heads": 4},
    "one KV head": {"num_key_value_heads": 1},
    "scaled positions": {
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0}
    },
}
OUTLINE_IDS = {
    "same shape": Outline(2, 32, 64, 32),
    "more layers": Outline(5, 32, 64, 32),
    "a KV head for every head": WIDER,
    "two heads to a KV head": Outline(3, 96, 160, 48),
    "three heads to a KV head": Outline(3, 96, 64, 32),
}


def random_llama(**overrides: Any) -> Any:
    """A tiny Llama whose norms have weights of their own, and an eps that can be felt."""
    model = tiny_llama(WORDS, seed=5, **({"rms_norm_eps": 0.05} | overrides))
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
    return model


def make_source(folder: Path, **overrides: Any) -> Path:
    """The folder of such a model."""
    return save_model(folder, random_llama(**overrides), word_tokenizer(WORDS))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A target to be widened, its folder to be written to."""
    return make_source(tmp_path / "target")


def widened_to(
    out: Path, source: Path, outline: Outline = WIDER, draft: Path | None = None, **options: Any
) -> Path:
    """Widen in float32."""
    return widen(source, draft, outline, out, torch.float32, silent, **options).folder


def load(folder: Path) -> TreeModel:
    """A model in float32."""
    return load_model(folder, torch.float32, CPU)


def tree_pass(model: TreeModel) -> PassOutput:
    """What a model says of a tree behind a text."""
    cache = KVCache()
    model.prefill(cache, TEXT)
    (output,) = model.forward([Segment.tree(cache, TREE, TREE_TOKENS)])
    return output


def assert_same_words(small: PassOutput, wide: PassOutput) -> None:
    """Equal logits, equal features, and nothing but zeros behind these."""
    assert small.logits.std() > 0.5
    assert torch.allclose(small.logits, wide.logits, atol=1e-4)
    count = small.features.shape[-1]
    assert torch.allclose(small.features, wide.features[..., :count], atol=1e-4)
    assert not wide.features[..., count:].any()


@pytest.mark.parametrize("outline", OUTLINE_IDS.values(), ids=OUTLINE_IDS)
@pytest.mark.parametrize("overrides", SOURCES.values(), ids=SOURCES)
def test_the_wide_model_says_the_same(
    tmp_path: Path, overrides: dict[str, Any], outline: Outline
) -> None:
    """Logits and features, over a text and over a tree, whatever the heads of both are."""
    folder = make_source(tmp_path / "target", **overrides)
    small, wide = load(folder), load(widened_to(tmp_path / "wide", folder, outline))
    assert_same_words(small.plain(TEXT), wide.plain(TEXT))
    assert_same_words(tree_pass(small), tree_pass(wide))


@pytest.mark.parametrize("kv_heads", [24, 12, 8, 6, 4])
def test_query_heads_keep_their_kv_head(tmp_path: Path, kv_heads: int) -> None:
    """Groups of three, as the built-in target has, in groups of one to six."""
    heads = {"hidden_size": 36, "num_attention_heads": 9, "num_key_value_heads": 3}
    folder = make_source(tmp_path / "target", **heads)
    small = load(folder)
    wide = load(widened_to(tmp_path / "wide", folder, Outline(3, 96, 160, 4 * kv_heads)))
    assert wide.model.config.num_key_value_heads == kv_heads
    assert_same_words(small.plain(TEXT), wide.plain(TEXT))


def test_the_wide_model_has_the_shape_asked_for(tmp_path: Path, source: Path) -> None:
    """Its configuration says so; positions and the scale of attention stay."""
    wide = load(widened_to(tmp_path / "wide", source, Outline(3, 96, 160, 48))).model.config
    assert (wide.num_hidden_layers, wide.hidden_size, wide.intermediate_size) == (3, 96, 160)
    assert (wide.num_attention_heads, wide.num_key_value_heads, wide.head_dim) == (12, 6, 8)
    small = load(source).model.config
    assert wide.rope_parameters == small.rope_parameters
    assert wide.tie_word_embeddings == small.tie_word_embeddings


def test_the_tokenizer_goes_along(tmp_path: Path, source: Path) -> None:
    """Vocabulary, chat template, and the tokens that end a text."""
    wide = widened_to(tmp_path / "wide", source)
    there, here = load_tokenizer(source), load_tokenizer(wide)
    assert tokenizer_sha256(here) == tokenizer_sha256(there)
    assert here.chat_template == there.chat_template
    assert end_of_text_ids(wide, here) == end_of_text_ids(source, there)


def test_weights_are_divided_into_shards(tmp_path: Path, source: Path) -> None:
    """None is larger than the limit, the index knows them all, and no file has holes."""
    wide = widened_to(tmp_path / "wide", source, shard_bytes=100_000)
    files = sorted(wide.glob("*.safetensors"))
    index = json.loads((wide / "model.safetensors.index.json").read_text())
    assert len(files) > 2
    assert {path.name for path in files} == set(index["weight_map"].values())
    for path in files:
        size = path.stat().st_size
        assert size <= 100_000 + 4096
        assert path.stat().st_blocks * 512 >= size
    tensors = [tensor for path in files for tensor in load_file(path).values()]
    assert index["metadata"]["total_size"] == sum(4 * tensor.numel() for tensor in tensors)
    assert_same_words(load(source).plain(TEXT), load(wide).plain(TEXT))


def test_weights_are_stored_in_the_element_type_asked_for(tmp_path: Path, source: Path) -> None:
    """bfloat16 rounds every number once."""
    made = widen(source, None, WIDER, tmp_path / "wide", torch.bfloat16, silent)
    weights, exact = load_file(made.folder / "model.safetensors"), load(source).model.state_dict()
    name = "model.layers.1.mlp.up_proj.weight"
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert torch.equal(weights[name][:64, :32], exact[name].bfloat16())
    assert made.parameter_count == sum(tensor.numel() for tensor in weights.values())
    assert load(made.folder).model.config.dtype == torch.float32  # as asked for by `load`


def test_a_wide_model_can_be_widened_again(tmp_path: Path, source: Path) -> None:
    """It is an ordinary Llama; its copied KV heads are heads like any others."""
    once = widened_to(tmp_path / "once", source, Outline(3, 64, 100, 64))
    twice = widened_to(tmp_path / "twice", once, Outline(4, 128, 160, 128))
    assert_same_words(load(source).plain(TEXT), load(twice).plain(TEXT))


# --- drafts ----------------------------------------------------------------------------------


@pytest.fixture
def draft(tmp_path: Path, source: Path) -> Path:
    """A draft that reads the source's features."""
    return feature_draft(tmp_path / "draft", source, influence=0.5)


@pytest.fixture
def grower() -> Iterator[Callable[[TreeModel], Grower]]:
    """Makes draft workers."""
    workers: list[Grower] = []

    def make(model: TreeModel) -> Grower:
        workers.append(Grower("tiny", model, "sha", WorkerLimits()))
        return workers[-1]

    yield make
    for worker in workers:
        worker.device.stop()


async def greedy_trees(worker: Grower, given: Features) -> list[tuple[int, ...]]:
    """The trees of two steps, the second on the first's left-most path."""
    await worker.prefill(Prefill("s", TEXT[:5], 0, GREEDY, given[:4]))
    first = await worker.step(GrowTree(StepHeader("s", 0, 5), TEXT[4], TREE, given[3:4]))
    header = StepHeader("s", 1, 8, (1, 3))
    second = await worker.step(GrowTree(header, TEXT[7], TREE, given[4:7]))
    return [first.tree.token_ids, second.tree.token_ids]


async def test_the_draft_grows_the_same_trees_for_both(
    tmp_path: Path, source: Path, draft: Path, grower: Callable[[TreeModel], Grower]
) -> None:
    """From the features of each, with the draft's own, which stayed narrow, below the root."""
    wide = widened_to(tmp_path / "wide", source, draft=draft)
    wide_draft = load_draft(Path(str(default_draft(str(wide)))), wide, torch.float32, CPU)
    small_draft = load_draft(draft, source, torch.float32, CPU)
    assert (wide_draft.feature_size, wide_draft.hidden_size) == (96, 32)
    given = pack_features(load(source).plain(TEXT).features)
    given_wide = np.zeros((len(TEXT), 96), np.uint16)
    given_wide[:, :32] = given
    small = await greedy_trees(grower(small_draft), given)
    wide_features = pack_features(load(wide).plain(TEXT).features)
    assert not wide_features[:, 32:].any()
    assert small == await greedy_trees(grower(wide_draft), given_wide)
    assert small == await greedy_trees(grower(wide_draft), wide_features)


def test_a_chain_of_features_of_its_own_may_be_read(
    tmp_path: Path, source: Path, draft: Path
) -> None:
    """A draft that is prefilled hands out features as wide as it makes them."""
    wide = widened_to(tmp_path / "wide", source, draft=draft)
    model = load_draft(wide / "draft", wide, torch.float32, CPU)
    made = model.prefill(KVCache(), TEXT, torch.zeros(len(TEXT), 96))
    assert made.shape == (len(TEXT), 32)
    assert torch.allclose(made, load_draft(draft, source, torch.float32, CPU).plain(TEXT).features)


def test_the_draft_stays_small(tmp_path: Path, source: Path, draft: Path) -> None:
    """But for the fusion, whose new columns are zero, its weights are the same."""
    wide = widened_to(tmp_path / "wide", source, draft=draft)
    before = load_file(draft / "model.safetensors")
    after = load_file(wide / "draft/model.safetensors")
    fusion = after.pop("fusion.weight")
    assert torch.equal(fusion[:, :64], before.pop("fusion.weight"))
    assert fusion.shape == (32, 32 + 96)
    assert not fusion[:, 64:].any()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_wide_folder_brings_its_draft(tmp_path: Path, source: Path, draft: Path) -> None:
    """A target with a draft in its subfolder needs no other named, and the two fit."""
    assert default_draft(str(source)) is None
    wide = widened_to(tmp_path / "wide", source, draft=draft)
    pair = load_pair(str(wide), None, "float32", "cpu")
    assert pair.draft.feature_size == pair.target.feature_size == 96
    assert pair.tokenizer("w3").input_ids == [3]


def test_a_draft_that_reads_tokens_alone_goes_along(
    tmp_path: Path, source: Path, draft: Path
) -> None:
    """It borrows from the wide target in place of the small one."""
    weights = load_file(draft / "model.safetensors")
    del weights["fusion.weight"]
    save_file(weights, draft / "model.safetensors")
    wide = widened_to(tmp_path / "wide", source, draft=draft)
    small = load_draft(draft, source, torch.float32, CPU).plain(TEXT)
    assert torch.equal(
        small.logits, load_draft(wide / "draft", wide, torch.float32, CPU).plain(TEXT).logits
    )


def test_the_draft_goes_along_in_every_precision_and_step(
    tmp_path: Path, source: Path, draft: Path
) -> None:
    """Its description has the hash of what it borrows as it is stored, again and again."""
    once = widen(source, draft, Outline(3, 64, 100, 64), tmp_path / "1", torch.bfloat16, silent)
    twice = widened_to(tmp_path / "2", once.folder, draft=once.folder / "draft")
    assert load_draft(twice / "draft", twice, torch.float32, CPU).feature_size == 96


def test_a_model_of_its_own_is_no_draft_to_be_widened(tmp_path: Path, source: Path) -> None:
    """It goes with the wide target as it is."""
    made = widen(source, source, WIDER, tmp_path / "wide", torch.float32, silent)
    assert not made.has_draft
    assert default_draft(str(made.folder)) is None


def test_a_draft_of_another_target_is_refused(tmp_path: Path, draft: Path) -> None:
    """Whether its embedding or its features are others; nothing is written."""
    other = make_source(tmp_path / "other", initializer_range=0.2)
    with pytest.raises(ModelError, match=r"the embedding of .*other is another"):
        widened_to(tmp_path / "wide", other, draft=draft)
    weights = load_file(draft / "model.safetensors")
    weights["fusion.weight"] = weights["fusion.weight"][:, :-1].contiguous()
    save_file(weights, draft / "model.safetensors")
    with pytest.raises(ModelError, match=r"features of 31 elements, .*gives 32"):
        widened_to(tmp_path / "wide", tmp_path / "target", draft=draft)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["draft", "other", "target"]


# --- shapes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "heads", "kv_heads"),
    [("1.7b", 32, 32), ("7b", 64, 64), ("13b", 80, 80), ("33b", 104, 104), ("70b", 128, 16)],
)
def test_the_built_in_target_fits_every_named_shape(name: str, heads: int, kv_heads: int) -> None:
    """Heads of 64 elements, as many as make the large model's widths."""
    shape = fit(OUTLINES[name], SMOLLM2)
    assert (shape.heads, shape.kv_heads, shape.head_dim) == (heads, kv_heads, 64)


@pytest.mark.parametrize(
    ("text", "outline"),
    [
        ("32x2048:8192", Outline(32, 2048, 8192, 2048)),
        ("32x4096", Outline(32, 4096, 11008, 4096)),
        ("40x5120", Outline(40, 5120, 13824, 5120)),
        ("60x6656", Outline(60, 6656, 17920, 6656)),
    ],
)
def test_a_shape_may_be_explicit(text: str, outline: Outline) -> None:
    """Without FFN it is that of a Llama of this hidden size."""
    assert read_outline(text) == outline


@pytest.mark.parametrize(
    "text", ["", "8b", "1.7B", "32", "x2048", "32x", "0x64", "32x2048:", "-1x64", "2x64:0", "²x64"]
)
def test_other_shapes_are_refused(text: str) -> None:
    """The message has what is allowed."""
    with pytest.raises(WidenError, match=r"--shape: .* is neither 1\.7b, .* nor LAYERSxHIDDEN"):
        read_outline(text)


@pytest.mark.parametrize(
    ("outline", "why"),
    [
        (Outline(29, 576, 1536, 576), "layers 29 is smaller than the target's 30"),
        (Outline(30, 512, 1536, 512), "hidden 512 is smaller than the target's 576"),
        (Outline(30, 576, 1535, 576), "ffn 1535 is smaller than the target's 1536"),
        (Outline(30, 600, 1536, 576), "hidden size 600 is not a multiple of .* 64"),
        (Outline(30, 640, 1536, 600), "KV size 600 is not a multiple of .* 64"),
        (Outline(30, 2048, 1536, 128), "32 query heads over 2 KV heads .* need 3 KV heads"),
    ],
)
def test_a_shape_too_small_for_the_target_is_refused(outline: Outline, why: str) -> None:
    """The message names the direction, and how much there must be."""
    with pytest.raises(WidenError, match=f"--shape: {why}"):
        fit(outline, SMOLLM2)


# --- what cannot be widened ------------------------------------------------------------------


def rewrite(folder: Path, **changes: Any) -> None:
    """Change fields of a model's configuration."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model_type": "qwen2"}, "only Llama models can be widened, this is 'qwen2'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"num_hidden_layers": 3}, r"no weights for 9 tensors, model\.layers\.2\."),
        ({"num_hidden_layers": 1}, r"model\.layers\.1\..* belongs to no plain Llama"),
        ({"num_attention_heads": 3}, "not a multiple of the number of attention heads"),
        ({"hidden_size": "32"}, "hidden_size"),
        ({"intermediate_size": 63}, r"is \[32, 64\], \[32, 63\] by the configuration"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_models_are_refused(
    tmp_path: Path, source: Path, changes: dict[str, Any], why: str
) -> None:
    """Anything that would not say the same afterwards, before a byte is written."""
    rewrite(source, **changes)
    with pytest.raises(ModelError, match=why):
        widened_to(tmp_path / "wide", source)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}, "belongs to no plain Llama"),
        ({"model.norm.weight": torch.ones(32, dtype=torch.int8)}, "is I8; quantised"),
    ],
    ids=["bias", "integers"],
)
def test_other_weights_are_refused(
    tmp_path: Path, source: Path, tensors: dict[str, Tensor], why: str
) -> None:
    """What the configuration does not tell."""
    path = source / "model.safetensors"
    save_file(load_file(path) | tensors, path)
    with pytest.raises(ModelError, match=why):
        widened_to(tmp_path / "wide", source)


def test_tensors_that_follow_from_others_are_left_out(tmp_path: Path) -> None:
    """Tables of old checkpoints, and the output layer of a tied model."""
    source = make_source(tmp_path / "target", tie_word_embeddings=True)
    path = source / "model.safetensors"
    more = {"lm_head.weight": torch.ones(WORDS, 32), "model.rotary_emb.inv_freq": torch.ones(4)}
    save_file(load_file(path) | more, path, {"format": "pt"})
    wide = widened_to(tmp_path / "wide", source)
    assert not {*more} & {*load_file(wide / "model.safetensors")}


@pytest.mark.parametrize("damage", ["no config", "broken config", "half a file", "gguf"])
def test_broken_folders_are_refused(tmp_path: Path, source: Path, damage: str) -> None:
    """The folder is named."""
    config, weights = source / "config.json", source / "model.safetensors"
    match damage:
        case "no config":
            config.unlink()
        case "broken config":
            config.write_text("[]")
        case "half a file":
            weights.write_bytes(weights.read_bytes()[:5000])
        case "gguf":
            weights.rename(source / "model.gguf")
    with pytest.raises(ModelError, match=str(source)):
        widened_to(tmp_path / "wide", source)


# --- the folder ------------------------------------------------------------------------------


def test_a_folder_in_use_is_left_alone(tmp_path: Path, source: Path) -> None:
    """Only a new or an empty one is taken."""
    out = tmp_path / "wide"
    out.mkdir()
    assert widened_to(out, source) == out
    for used in (out, out / "config.json"):
        with pytest.raises(WidenError, match=r"--out: .* is there already"):
            widened_to(used, source)
    with pytest.raises(WidenError, match="below: "):
        widened_to(out / "config.json/below", source)


def test_a_full_disk_leaves_nothing(tmp_path: Path, source: Path) -> None:
    """Whatever was written by then is gone."""

    def full(stage: Stage, message: str, done: int = 0, total: int = 0) -> None:
        if done:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(WidenError, match="wide: No space left on device"):
        widen(source, None, WIDER, tmp_path / "wide", torch.float32, full)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_room_is_looked_for_first(tmp_path: Path) -> None:
    """The message says how much is needed, and how much there is."""
    require_room(tmp_path, 1)
    with pytest.raises(WidenError, match=r"1000000000\.0 GB are needed, [\d.]+ GB are free"):
        require_room(tmp_path, 10**18)


# --- the command -----------------------------------------------------------------------------


def run(*arguments: str) -> Result:
    """The outcome of `sequoia widen ARGUMENTS`."""
    return CliRunner().invoke(app, ["widen", *arguments])


def test_the_command_widens(tmp_path: Path, source: Path, draft: Path) -> None:
    """It says what it wrote, how much that is, and where the draft is."""
    out = tmp_path / "wide"
    arguments = ("--shape", "3x96:160", "--out", str(out), "--dtype", "float32")
    result = run("--target", str(source), "--draft", str(draft), *arguments)
    assert result.exit_code == 0, result.output
    assert "3 layers x 96, FFN 160, 12 query and 12 KV heads of 8" in result.stdout
    assert f"draft: {out / 'draft'}" in result.stdout
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    assert f"{size:,} bytes" in result.stdout
    assert "write: shard 1 of 1" in result.stderr
    assert_same_words(load(source).plain(TEXT), load(out).plain(TEXT))


def test_the_command_does_without_a_draft(tmp_path: Path, source: Path) -> None:
    """A target that has none is widened alone, in bfloat16 unless told otherwise."""
    out = tmp_path / "wide"
    result = run("--target", str(source), "--shape", "2x32:64", "--out", str(out))
    assert result.exit_code == 0, result.output
    assert "draft: none written" in result.stdout
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("arguments", "status", "why"),
    [
        (("--shape", "8b", "--out", "wide"), 2, "--shape: '8b' is neither"),
        (("--shape", "1x96", "--out", "wide"), 2, "--shape: layers 1 is smaller"),
        (("--shape", "3x96", "--out", "target"), 2, "is there already"),
        (("--shape", "3x96", "--out", "wide", "--target", "./none"), 1, "no such folder"),
        (("--shape", "3x96", "--out", "wide", "--draft", "./none"), 1, "no such folder"),
        (("--shape", "3x96", "--out", "wide", "--dtype", "int8"), 2, "int8"),
        (("--out", "wide"), 2, "--shape"),
        (("--shape", "3x96"), 2, "--out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_command_refuses_bad_options(
    tmp_path: Path,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    status: int,
    why: str,
) -> None:
    """One line that says which; nothing is written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEQUOIA_TARGET", str(source))
    result = run(*arguments)
    assert result.exit_code == status, result.output
    assert why in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
