"""JSON lines with their place, and values of the type a column wants: every complaint names file and line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from strop.core.imports.sample import Complain
from strop.storage.errors import DataError

INTEGERS = {"INTEGER": 1 << 31, "BIGINT": 1 << 63}


def records(path: Path, complain: Complain) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of every line that is not empty."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                found = record(path, number, line, complain)
                if found is not None:
                    yield number, found


def record(path: Path, number: int, line: bytes, complain: Complain) -> dict[str, Any] | None:
    """The object of one line; None after a complaint that did not raise."""
    try:
        found = json.loads(line)
    except UnicodeDecodeError:
        complain(path, number, "not UTF-8 text")
    except json.JSONDecodeError as error:
        complain(path, number, f"not JSON: {error.msg} at column {error.colno}")
    else:
        if isinstance(found, dict):
            return found
        complain(path, number, f"a JSON object is expected, got {line[:60].decode(errors='replace')!r}")
    return None


class Wrong(ValueError):
    """A value that does not fit; the reader turns it into a complaint about its line."""


def value(found: Any, sql_type: str, name: str) -> Any:
    """The value as the column takes it. Raises Wrong."""
    if found is None:
        return None
    if sql_type.endswith("[]"):
        if not isinstance(found, list):
            raise Wrong(f"{name!r} must be a list, got {_shown(found)}")
        return [value(item, sql_type[:-2], f"{name}[{i}]") for i, item in enumerate(found)]
    if sql_type == "VARCHAR" and isinstance(found, str):
        return found
    if sql_type in INTEGERS and isinstance(found, int) and not isinstance(found, bool):
        if -INTEGERS[sql_type] <= found < INTEGERS[sql_type]:
            return found
        raise Wrong(f"{name!r} is too large: {found}")
    if sql_type in ("DOUBLE", "FLOAT") and isinstance(found, int | float) and not isinstance(found, bool):
        return float(found) if math.isfinite(found) else None
    if sql_type == "BOOLEAN" and isinstance(found, bool):
        return found
    wanted = {"VARCHAR": "text", "BOOLEAN": "true or false"}.get(sql_type, "a number")
    raise Wrong(f"{name!r} must be {wanted}, got {_shown(found)}")


def text(record: Mapping[str, Any], *names: str, default: str | None = None) -> str | None:
    """The first of these fields that is there, as text; numbers are written out. Raises Wrong."""
    for name in names:
        found = record.get(name)
        if isinstance(found, bool | dict | list):
            raise Wrong(f"{name!r} must be text, got {_shown(found)}")
        if found is not None:
            return found if isinstance(found, str) else json.dumps(found)
    return default


def messages(found: Any, name: str) -> list[dict[str, Any]]:
    """A list of chat messages. Raises Wrong."""
    if not isinstance(found, list) or not all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in found):
        raise Wrong(f"{name!r} must be a list of messages with a role, got {_shown(found)}")
    return found


def content(message: Mapping[str, Any]) -> str:
    """The text of a message; of several parts, the text ones. Raises Wrong."""
    found = message.get("content")
    if isinstance(found, list):
        return "\n".join(str(part.get("text", "")) for part in found if isinstance(part, dict) and "text" in part)
    if found is None or isinstance(found, str):
        return found or ""
    raise Wrong(f"the content of a message must be text, got {_shown(found)}")


def compact(value: Any) -> str | None:
    """JSON with sorted keys; None for an empty object."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")) if value else None


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:59] + "…"


def no_files(path: Path, wanted: str) -> DataError:
    """The error for a folder that has none of a format's files."""
    return DataError(f"{path} has no {wanted}; name the files themselves")
