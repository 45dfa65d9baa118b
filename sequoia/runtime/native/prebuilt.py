"""Libraries that were compiled ahead, one for each kind of processor, for machines without a compiler.

They lie beside the source, `python -m sequoia.runtime.native` makes them, and the best one that the
processor can run is taken (ADR 0010). A library names what it was made from: one of another source is
never found.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sequoia.runtime.native.source import digest

FOLDER = Path(__file__).with_name("prebuilt")


@dataclass(frozen=True, slots=True)
class Variant:
    """A kind of processor.

    Attributes:
        features: that the code uses, by their names in /proc/cpuinfo.
        options: that let the compiler use them.
    """

    name: str
    features: frozenset[str]
    options: tuple[str, ...]

    @property
    def path(self) -> Path:
        """Where its library is, or will be."""
        return FOLDER / f"decoder-{self.name}-{digest(*self.options)}.so"


_LEVEL_4 = frozenset(
    {
        *("avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "abm"),
        *("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
    }
)
_BFLOAT = _LEVEL_4 | {"avx512_bf16"}
_BFLOAT_OPTIONS = ("-march=x86-64-v4", "-mavx512bf16")

# The best first.
VARIANTS = (
    Variant(
        "amx",
        _BFLOAT | {"amx_tile", "amx_bf16"},
        (*_BFLOAT_OPTIONS, "-mamx-tile", "-mamx-bf16"),
    ),
    Variant("avx512bf16", _BFLOAT, _BFLOAT_OPTIONS),
    Variant("avx512", _LEVEL_4, ("-march=x86-64-v4",)),
)


def choose(features: Iterable[str]) -> Variant | None:
    """The best variant for a processor with these features; None where none can run."""
    having = frozenset(features)
    return next((variant for variant in VARIANTS if variant.features <= having), None)
