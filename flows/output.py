"""How commands print: tables, JSON and CSV. Values go to stdout, words about them to stderr."""

from __future__ import annotations

import datetime
import json
import math
import sys
from collections.abc import Sequence
from typing import Any

_SHOWN: dict[int, int | str] = dict.fromkeys(range(127, 160), 0xFFFD)
_SHOWN |= {code: 0x2400 + code for code in range(32)}
_SHOWN |= {9: " ", 10: "⏎", 13: "␍"}
_SHOWN_LINES = {code: shown for code, shown in _SHOWN.items() if code != 10}
CELL = 80
"""Characters of a cell of a table; JSON and CSV are never cut."""


def say(text: str) -> None:
    """A word to the user, on stderr, so that stdout stays what a script reads."""
    print(text, file=sys.stderr, flush=True)


def as_json(value: Any) -> str:
    """Indented JSON; times in ISO form, anything else unknown as text."""
    return json.dumps(value, indent=2, default=_plain, ensure_ascii=False)


def json_line(value: Any) -> str:
    """JSON on one line; what JSON has no number for (NaN, infinity) is null."""
    try:
        return json.dumps(value, default=_plain, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), default=_plain, ensure_ascii=False)


def table(columns: Sequence[str], values: Sequence[Sequence[str]], *, right: Sequence[int] | None = None) -> None:
    """A plain aligned table; columns in `right` (default: those that hold only numbers) are set flush right."""
    lines = [list(columns), *[list(row) for row in values]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    if right is None:
        right = [i for i in range(len(columns)) if values and all(_numeric(row[i]) for row in values)]
    for n, parts in enumerate(lines):
        padded = [p.rjust(w) if i in right else p.ljust(w) for i, (p, w) in enumerate(zip(parts, widths, strict=True))]
        print("  ".join(padded).rstrip())
        if n == 0:
            print("  ".join("-" * w for w in widths))


def cell(value: Any) -> str:
    """A value in one line of at most `CELL` characters."""
    text = "" if value is None else plain(as_text(value))
    return text if len(text) <= CELL else text[: CELL - 1] + "…"


def plain(text: str, *, keep_lines: bool = False) -> str:
    """The text without characters that a terminal obeys: what a model wrote must not move the cursor."""
    if text.isprintable():
        return text
    return text.translate(_SHOWN_LINES if keep_lines else _SHOWN)


def as_text(value: Any) -> str:
    """A value as a person reads it: six digits, times to the second."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, datetime.datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    return json_line(value) if isinstance(value, (list, dict)) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, (datetime.date, datetime.datetime)) else str(value)


def _numeric(text: str) -> bool:
    try:
        float(text or "0")
    except ValueError:
        return False
    return True
