"""An export: the selected rows of one snapshot, streamed into files that appear whole or not at all.

The same lake, snapshot and options give the same bytes: rows come in a fixed order and nothing is dated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from strop.storage.console import Console
from strop.storage.errors import LakeError
from strop.storage.exchange import rollout_lines as rollout_lines  # registers its format
from strop.storage.exchange.card import dataset_card
from strop.storage.exchange.files import Writer, content_hash, writer_for
from strop.storage.exchange.formats import Shape, shape
from strop.storage.exchange.place import FILES, MANIFEST, check_free, fresh, manifest_of
from strop.storage.exchange.selection import Selection, base_query, batches, check_names
from strop.storage.exchange.sources import SOURCES, Source, source

ROWS_PER_FILE = 262144
VERL_NAMES = {"train": "train.parquet", "heldout": "test.parquet"}
"""verl's own examples call the problems it validates on `test`."""

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    path: Path
    snapshot: int
    rows: dict[str, int]
    """By split; one file holds them all under 'all'."""
    files: list[str] = field(default_factory=list)


def export(
    console: Console,
    what: str,
    format: str,
    path: Path,
    selection: Selection,
    *,
    force: bool = False,
    beside: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Write a selection to a file (`.jsonl`, `.parquet`) or to a folder that `datasets.load_dataset` reads.

    `beside` are further text files for the folder, by name; `progress` is called with the rows written so far.
    Raises LakeError when nothing is selected, when the place is taken, or when the selection does not fit.
    """
    found = source(what)
    wanted = shape(format, found)
    found = replace(found, fixed=f"({found.fixed}) AND ({wanted.fixed})")
    check_free(path, force=force)
    check_names(console, selection)
    runs = _runs(console, found, selection)
    if not runs:
        raise LakeError(_nothing(console, found, selection))
    with fresh(path, force=force) as work:
        out = _Out(work, wanted.schema, verl=format == "verl")
        try:
            for split, batch in _shaped(console, found, wanted, selection, folder=work.is_dir()):
                out.write(split, batch)
                if progress is not None:
                    progress(sum(out.rows.values()))
        finally:
            out.close()
        about = _manifest(console, what, format, found, selection, runs, out)
        if work.is_dir():
            for name, text in (beside or {}).items():
                (work / name).write_text(text, encoding="utf-8")
            (work / "README.md").write_text(dataset_card(about, verl=format == "verl"), encoding="utf-8")
        text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
        manifest = work / MANIFEST if work.is_dir() else manifest_of(path)
        manifest.write_text(text, encoding="utf-8")
    return Exported(path, console.snapshot, out.rows, sorted(out.names))


class _Out:
    """The files of one export: one, or those of a folder, by split."""

    def __init__(self, work: Path, schema: pa.Schema, *, verl: bool) -> None:
        self.rows: dict[str, int] = {}
        self.names: dict[str, Path] = {}
        self._work, self._schema, self._verl = work, schema, verl
        self._open: dict[str, Writer] = {}

    def write(self, split: str, batch: pa.RecordBatch) -> None:
        """Add rows of a split, to a new file where the last one is full."""
        writer = self._open.get(split)
        if writer is None or (not self._verl and self._work.is_dir() and writer.rows >= ROWS_PER_FILE):
            if writer is not None:
                writer.close()
            path = self._next(split)
            self.names[str(path.relative_to(self._work)) if self._work.is_dir() else ""] = path
            writer = self._open[split] = writer_for(path)(path, self._schema)
        writer.write(batch)
        self.rows[split] = self.rows.get(split, 0) + batch.num_rows

    def close(self) -> None:
        """Finish every file."""
        for writer in self._open.values():
            writer.close()

    def _next(self, split: str) -> Path:
        if self._work.suffix in FILES:
            return self._work
        if self._verl:
            return self._work / VERL_NAMES[split]
        return self._work / "data" / f"{split}-{self.rows.get(split, 0) // ROWS_PER_FILE:05d}.parquet"


def _shaped(
    console: Console, found: Source, wanted: Shape, selection: Selection, *, folder: bool
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """The rows in the shape wanted, split by split within each batch."""
    reads = [name if " " in name else f'"{name}"' for name in wanted.reads]
    asked = ", ".join([*reads, "coalesce(split, 'train') AS \"_split\""])
    counts: dict[str, int] = {}
    for batch in batches(console, found, selection, asked):
        splits = batch.column("_split")
        for split in sorted(splits.unique().to_pylist()) if folder else ["all"]:
            part = batch.filter(pc.equal(splits, split)) if folder else batch
            yield split, _records(part, wanted, counts.get(split, 0))
            counts[split] = counts.get(split, 0) + part.num_rows


def _records(batch: pa.RecordBatch, wanted: Shape, first: int) -> pa.RecordBatch:
    if wanted.record is None:
        return batch.select(wanted.schema.names).cast(wanted.schema)
    rows = [wanted.record({**row, "index": first + i}) for i, row in enumerate(batch.to_pylist())]
    return pa.RecordBatch.from_pylist(rows, wanted.schema)


def _runs(console: Console, found: Source, selection: Selection) -> list[dict[str, Any]]:
    """The runs whose rows are selected, with their counts."""
    base = base_query(found, selection)
    result = console.query(
        "SELECT run_id, any_value(recipe) AS recipe, any_value(seed) AS seed, any_value(recipe_hash) AS recipe_hash, "
        "any_value(strop_version) AS strop_version, any_value(code_version) AS code_version, any_value(n) AS rows "
        f"FROM (SELECT run_id, count(*) AS n FROM ({base}) GROUP BY run_id) LEFT JOIN runs USING (run_id) "
        "GROUP BY run_id ORDER BY run_id"
    )
    return [dict(zip(result.columns, row, strict=True)) for row in result.rows]


def _nothing(console: Console, found: Source, selection: Selection) -> str:
    """Why nothing was selected, as far as it can be told."""
    there = []
    for name, other in SOURCES.items():
        narrowed = Selection(run_id=selection.run_id)
        number = console.query(f"SELECT count(*) FROM ({base_query(other, narrowed)})").rows[0][0]
        there.append(f"{number} {name}")
    of = f"run {selection.run_id}" if selection.run_id is not None else "the lake"
    return f"the selection holds no {found.name} ({found.doc}); without further conditions {of} has {', '.join(there)}"


def _manifest(
    console: Console,
    what: str,
    format: str,
    found: Source,
    selection: Selection,
    runs: list[dict[str, Any]],
    out: _Out,
) -> dict[str, Any]:
    files = {
        name: {"bytes": path.stat().st_size, "blake2b": content_hash(path)} for name, path in sorted(out.names.items())
    }
    return {
        "what": what,
        "format": format,
        "rows": out.rows,
        "snapshot": console.snapshot,
        "selection": selection.plain(),
        "query": base_query(found, selection),
        "runs": runs,
        "columns": out._schema.names,
        "files": {name or "(this file)": facts for name, facts in files.items()},
        "strop_version": metadata.version("strop"),
    }
