"""Results as text, row by row as they arrive, so that a big one needs no memory; and as Parquet, with their types.

The table alone looks ahead: its columns are as wide as the first batch needs.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from strop.flows import output
from strop.storage.errors import LakeError

if TYPE_CHECKING:
    from strop.storage.console import Stream

TEXT = ("table", "csv", "json", "jsonl", "markdown")
FORMATS = (*TEXT, "parquet")
SUFFIXES = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".md": "markdown",
    ".parquet": "parquet",
    ".txt": "table",
}
NUMBERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "FLOAT", "DOUBLE", "DECIMAL", "U")
NARROW = 12
"""Characters below which no column of text is squeezed."""


class Found(Protocol):
    """Rows that arrive in batches; a running query, or `Fixed`."""

    columns: list[str]
    types: list[str]

    def batches(self) -> Iterator[list[tuple[Any, ...]]]:
        """The rows, each batch once."""


@dataclass(slots=True)
class Fixed:
    """Rows that are there already."""

    columns: list[str]
    types: list[str]
    rows: list[tuple[Any, ...]]

    def batches(self) -> Iterator[list[tuple[Any, ...]]]:
        """All of them."""
        yield self.rows


def text(found: Found, form: str, *, width: int | None = None, expanded: bool | None = False) -> Iterator[str]:
    """Lines of one of the `TEXT` formats; `width` is that of the screen, None where there is none.

    `expanded` puts each value of a table on a line of its own; None does so where the table is wider than the screen.
    """
    if form == "table":
        yield from _table(found, width, expanded)
    else:
        write: dict[str, Callable[[Found], Iterator[str]]] = {
            "csv": _csv,
            "json": _json,
            "jsonl": _jsonl,
            "markdown": _markdown,
        }
        yield from write[form](found)


def _table(found: Found, width: int | None, expanded: bool | None) -> Iterator[str]:
    batches = found.batches()
    first = next(batches, [])
    right = [_is_number(name) for name in found.types]
    head = [output.plain(name) for name in found.columns]
    cells = [[output.cell(value) for value in row] for row in first]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    squeezed = widths if width is None or expanded else _squeezed(widths, right, width)
    if expanded or (expanded is None and squeezed is None):
        yield from _records(found.columns, first, batches)
        return
    widths = squeezed or widths
    yield _line(head, widths, right)
    yield "  ".join("-" * w for w in widths) + "\n"
    for row in cells:
        yield _line(row, widths, right)
    for batch in batches:
        for values in batch:
            yield _line([output.cell(value) for value in values], widths, right)


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    """One row; text that is too long is cut, a number never: it would be another number."""
    parts = []
    for cell, width, is_number in zip(cells, widths, right, strict=True):
        shown = cell if is_number or len(cell) <= width else cell[: width - 1] + "…"
        parts.append(shown.rjust(width) if is_number else shown.ljust(width))
    return "  ".join(parts).rstrip() + "\n"


def _squeezed(widths: list[int], right: Sequence[bool], width: int) -> list[int] | None:
    """The widths made to fit the screen at the cost of the widest texts; None when they cannot."""
    widths = list(widths)
    over = sum(widths) + 2 * (len(widths) - 1) - width
    while over > 0:
        texts = sorted((w, i) for i, w in enumerate(widths) if not right[i] and w > NARROW)
        if not texts:
            return None
        widest, at = texts[-1]
        next_widest = max(texts[-2][0] if len(texts) > 1 else NARROW, NARROW)
        cut = min(over, max(widest - next_widest, 1))
        widths[at] -= cut
        over -= cut
    return widths


def _records(
    columns: Sequence[str], first: list[tuple[Any, ...]], batches: Iterator[list[tuple[Any, ...]]]
) -> Iterator[str]:
    """Each row as lines of `column | value`, the values whole."""
    names = [output.plain(name) for name in columns]
    width = max(map(len, names), default=0)
    number = 0
    batch: list[tuple[Any, ...]] | None = first
    while batch is not None:
        for row in batch:
            number += 1
            yield f"-[ {number} ]".ljust(width + 3, "-") + "\n"
            for name, value in zip(names, row, strict=True):
                lines = "" if value is None else output.plain(output.as_text(value), keep_lines=True)
                yield f"{name:<{width}} | {lines.replace(chr(10), chr(10) + ' ' * width + ' | ')}".rstrip() + "\n"
        batch = next(batches, None)


def _csv(found: Found) -> Iterator[str]:
    """Null is an empty field; numbers have all their digits, lists are JSON."""
    import csv
    import io

    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(found.columns)
    for batch in found.batches():
        writer.writerows([[_exact(value) for value in row] for row in batch])
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
    yield buffer.getvalue()


def _json(found: Found) -> Iterator[str]:
    before = "[\n"
    for line in _jsonl(found):
        yield before + line.removesuffix("\n")
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def _jsonl(found: Found) -> Iterator[str]:
    for batch in found.batches():
        for row in batch:
            yield output.json_line(dict(zip(found.columns, row, strict=True))) + "\n"


def _markdown(found: Found) -> Iterator[str]:
    yield f"| {' | '.join(map(_escaped, found.columns))} |\n"
    yield f"|{'|'.join(' ---: ' if _is_number(name) else ' --- ' for name in found.types)}|\n"
    for batch in found.batches():
        for row in batch:
            yield f"| {' | '.join('' if v is None else _escaped(output.as_text(v)) for v in row)} |\n"


def _escaped(cell: str) -> str:
    return output.plain(cell, keep_lines=True).replace("\\", "\\\\").replace("|", "\\|").replace("\n", "<br>")


def _exact(value: Any) -> Any:
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    if isinstance(value, (list, dict)):
        return output.json_line(value)
    return "" if value is None or value != value else value


def _is_number(sql_type: str) -> bool:
    return not sql_type.endswith("]") and (
        sql_type.startswith(NUMBERS[:-1]) or (sql_type.startswith("U") and "INT" in sql_type)
    )


def parquet(found: Stream, path: Path) -> None:
    """Write the rows to a Parquet file as they arrive, with DuckDB's types. Raises LakeError for a type it has not."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, batches = found.arrow()
    try:
        with pq.ParquetWriter(path, schema, compression="zstd", compression_level=3) as writer:
            for batch in batches:
                writer.write_batch(batch)
    except pa.ArrowNotImplementedError as error:
        raise LakeError(f"Parquet has no such type; cast the column, for example to VARCHAR: {error}") from error
