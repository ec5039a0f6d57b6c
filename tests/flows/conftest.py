"""A loop that needs no model, made of the templates of `strop plugins new`, and one Prefect server for all tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from strop.flows import server, templates

RECIPE = """\
name: tiny
description: A loop that needs no model
rounds: 2
workers: 1
base: {use: "./start.py:start", path: ./checkpoint}
tasks: [{use: "./sums.py:sums", largest: 9}]
engine: {use: "./echo.py:echo", text: "8"}
heldout: {use: "./ask.py:ask", n: 2, max_tokens: 8}
round:
  - select: {use: "./draw.py:draw", problems: 6}
  - generate: {use: "./ask.py:ask", n: 2, max_tokens: 8}
  - verify: "./right.py:right"
  - filter: "./short.py:short"
  - evaluate: "./length.py:length"
"""
PLUGINS = {
    "start": "base",
    "sums": "task",
    "echo": "engine",
    "draw": "select",
    "ask": "generate",
    "right": "verify",
    "short": "filter",
    "length": "evaluate",
}

Strop = Callable[..., "subprocess.CompletedProcess[str]"]


def write_tiny(folder: Path) -> Path:
    """The recipe and its plugins; the path of the recipe."""
    for name, stage in PLUGINS.items():
        templates.write({f"{name}.py": templates.plugin_files(stage, name)[f"{name}.py"]}, folder)
    templates.write({"config.json": "{}"}, folder / "checkpoint")
    templates.write({"tiny.yaml": RECIPE}, folder)
    return folder / "tiny.yaml"


def clean_env(**more: str) -> dict[str, str]:
    """The environment without what a test before may have set."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "STROP_"))}
    return {**kept, **more}


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
    for name in [n for n in os.environ if n.startswith(("PREFECT_", "STROP_"))]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project folder whose Prefect server runs for the session."""
    home = tmp_path_factory.mktemp("project")
    server.start(home)
    yield home
    server.stop(home)
