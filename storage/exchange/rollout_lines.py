"""Rollouts that carry their problem and their scores with them: what `strop import strop` reads in another lake.

Ids are those of the lake they come from. They tell an import which lines belong together, and nothing more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from strop.storage.exchange.formats import FORMATS, Shape
from strop.storage.exchange.sources import SOURCES, table_columns
from strop.storage.parquet import schema as table_schema
from strop.storage.tables import Rollout, Score

PROBLEM = ("task", "category", "level", "prompt", "messages", "reference", "aux", "origin")
"""Columns of a problem that a line carries."""
SCORE = ("subject_kind", "step_index", "scorer", "scorer_version", "verdict", "value", "answer", "reason", "detail")
"""Columns of a score that a line carries."""

_SCORES = f"""coalesce((
    SELECT list({{{", ".join(f"'{name}': s.{name}" for name in SCORE)}}} ORDER BY s.score_id) FROM scores s
    WHERE s.subject_kind IN ('rollout', 'step', 'token') AND s.subject_id = selected.rollout_id), []) AS scores"""
_ROLLOUT = table_columns(SOURCES["rollouts"])


def _struct(names: tuple[str, ...], of: pa.Schema) -> pa.DataType:
    return pa.struct([of.field(name) for name in names])


def _record(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "problem": {name: row["problem" if name == "prompt" else name] for name in PROBLEM},
        "policy": row["policy"],
        "context": row["context"],
        "scores": row["scores"],
        **{name: row[name] for name in _ROLLOUT},
    }


def lines() -> Shape:
    """The shape `strop` of rollouts."""
    from strop.storage.tables import Problem

    fields = [
        pa.field("problem", _struct(PROBLEM, table_schema(Problem))),
        pa.field("policy", pa.string()),
        pa.field("context", pa.string()),
        pa.field("scores", pa.list_(_struct(SCORE, table_schema(Score)))),
        *table_schema(Rollout),
    ]
    extra = ("problem", "policy", "context", *(name for name in PROBLEM if name != "prompt"))
    return Shape(pa.schema(fields), (*_ROLLOUT, *extra, _SCORES), _record)


FORMATS["strop"] = {"rollouts": lines()}
