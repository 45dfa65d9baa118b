"""Peers in processes of their own, drafts as transformers takes them, weights as llama.cpp does."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize
from transformers import AutoModelForCausalLM

from sequoia.bench.errors import HostError, UnavailableError
from sequoia.bench.host import ProcessHost
from sequoia.bench.peers.assistant import load_assistant
from sequoia.bench.peers.comparison import REFERENCE
from sequoia.bench.peers.entrants import Conditions, Entrants, add_llama_cpp
from sequoia.bench.peers.gguf_files import gguf_files, write_all_types
from sequoia.bench.peers.runs import Prompt, Run
from sequoia.bench.peers.with_transformers import MakeTransformersPeer
from sequoia.runtime.progress import silent
from tests.tiny import feature_draft

PROMPT = Prompt((3, 4, 5), 6)


class Echo:
    """What a test puts into another process."""

    def say(self, word: str) -> str:
        return word

    def refuse(self) -> None:
        raise UnavailableError("not here")

    def fail(self) -> None:
        raise ValueError("first line\nsecond line")

    def die(self) -> None:
        os._exit(7)


@pytest.fixture
def hosts() -> Iterator[ExitStack]:
    """Ends what a test has started."""
    with ExitStack() as stack:
        yield stack


def test_calls_cross_the_border_with_values_and_errors() -> None:
    """A refusal stays one, other errors come in one line, and a process that ends is told apart."""
    with ProcessHost("echo", Echo) as host:
        assert host.call("say", "hello") == "hello"
        with pytest.raises(UnavailableError, match="not here"):
            host.call("refuse")
        with pytest.raises(HostError, match=r"echo: ValueError: first line$"):
            host.call("fail")
        with pytest.raises(HostError, match="echo: ended with status 7"):
            host.call("die")
        with pytest.raises(HostError):
            host.call("say", "still there?")


def test_who_fails_in_the_warm_up_is_left_out_with_the_reason(hosts: ExitStack) -> None:
    """All others take part; without the reference there is nothing to compare with."""

    def fails(_: Prompt) -> Run:
        raise HostError("no such kernel")

    entrants = Entrants([PROMPT], hosts)
    assert entrants.admit("good", lambda _: Run((1,), 0.1, 1))
    assert not entrants.admit("bad", fails)
    assert list(entrants.systems) == ["good"]
    assert entrants.skipped == {"bad": "no such kernel"}
    with pytest.raises(HostError):
        entrants.admit(REFERENCE, fails)


def test_targets_that_are_no_gguf_leave_llama_cpp_out(
    word_folders: tuple[Path, Path], hosts: ExitStack
) -> None:
    """The reason names the target, or says that llama-cpp-python is missing."""
    entrants = Entrants([PROMPT], hosts)
    target = str(word_folders[0])
    add_llama_cpp(entrants, Conditions(target, "float32", "cpu", 1, 0.0, (0,), 9), silent)
    assert not entrants.systems
    assert "llama.cpp" in entrants.skipped
    with pytest.raises(UnavailableError, match="did not come from a GGUF file"):
        gguf_files(target, silent)


def test_transformers_generates_in_every_way(word_folders: tuple[Path, Path]) -> None:
    """Greedy texts are the same however they were made; steps are the target's passes."""
    target, draft = map(str, word_folders)
    peer = MakeTransformersPeer(target, "float32", "cpu", 1, 0.0, (0,))()
    peer.add_assistant("assisted", draft)
    plain = peer.generate("plain", PROMPT)
    assisted = peer.generate("assisted", PROMPT)
    lookup = peer.generate("prompt-lookup", PROMPT)
    assert plain.token_ids == assisted.token_ids == lookup.token_ids
    assert plain.tokens_per_step == 1.0
    assert assisted.step_count <= plain.step_count
    top_gap, gap = peer.leads(PROMPT.token_ids, plain.token_ids[0])
    assert gap == 0.0 <= top_gap


def borrowed_draft(folder: Path, target: Path) -> Path:
    """A plain draft with a reduced head, as drafts were before they read features."""
    from safetensors.torch import load_file, save_file

    feature_draft(folder, target)
    weights = load_file(folder / "model.safetensors")
    del weights["fusion.weight"]
    save_file(weights, folder / "model.safetensors")
    return folder


def test_a_reduced_head_is_spread_over_the_vocabulary(
    word_folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """Tokens that the draft cannot say get -inf, the others what the whole head would say."""
    target = word_folders[0]
    draft = borrowed_draft(tmp_path / "draft", target)
    known = json.loads((target / "config.json").read_text())["vocab_size"] * 3 // 4
    place = torch.float32, torch.device("cpu")
    assistant = load_assistant(str(draft), str(target), 12, *place)
    whole = AutoModelForCausalLM.from_pretrained(target).eval()
    ids = torch.tensor([PROMPT.token_ids])
    with torch.inference_mode():
        logits, expected = assistant(ids).logits, whole(ids).logits
    assert logits.shape == expected.shape
    torch.testing.assert_close(logits[..., :known], expected[..., :known])
    assert torch.isneginf(logits[..., known:]).all()


def test_a_draft_that_reads_features_cannot_assist(
    word_folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """The refusal says why and what to do."""
    draft = feature_draft(tmp_path / "draft", word_folders[0])
    with pytest.raises(UnavailableError, match=r"hidden states.*--assistant"):
        load_assistant(str(draft), str(word_folders[0]), 12, torch.float32, torch.device("cpu"))


def test_gguf_files_hold_the_dequantised_weights(tmp_path: Path) -> None:
    """Matrices in each type, vectors in float32, metadata as they were."""
    values = np.random.default_rng(1).normal(size=(4, 64)).astype(np.float32)
    packed = quantize(values, GGMLQuantizationType.Q4_1)
    writer = GGUFWriter(tmp_path / "source.gguf", "llama")
    writer.add_block_count(3)
    writer.add_file_type(3)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_tensor("token_embd.weight", packed, raw_dtype=GGMLQuantizationType.Q4_1)
    writer.add_tensor("output_norm.weight", values[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (folder := tmp_path / "made").mkdir()

    write_all_types(tmp_path / "source.gguf", folder, silent)

    assert {path.stem for path in folder.iterdir()} == {"q4_1", "bf16", "f32"}
    exact = dequantize(packed, GGMLQuantizationType.Q4_1)
    for kind, tolerance in (("f32", 0.0), ("bf16", 2**-8)):
        reader = GGUFReader(folder / f"{kind}.gguf")
        matrix, vector = reader.tensors
        assert matrix.tensor_type.name == kind.upper()
        found = dequantize(matrix.data, matrix.tensor_type)
        np.testing.assert_allclose(found, exact, rtol=tolerance)
        assert vector.tensor_type is GGMLQuantizationType.F32
        blocks, tokens = (
            reader.get_field(name) for name in ("llama.block_count", "tokenizer.ggml.tokens")
        )
        assert blocks is not None
        assert tokens is not None
        assert blocks.contents() == 3
        assert tokens.contents() == ["a", "b"]
