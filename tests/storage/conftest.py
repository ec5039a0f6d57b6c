"""A lake in a temporary folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from strop.storage.lake import Lake, open_lake


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    """An empty lake, open for writing."""
    with open_lake(tmp_path / "lake", create=True) as opened:
        yield opened
