"""Problems from a file with one JSON object a line.

Source: JSON Lines, jsonlines.org. The file is read once, whole. The task has neither a generator nor a scorer: verify
with `answer` or `math`.
"""

from __future__ import annotations

import json
from pathlib import Path

from strop.core.plugin import Task, stage
from strop.plugins.tasks._records import Fields, held_out_apart, held_out_by_share, problem
from strop.storage.errors import DataError
from strop.storage.tables import Problem


class Jsonl(Fields):
    """Where the problems are, and the names of their fields."""

    path: Path
    """The file; a relative path starts at the recipe's folder, or at the working directory outside a recipe."""
    heldout_path: Path | None = None
    """A second file whose problems are the held-out ones."""


@stage("task")
def jsonl(config: Jsonl) -> Task:
    """The task. Raises DataError, which names file and line, for a file that is absent, empty or malformed."""
    train = _read(config.path, config)
    if config.heldout_path is None:
        problems = held_out_by_share(train, config.heldout, str(config.path))
    else:
        problems = held_out_apart(train, _read(config.heldout_path, config), str(config.path))
    return Task(problems=lambda: list(problems))


def _read(path: Path, fields: Fields) -> list[Problem]:
    if not path.is_file():
        raise DataError(f"there is no file {path} (working directory: {Path.cwd()})")
    found = []
    with path.open(encoding="utf-8-sig") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    found.append(problem(_record(line, f"{path}:{number}", fields), f"{path}:{number}", fields))
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 text: {error}") from error
    if not found:
        raise DataError(f"{path} is empty; {_expected(fields)}")
    return found


def _record(line: str, where: str, fields: Fields) -> dict[str, object]:
    try:
        record = json.loads(line.strip())
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON: {error.msg} at column {error.colno}; {_expected(fields)}") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: a JSON object is expected, got {line.strip()[:60]!r}; {_expected(fields)}")
    return record


def _expected(fields: Fields) -> str:
    example = json.dumps({fields.prompt: "2+3=", fields.reference: "5"})
    return f"write one JSON object a line, such as {example}"
