"""The compiled half of the engine: compiled ahead, or once by the machine's C++ compiler for the cache."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import structlog

from sequoia.runtime.catalogue import cache_folder
from sequoia.runtime.native import prebuilt
from sequoia.runtime.native.source import OPTIONS, SOURCE, digest

log = structlog.get_logger(__name__)

OPTIONS_HERE = ("-march=native",)
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
    variant = prebuilt.choose(_processor().split())
    if variant is not None and variant.path.is_file():
        loaded = _load_prebuilt(variant)
    else:
        loaded = _load_cached(find_compiler())
    loaded.sequoia_new_pool.restype = ctypes.c_void_p
    loaded.sequoia_run.restype = ctypes.c_bool
    loaded.sequoia_free_pool.argtypes = [ctypes.c_void_p]
    return loaded


def find_compiler() -> str:
    """The C++ compiler of this machine.

    Raises:
        NativeUnavailableError: there is none.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise NativeUnavailableError("no C++ compiler: install g++, or name one in CXX")
    return compiler


def _load_prebuilt(variant: prebuilt.Variant) -> ctypes.CDLL:
    try:
        loaded = ctypes.CDLL(str(variant.path))
    except OSError as error:
        raise NativeUnavailableError(f"{variant.path}: {error}") from error
    log.info("native engine compiled ahead", variant=variant.name)
    return loaded


def _load_cached(compiler: str) -> ctypes.CDLL:
    """What was compiled here before, or is now; a broken file is replaced."""
    path = cache_folder() / "native" / f"decoder-{_fingerprint(compiler)}.so"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = path.parent.stat()
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise NativeUnavailableError(
                f"{path.parent} is code that others can write: chmod go-w it"
            )
        if path.is_file():
            try:
                return ctypes.CDLL(str(path))
            except OSError as error:
                log.warning("native engine broken, compiling it again", error=str(error))
        compile_library(compiler, OPTIONS_HERE, path)
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeUnavailableError(f"{path}: {error}") from error


def _fingerprint(compiler: str) -> str:
    """Names what the compiled code depends on: the source, the compiler and the processor."""
    try:
        version = subprocess.run(
            [compiler, "--version"], capture_output=True, text=True, check=False
        ).stdout
    except OSError as error:
        raise NativeUnavailableError(f"{compiler}: {error}") from error
    return digest(*OPTIONS_HERE, version, _processor())


def _processor() -> str:
    """What the processor can do, as Linux lists it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("flags")), "")


def compile_library(compiler: str, options: Sequence[str], path: Path) -> None:
    """Compile the engine into `path`, whose folder is there; `options` say for which processors.

    Raises:
        NativeUnavailableError: the compiler refused, or took too long.
        OSError: the folder cannot be written.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        try:
            run = subprocess.run(
                [compiler, *OPTIONS, *options, str(SOURCE), "-o", str(made)],
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
