"""What every fault test carries: `make chaos` alone runs it, and it may take minutes."""

from __future__ import annotations

import os

import pytest

CHAOS = [
    pytest.mark.skipif("CHAOS_TESTS" not in os.environ, reason="make chaos runs it"),
    pytest.mark.timeout(600),
]
