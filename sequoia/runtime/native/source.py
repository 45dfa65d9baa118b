"""What the compiled engine is made from: its files, the compiler's options, and a digest of both."""

from __future__ import annotations

import hashlib
from pathlib import Path

SOURCE = Path(__file__).with_name("decoder.cpp")
HEADERS = tuple(sorted(SOURCE.parent.glob("*.h")))
# No contraction: a sum must be rounded alike wherever the compiler vectorises it and where not.
OPTIONS = ("-O3", "-ffp-contract=off", "-std=c++17", "-shared", "-fPIC", "-pthread", "-w")


def digest(*circumstances: str) -> str:
    """Names a library by its source, the options and whatever else it depends on; 16 hex digits."""
    found = hashlib.sha256()
    for path in (SOURCE, *HEADERS):
        found.update(path.read_bytes())
    for word in (*OPTIONS, *circumstances):
        found.update(b"\0" + word.encode())
    return found.hexdigest()[:16]
