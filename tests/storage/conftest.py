"""A lake in a temporary folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from every_link import fill

from strop.storage.lake import Lake, open_lake


@pytest.fixture(scope="session")
def empty_lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One empty lake, made once and then copied: making it takes longer than most tests."""
    root = tmp_path_factory.mktemp("template") / "lake"
    open_lake(root, create=True).close()
    return root


@pytest.fixture
def lake(empty_lake: Path, tmp_path: Path) -> Iterator[Lake]:
    """An empty lake, open for writing."""
    shutil.copytree(empty_lake, tmp_path / "lake")
    with open_lake(tmp_path / "lake") as opened:
        yield opened


@pytest.fixture(scope="session")
def every_link_lake(empty_lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake in which every link between rows occurs."""
    root = tmp_path_factory.mktemp("links") / "lake"
    shutil.copytree(empty_lake, root)
    with open_lake(root) as opened:
        fill(opened)
    return root
