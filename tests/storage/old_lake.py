"""The lakes kept under `old_lakes/`, unpacked."""

from __future__ import annotations

import tarfile
from pathlib import Path

PACKED = Path(__file__).with_name("old_lakes")


def unpack(version: int, folder: Path) -> Path:
    """Unpack the lake of a schema version below the folder; the folder that holds `lake/` and its recipe."""
    with tarfile.open(PACKED / f"v{version}.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    return folder / f"v{version}"
