"""A model behind a server: the policy is its name, without weights here, and no recipe can train it.

Source: the `model` of OpenAI's API; made for Strop.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field

from strop.core.plugin import Config, stage


class Served(Config):
    """Which model."""

    model: Annotated[str, Field(min_length=1)]
    """Its name on the server, as GET /v1/models lists it."""


@stage("base", weights=False)
def served(config: Served, *, directory: Path) -> Path:
    """A directory that holds the name, for the engine `openai`."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "served.json").write_text(json.dumps({"model": config.model}) + "\n")
    return directory
