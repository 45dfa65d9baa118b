"""The engine compiled ahead: the right one for a processor, and the same bits as the one compiled here."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from sequoia.runtime.forward import TreeModel
from sequoia.runtime.native import prebuilt
from sequoia.runtime.native.__main__ import main
from sequoia.runtime.native.library import NativeUnavailableError, library
from sequoia.runtime.native.source import digest

SKYLAKE = (
    "fpu sse2 avx avx2 bmi1 bmi2 f16c fma movbe abm avx512f avx512bw avx512cd avx512dq avx512vl"
)
ZEN_4 = f"{SKYLAKE} avx512_vnni avx512_bf16"
SAPPHIRE_RAPIDS = f"{ZEN_4} amx_tile amx_int8 amx_bf16"
HASWELL = "fpu sse2 avx avx2 bmi1 bmi2 f16c fma movbe abm"


@pytest.mark.parametrize(
    ("features", "name"),
    [
        (SAPPHIRE_RAPIDS, "amx"),
        (ZEN_4, "avx512bf16"),
        (SKYLAKE, "avx512"),
        (f"{SKYLAKE} amx_tile amx_bf16", "avx512"),
        (SKYLAKE.replace(" avx512bw", ""), None),
        (HASWELL, None),
        ("", None),
    ],
)
def test_a_processor_gets_the_best_that_it_can_run(features: str, name: str | None) -> None:
    """Never a library with instructions that it has not."""
    chosen = prebuilt.choose(features.split())
    assert (chosen.name if chosen else None) == name


def test_another_source_or_other_options_have_another_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """So a library is never taken for what it was not made from."""
    names = {variant.path for variant in prebuilt.VARIANTS}
    assert len(names) == len(prebuilt.VARIANTS)
    header = tmp_path / "units.h"
    header.write_text("changed")
    before = digest("-mavx")
    monkeypatch.setattr("sequoia.runtime.native.source.HEADERS", (header,))
    assert digest("-mavx") != before
    assert not names & {variant.path for variant in prebuilt.VARIANTS}


def test_without_a_compiler_nothing_is_compiled_ahead(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command ends with status 1 and says what to install."""
    monkeypatch.setattr(prebuilt, "FOLDER", tmp_path)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert main() == 1
    assert "install g++" in capsys.readouterr().err


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the libraries for every processor."""
    folder = tmp_path_factory.mktemp("prebuilt")
    with pytest.MonkeyPatch.context() as patched:
        try:
            library()
        except NativeUnavailableError as error:
            pytest.skip(f"no compiled engine here: {error}")
        patched.setattr(prebuilt, "FOLDER", folder)
        assert main() == 0
        assert {variant.path for variant in prebuilt.VARIANTS} == set(folder.iterdir())
    return folder


@pytest.mark.parametrize("variant", prebuilt.VARIANTS, ids=lambda one: one.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_without_a_compiler_a_model_runs_as_with_one(
    compiled: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    variant: prebuilt.Variant,
    dtype: torch.dtype,
) -> None:
    """What was compiled ahead is loaded, and gives the logits of what this machine compiles for itself.

    Bit for bit in float32 and on the same units; other units round bfloat16 sums differently.
    """
    flags = library_features()
    best = prebuilt.choose(flags)
    if not variant.features <= flags:
        pytest.skip(f"this processor is no {variant.name}")
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    weights = AutoModelForCausalLM.from_config(config).to(dtype)
    own, ahead = TreeModel(copy.deepcopy(weights)), TreeModel(weights)
    own.compile(1)
    token_ids = list(range(1, 90))
    expected = own.plain(token_ids).logits

    monkeypatch.setattr(prebuilt, "FOLDER", compiled)
    monkeypatch.setattr(prebuilt, "VARIANTS", (variant,))
    monkeypatch.setenv("SEQUOIA_CACHE", str(tmp_path / "absent"))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.delenv("CXX", raising=False)
    loaded = library.__wrapped__()
    monkeypatch.setattr("sequoia.runtime.native.decoder.library", lambda: loaded)
    ahead.compile(1)
    logits = ahead.plain(token_ids).logits

    assert not (tmp_path / "absent").exists()
    if dtype is torch.float32 or variant is best:
        assert torch.equal(logits, expected)
    else:
        assert torch.allclose(logits, expected, atol=0.1, rtol=0.02)


def library_features() -> frozenset[str]:
    """What this processor can do."""
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    return frozenset(next(line for line in lines if line.startswith("flags")).split())


def test_a_broken_library_is_a_reason_and_no_crash(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The role goes on through transformers, and its log says why."""
    chosen = prebuilt.choose(library_features())
    if chosen is None:
        pytest.skip("no engine for this processor")
    monkeypatch.setattr(prebuilt, "FOLDER", tmp_path)
    chosen.path.write_bytes(b"no library")
    with pytest.raises(NativeUnavailableError, match=chosen.path.name):
        library.__wrapped__()
