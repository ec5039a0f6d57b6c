"""The formats `strop import` reads."""

from __future__ import annotations

from strop.core.imports import nemo_skills, pairs, strop_lines, verifiers
from strop.core.imports.sample import Format
from strop.storage.errors import DataError, did_you_mean

FORMATS: dict[str, Format] = {
    format.name: format for format in (strop_lines.FORMAT, nemo_skills.FORMAT, verifiers.FORMAT, pairs.FORMAT)
}


def find(name: str) -> Format:
    """The format of that name. Raises DataError."""
    if name not in FORMATS:
        raise DataError(f"there is no format {name!r} to import{did_you_mean(name, FORMATS)}")
    return FORMATS[name]
