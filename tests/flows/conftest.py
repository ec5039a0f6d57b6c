"""The tiny loop, the command as a process, and one Prefect server for all tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_loop import Strop, clean_env, write_tiny

from strop.flows import server


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A recipe of local plugins in a folder of its own."""
    return write_tiny(tmp_path)


@pytest.fixture
def strop(tmp_path: Path) -> Strop:
    """`strop` as a process of its own, in the test's folder."""

    def run(*arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "strop.flows", *map(str, arguments)]
        return subprocess.run(
            command, cwd=tmp_path, env=env or clean_env(), capture_output=True, text=True, timeout=120, check=False
        )

    return run


@pytest.fixture(autouse=True)
def _no_server_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("PREFECT_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project folder whose Prefect server runs for the session."""
    home = tmp_path_factory.mktemp("project")
    server.start(home)
    yield home
    server.stop(home)
