"""What an import reads: its files, named and hashed, so that the same ones are known again."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from strop.core.imports.sample import Format, Options
from strop.core.recipe import canonical_json
from strop.storage.errors import DataError, LakeError
from strop.storage.exchange.files import content_hash
from strop.storage.lake import Lake
from strop.storage.tables import Run


def find_files(format: Format, paths: Sequence[Path]) -> list[Path]:
    """The files that paths and folders name. Raises DataError for one that is not there."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += format.find(path)
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"there is no file {path} (working directory: {Path.cwd()})")
    return list(dict.fromkeys(found))


def describe(files: Sequence[Path], format: Format, options: Options) -> str:
    """What is imported, as JSON: the same for the same files wherever they lie."""
    top = Path(os.path.commonpath([path.absolute().parent for path in files]))
    named = [
        {"name": str(path.absolute().relative_to(top)), "bytes": path.stat().st_size, "blake2b": content_hash(path)}
        for path in files
    ]
    chosen = {key: value for key, value in dataclasses.asdict(options).items() if value is not None}
    default = top.name if format.name == "nemo-skills" and options.task is None else None
    sources: dict[str, Any] = {"format": format.name, "files": named, "options": chosen}
    return canonical_json({**sources, **({"folder": default} if default else {})})


def check_run(lake: Lake, run_id: str, format: Format, sources: str) -> None:
    there = lake.rows(Run, "run_id = ?", [run_id])
    if not there:
        if lake.committed(run_id):
            raise LakeError(f"the run {run_id!r} exists and is no import; name another with --run-id")
        return
    if there[0].recipe != f"import:{format.name}":
        raise LakeError(f"the run {run_id!r} exists and is one of {there[0].recipe!r}; name another one with --run-id")
    if there[0].sources_json != sources:
        before, now = json.loads(there[0].sources_json or "{}"), json.loads(sources)
        raise LakeError(
            f"the run {run_id!r} was imported from other files or with other options ({_difference(before, now)}); "
            "put them back, or name another run with --run-id"
        )


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    if before.get("options") != now["options"]:
        return f"options were {before.get('options')}, now {now['options']}"
    old = {file["name"]: file["blake2b"] for file in before.get("files", [])}
    new = {file["name"]: file["blake2b"] for file in now["files"]}
    changed = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return f"{len(changed)} differ, {changed[0]!r} among them" if changed else "another folder"
