"""The compiled half of the engine: made with the machine's C++ compiler once, and kept in the cache."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import structlog

from sequoia.runtime.catalogue import cache_folder

log = structlog.get_logger(__name__)

SOURCE = Path(__file__).with_name("decoder.cpp")
HEADERS = tuple(sorted(SOURCE.parent.glob("*.h")))
# No contraction: a sum must be rounded alike wherever the compiler vectorises it and where not.
FLAGS = (
    "-O3",
    "-march=native",
    "-ffp-contract=off",
    "-std=c++17",
    "-shared",
    "-fPIC",
    "-pthread",
    "-w",
)
COMPILE_SECONDS = 300


class NativeUnavailableError(Exception):
    """The engine cannot be had on this machine or for this model; the reason is its text."""


@cache
def library() -> ctypes.CDLL:
    """The compiled functions.

    Raises:
        NativeUnavailableError: no compiler, no AVX-512, or a cache that cannot be written.
    """
    if platform.machine() != "x86_64":
        raise NativeUnavailableError(f"not written for {platform.machine()} processors")
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise NativeUnavailableError("no C++ compiler: install g++, or name one in CXX")
    path = cache_folder() / "native" / f"decoder-{_fingerprint(compiler)}.so"
    try:
        loaded = _load(compiler, path)
    except OSError as error:
        raise NativeUnavailableError(f"{path}: {error}") from error
    loaded.sequoia_new_pool.restype = ctypes.c_void_p
    loaded.sequoia_run.restype = ctypes.c_bool
    loaded.sequoia_free_pool.argtypes = [ctypes.c_void_p]
    return loaded


def _load(compiler: str, path: Path) -> ctypes.CDLL:
    """What was compiled before, or is now; a broken file is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = path.parent.stat()
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise NativeUnavailableError(f"{path.parent} is code that others can write: chmod go-w it")
    if path.is_file():
        try:
            return ctypes.CDLL(str(path))
        except OSError as error:
            log.warning("native engine broken, compiling it again", error=str(error))
    _compile(compiler, path)
    return ctypes.CDLL(str(path))


def _fingerprint(compiler: str) -> str:
    """Names what the compiled code depends on: the source, the compiler and the processor."""
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    except OSError as error:
        raise NativeUnavailableError(f"{compiler}: {error}") from error
    digest = hashlib.sha256(version)
    for path in (SOURCE, *HEADERS):
        digest.update(path.read_bytes())
    digest.update(" ".join(FLAGS).encode())
    digest.update(_processor().encode())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """What the processor can do, as Linux lists it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("flags")), "")


def _compile(compiler: str, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        try:
            run = subprocess.run(
                [compiler, *FLAGS, str(SOURCE), "-o", str(made)],
                capture_output=True,
                text=True,
                check=False,
                timeout=COMPILE_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise NativeUnavailableError(f"{compiler} took over {COMPILE_SECONDS} s") from error
        if run.returncode:
            reason = next((line for line in run.stderr.splitlines() if "error" in line), run.stderr)
            raise NativeUnavailableError(f"{compiler}: {reason.strip()}")
        made.replace(path)  # at once: other processes may be about to load it
    log.info("native engine compiled", path=str(path))
