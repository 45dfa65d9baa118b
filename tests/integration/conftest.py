"""Models for tests that run the whole system."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import byte_pair, feature_draft


@pytest.fixture(scope="module", params=["plain draft", "feature-conditioned draft"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A target and a draft over bytes; the plain one's embedding is longer than the target's."""
    target, draft = byte_pair(tmp_path_factory.mktemp("pair"))
    if request.param == "plain draft":
        return target, draft
    return target, feature_draft(tmp_path_factory.mktemp("draft"), target)
