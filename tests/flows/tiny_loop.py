"""A loop that needs no model, made of the templates of `strop plugins new`, and the environment to run it in."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from strop.flows import templates

RECIPE = """\
name: tiny
description: A loop that needs no model
rounds: 2
workers: 1
base: "./start.py:start"
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
START = '''"""A checkpoint folder with nothing in it.

Source: none.
"""

from pathlib import Path

from strop.core.plugin import Config, stage


class Start(Config):
    """No settings, so that every test finds it in the cache of the first."""


@stage("base")
def start(config: Start, *, directory: Path) -> Path:
    """The folder."""
    (directory / "config.json").write_text("{}")
    return directory
'''
PLUGINS = {
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
    templates.write({"start.py": START, "tiny.yaml": RECIPE}, folder)
    return folder / "tiny.yaml"


def clean_env(**more: str) -> dict[str, str]:
    """The environment without settings of the user or of a test before, but with the suite's own cache."""
    kept = {k: v for k, v in os.environ.items() if k == "STROP_CACHE" or not k.startswith(("PREFECT_", "STROP_"))}
    return {**kept, **more}
