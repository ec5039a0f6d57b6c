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

OWN = "SELECT * FROM {table} WHERE run_id = ?"
OWN_AND_REUSED = """
SELECT t.* REPLACE (p.run_id AS run_id, p.round AS round)
FROM {table} t JOIN (
    SELECT coalesce(reuses, stage_run_id) AS made_by, run_id, min(round) AS round
    FROM stage_runs WHERE run_id = ? GROUP BY ALL
) p ON p.made_by = t.stage_run_id
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
    return label.partition("~")[0]


def rows_sql(table: str, *, reused: bool, superseded: bool = False) -> str:
    """A query for the rows of a table that a run sees; its one parameter is the run's id.

    `reused` says whether the run re-uses any: without it, no join is made.
    """
    rows = (OWN_AND_REUSED if reused else OWN).format(table=table)
    return CURRENT.format(rows=rows) if table == Score.TABLE and not superseded else rows


def read_rows(
    lake: Lake,
    row: type[R],
    run_id: str,
    where: str,
    params: Sequence[object] = (),
    without: Iterable[str] = (),
    *,
    reused: bool,
    superseded: bool = False,
) -> list[R]:
    """Those of them that satisfy an SQL condition, in order of their id; columns in `without` are None."""
    from strop.storage.parquet import from_arrow  # pyarrow, which `strop plan` does without

    absent = set(without)
    wanted = ", ".join(f'"{c.name}"' for c in columns(row) if c.name not in absent)
    rows = rows_sql(row.TABLE, reused=reused, superseded=superseded)
    found = lake.arrow(f"SELECT {wanted} FROM ({rows}) WHERE {where}", [run_id, *params])
    return sorted(from_arrow(row, found, absent), key=attrgetter(row.ID or "stage_run_id"))
