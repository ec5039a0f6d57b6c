"""How commands print: tables, JSON and CSV. Values go to stdout, words about them to stderr."""

from __future__ import annotations

import csv
import datetime
import json
import sys
from collections.abc import Sequence
from typing import Any

FORMATS = ("table", "json", "csv")
CELL = 80
"""Characters of a cell of a table; JSON and CSV are never cut."""


def say(text: str) -> None:
    """A word to the user, on stderr, so that stdout stays what a script reads."""
    print(text, file=sys.stderr, flush=True)


def as_json(value: Any) -> str:
    """Indented JSON; times in ISO form, anything else unknown as text."""
    return json.dumps(value, indent=2, default=_plain, ensure_ascii=False)


def rows(columns: Sequence[str], values: Sequence[Sequence[Any]], form: str) -> None:
    """Print rows as a table, as a JSON list of objects, or as CSV."""
    if form == "json":
        print(as_json([dict(zip(columns, row, strict=True)) for row in values]))
    elif form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([["" if v is None else _text(v) for v in row] for row in values])
    else:
        table(columns, [[cell(v) for v in row] for row in values])


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
    text = "" if value is None else _text(value)
    text = text.replace("\n", "⏎").replace("\t", " ")
    return text if len(text) <= CELL else text[: CELL - 1] + "…"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, datetime.datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    return json.dumps(value, default=_plain, ensure_ascii=False) if isinstance(value, (list, dict)) else str(value)


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, (datetime.date, datetime.datetime)) else str(value)


def _numeric(text: str) -> bool:
    try:
        float(text or "0")
    except ValueError:
        return False
    return True
