"""A policy that is a LoRA adapter: where its base lies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from strop.storage.errors import StageError

ADAPTER = "adapter_config.json"


def adapter_of(directory: Path) -> tuple[dict[str, Any], Path] | None:
    """The adapter's config and the checkpoint it belongs to; None where the directory holds whole weights.

    Raises StageError when that checkpoint is missing.
    """
    file = directory / ADAPTER
    if not file.is_file():
        return None
    adapter: dict[str, Any] = json.loads(file.read_text())
    base = Path(adapter["base_model_name_or_path"])
    if not (base / "config.json").is_file():
        raise StageError(f"{file} names the base policy {str(base)!r}, and there is no checkpoint in that folder")
    return adapter, base
