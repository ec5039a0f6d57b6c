"""Which rows a run sees: its own and those it re-uses, under its own name and rounds; of scores only the current ones.

The ledger decides: a `stage_runs` row with `reuses` makes the rows of another run's shard this run's, at this place.
Ids stay what they are, so that lineage is true. A score that another one of the run supersedes is not counted: every
number made from verdicts reads them through here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import TypeVar

from strop.storage.lake import Lake
from strop.storage.tables import Row, Score, StageRun, columns

R = TypeVar("R", bound=Row)

Ledger = dict[tuple[int, str], dict[int, StageRun]]
"""(round, label) -> shard -> its committed row."""

AGAIN = "~"
"""Between the label of a verify stage and the number of the attempt that verified something again."""

OWN = "SELECT * FROM {table} WHERE run_id = ?"
OWN_AND_REUSED = """
SELECT t.* REPLACE (?::VARCHAR AS run_id, p.round AS round)
FROM {table} t JOIN (SELECT unnest(?::BIGINT[]) AS made_by, unnest(?::INTEGER[]) AS round) p
ON p.made_by = t.stage_run_id
"""
CURRENT = """
WITH visible AS ({rows})
SELECT * FROM visible v WHERE NOT EXISTS (SELECT 1 FROM visible n WHERE n.supersedes = v.score_id)
"""


def made_by(run: StageRun) -> int:
    """Id of the stage run that wrote the rows a ledger row stands for."""
    return run.stage_run_id if run.reuses is None else run.reuses


def stage_of(label: str) -> str:
    """The recipe's label of a ledger row: `verify~2` verified again what `verify` had."""
    return label.partition(AGAIN)[0]


def reused(ledger: Ledger) -> set[int]:
    """Ids of the stage runs of other runs whose rows a ledger makes visible."""
    return {run.reuses for by in ledger.values() for run in by.values() if run.reuses is not None}


def places(ledger: Ledger) -> dict[int, tuple[int, str, int]]:
    """Round, label and shard of the stage runs whose rows a ledger makes visible; the first place of each."""
    found: dict[int, tuple[int, str, int]] = {}
    for (at, label), by in ledger.items():
        for shard, run in by.items():
            place = (at, label, shard)
            found[made_by(run)] = min(place, found.get(made_by(run), place))
    return found


def rows_sql(table: str, run_id: str, ledger: Ledger, *, superseded: bool = False) -> tuple[str, list[object]]:
    """A query for the rows of a table that a run sees, and its parameters.

    A run that re-uses nothing needs no join, and one that verified nothing again has no superseded score.
    """
    sql = OWN.format(table=table)
    params: list[object] = [run_id]
    if reused(ledger):
        at = {id: round for id, (round, _, _) in places(ledger).items()}
        sql, params = OWN_AND_REUSED.format(table=table), [run_id, list(at), list(at.values())]
    if table == Score.TABLE and not superseded and any(AGAIN in label for _, label in ledger):
        sql = CURRENT.format(rows=sql)
    return sql, params


def read_rows(
    lake: Lake,
    row: type[R],
    rows: tuple[str, list[object]],
    where: str,
    params: Sequence[object] = (),
    without: Iterable[str] = (),
) -> list[R]:
    """Those of the `rows` that satisfy an SQL condition, in order of their id; columns in `without` are None."""
    from strop.storage.parquet import from_arrow  # pyarrow, which `strop plan` does without

    absent = set(without)
    wanted = ", ".join(f'"{c.name}"' for c in columns(row) if c.name not in absent)
    sql, given = rows
    found = lake.arrow(f"SELECT {wanted} FROM ({sql}) WHERE {where}", [*given, *params])
    return sorted(from_arrow(row, found, absent), key=attrgetter(row.ID or "stage_run_id"))
