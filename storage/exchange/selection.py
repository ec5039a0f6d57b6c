"""Which rows of a source an export takes, in which order, as queries of a bounded size.

DuckDB sorts in memory, so a sorted export in one query would hold all of it. Instead the rows are cut into parts in
the order of the export (by stage run, or by ranges of a hash where they are shuffled), and each part is one query.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from strop.storage.console import Console
from strop.storage.errors import LakeError, did_you_mean
from strop.storage.exchange.sources import VERDICTS, Source
from strop.storage.views import literal

if TYPE_CHECKING:
    import pyarrow as pa

PART = 16384
"""Rows one query is meant to return: some 80 MB of wide rollouts."""
BATCH = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What a user asked for; None = everything."""

    run_id: str | None = None
    rounds: tuple[int, int] | None = None
    """First and last round."""
    policy: str | None = None
    """Name of the policy that sampled the rollouts, or was trained on the examples."""
    split: str | None = None
    scorer: str | None = None
    """Only this scorer's verdicts count; None = all of them must agree."""
    where: str | None = None
    """An SQL condition over the source's columns."""
    limit: int | None = None
    shuffle_seed: int | None = None
    """Order by a hash of seed and id; None = by run, round and id."""

    def plain(self) -> dict[str, Any]:
        """What was asked for, as JSON values."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def base_query(source: Source, selection: Selection) -> str:
    """The selected rows with every column of the source, in no order.

    Raises LakeError for a condition that the source's rows cannot have.
    """
    scorer = "true" if selection.scorer is None else f"scorer = {literal(selection.scorer)}"
    conditions = [source.fixed]
    if selection.run_id is not None:
        conditions.append(f"run_id = {literal(selection.run_id)}")
    if selection.rounds is not None:
        conditions.append(f"round BETWEEN {selection.rounds[0]} AND {selection.rounds[1]}")
    if selection.policy is not None:
        if source.policy is None:
            raise LakeError(f"{source.name} belong to no policy: leave --policy out, or export rollouts")
        conditions.append(source.policy.format(name=literal(selection.policy)))
    if selection.split is not None:
        conditions.append(f"split = {literal(selection.split)}")
    if selection.where is not None:
        conditions.append(f"({selection.where}\n)")
    inner = source.sql.format(verdicts=VERDICTS.format(scorer=scorer), scorer=scorer)
    return f"SELECT * FROM ({inner}) AS {source.name} WHERE " + "\n  AND ".join(conditions)


def check_names(console: Console, selection: Selection) -> None:
    """Raises LakeError for a run, policy or scorer that the lake does not have."""
    for value, column, table in (
        (selection.run_id, "run_id", "runs"),
        (selection.policy, "name", "policies"),
        (selection.scorer, "scorer", "scores"),
    ):
        if value is not None:
            known = [row[0] for row in console.query(f"SELECT DISTINCT {column} FROM {table}").rows]
            if value not in known:
                what = {"runs": "run", "policies": "policy", "scores": "scorer"}[table]
                raise LakeError(f"the lake {console.root} has no {what} {value!r}{did_you_mean(value, known)}")


def batches(console: Console, source: Source, selection: Selection, wanted: str = "*") -> Iterator[pa.RecordBatch]:
    """The selected rows in the export's order, as batches of at most `BATCH` rows of the columns `wanted`."""
    base = base_query(source, selection)
    left = selection.limit
    for condition, order in _parts(console, source, selection, base):
        sql = f"SELECT {wanted} FROM ({base}) AS selected WHERE {condition} ORDER BY {order}"
        if left is not None:
            sql += f" LIMIT {left}"
        for batch in _streamed(console, sql):
            yield batch
            if left is not None:
                left -= batch.num_rows
        if left == 0:
            return


def _streamed(console: Console, sql: str) -> Iterator[pa.RecordBatch]:
    """The batches of one query. Raises LakeError."""
    with console.stream(sql) as found:
        try:
            yield from found.arrow(BATCH)[1]
        except OSError as error:  # what fails inside an Arrow stream does not come as DuckDB's own error
            raise LakeError(f"the query failed: {error}") from error


def _parts(console: Console, source: Source, selection: Selection, base: str) -> Iterator[tuple[str, str]]:
    """(condition, order) of each part, in the export's order."""
    if selection.shuffle_seed is not None:
        shuffled = f"md5(concat({literal(str(selection.shuffle_seed))}, ':', {source.id}))"
        rows = console.query(f"SELECT count(*) FROM ({base})").rows[0][0]
        number = max(1, -(-rows // PART))
        edges = [f"{i * (1 << 32) // number:08x}" for i in range(number)]
        for low, high in zip(edges, [*edges[1:], "g"], strict=True):  # 'g' comes after every hexadecimal digit
            yield f"{shuffled} >= '{low}' AND {shuffled} < '{high}'", f"{shuffled}, {source.id}"
        return
    counts = console.query(
        f"SELECT run_id, round, stage_run_id, count(*) FROM ({base}) GROUP BY ALL ORDER BY run_id, round, stage_run_id"
    ).rows
    together: list[int] = []
    size = 0
    for i, (_, _, stage_run_id, count) in enumerate(counts):
        together.append(stage_run_id)
        size += count
        if size >= PART or i == len(counts) - 1:
            yield f"stage_run_id IN ({', '.join(map(str, together))})", f"run_id, round, {source.id}"
            together, size = [], 0
