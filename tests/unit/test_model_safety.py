"""Models bring weights and words, never code that runs."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from sequoia.runtime.catalogue import ModelError, UnsafeWeightsError, resolve
from sequoia.runtime.loading import load_draft, load_model
from sequoia.runtime.tokenization import load_tokenizer
from tests.tiny import save_model, tiny_llama, word_tokenizer

ROOT = Path(__file__).parents[2]
PACKAGES = ("sequoia", "draft_service", "target_service", "coordinator", "planner")
WORDS = 12
CPU = torch.device("cpu")
CODE = """
from pathlib import Path
Path({marker!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class EvilConfig(LlamaConfig):
    model_type = "evil"
class EvilModel(LlamaForCausalLM):
    config_class = EvilConfig
class EvilTokenizer(PreTrainedTokenizerFast):
    pass
"""


class Evil:
    """Runs when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return _run, (str(self.marker),)


def _run(marker: str) -> dict[str, torch.Tensor]:
    Path(marker).write_text("ran")
    return {}


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that appears when a model's code runs."""
    return tmp_path / "marker"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good model, to be spoilt."""
    return save_model(tmp_path / "model", tiny_llama(WORDS, seed=1), word_tokenizer(WORDS))


def bring_code(folder: Path, marker: Path, model_type: str) -> None:
    """Let a folder name classes in a file of its own."""
    (folder / "evil.py").write_text(CODE.format(marker=str(marker)))
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}
    config |= {"model_type": model_type, "auto_map": names}
    (folder / "config.json").write_text(json.dumps(config))
    described = json.loads((folder / "tokenizer_config.json").read_text())
    described["auto_map"] = {"AutoTokenizer": [None, "evil.EvilTokenizer"]}
    described["tokenizer_class"] = "EvilTokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(described))


def test_a_models_code_does_not_run(folder: Path, marker: Path) -> None:
    """A type of model that only its own code knows is an error, and asks nobody for leave."""
    bring_code(folder, marker, "evil")

    with pytest.raises(ModelError, match="needs code of its own, which is never run"):
        load_model(folder, torch.float32, CPU)
    with pytest.raises(ModelError):
        load_draft(folder, None, torch.float32, CPU)

    assert not marker.exists()


def test_a_known_type_is_loaded_without_the_code_beside_it(folder: Path, marker: Path) -> None:
    """By our library's own classes."""
    bring_code(folder, marker, "llama")

    load_model(folder, torch.float32, CPU)
    with suppress(ModelError):
        load_tokenizer(folder)

    assert not marker.exists()


def test_pickles_are_never_opened(folder: Path, marker: Path) -> None:
    """Beside safetensors they lie unread; alone they are refused."""
    torch.save(Evil(marker), folder / "pytorch_model.bin")
    load_model(resolve(str(folder)), torch.float32, CPU)

    (folder / "model.safetensors").unlink()
    with pytest.raises(UnsafeWeightsError):
        resolve(str(folder))
    with pytest.raises(ModelError):
        load_model(folder, torch.float32, CPU)

    assert not marker.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert marker.exists()  # so it would have run


def _calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call in the code, and where it stands."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def _says(call: ast.Call, name: str, value: object) -> bool:
    return any(
        keyword.arg == name
        and isinstance(keyword.value, ast.Constant)
        and keyword.value.value is value
        for keyword in call.keywords
    )


def test_every_loader_in_the_code_says_that_no_code_runs() -> None:
    """transformers would ask on the terminal otherwise; torch.load takes weights alone."""
    loaders, offenders = 0, []
    for place, call in _calls():
        text = ast.unparse(call.func)
        if text.startswith("Auto") and text.endswith(".from_pretrained"):
            loaders += 1
            if not _says(call, "trust_remote_code", False):
                offenders.append(place)
        if text == "torch.load" and not _says(call, "weights_only", True):
            offenders.append(place)
    assert offenders == []
    assert loaders > 5
