"""What a ready-made view is, and the pieces of SQL that several of them share."""

from __future__ import annotations

from dataclasses import dataclass

from strop.storage.tables import Column


@dataclass(frozen=True, slots=True)
class Query:
    """An example query of the reference page."""

    asks: str
    sql: str


@dataclass(frozen=True, slots=True)
class ReadyView:
    """A view that answers a common question."""

    name: str
    doc: str
    needs: tuple[str, ...]
    """Tables and views it reads."""
    columns: tuple[Column, ...]
    sql: str
    examples: tuple[Query, ...]


def columns(**described: tuple[str, str]) -> tuple[Column, ...]:
    """Columns as name=(type, meaning)."""
    return tuple(Column(name, sql_type, doc) for name, (sql_type, doc) in described.items())


def of_runs(table: str, wanted: str) -> str:
    """The rows of a table by the run and round that used them: those it wrote, and those of stage runs it re-uses.

    Two branches instead of a join over everything, so that a filter on the run or round reaches the scan; where no
    run re-uses another, the second branch reads nothing.
    """
    theirs = ", ".join(f"t.{name.strip()}" for name in wanted.split(","))
    return f"""(
  SELECT run_id, round, {wanted} FROM {table}
  UNION ALL
  SELECT u.run_id, u.round, {theirs}
  FROM {table} t JOIN (SELECT run_id, round, reuses FROM stage_runs WHERE reuses IS NOT NULL) u
    ON t.stage_run_id = u.reuses)"""


STANDING = "ANTI JOIN (SELECT supersedes FROM scores WHERE supersedes IS NOT NULL) gone ON gone.supersedes = s.score_id"
"""After `scores s`: without those that a later score replaces."""

UNAIDED = "ANTI JOIN (SELECT rollout_id FROM rollouts WHERE train_prompt IS NOT NULL) a ON a.rollout_id = s.subject_id"
"""After `scores s`, of rollouts: without those whose prompt held more than the problem, a hint for one."""

OF_ROLLOUT = "s.subject_kind = 'rollout' AND s.step_index IS NULL"

VERDICT = """CASE WHEN bool_or(s.verdict = 'error') THEN 'error' WHEN bool_or(s.verdict = 'fail') THEN 'fail'
      WHEN bool_or(s.verdict = 'pass') THEN 'pass' END"""
"""One verdict from all that was said: a pass when every verifier that judged it says so."""

VALUE = "CASE WHEN NOT coalesce(bool_or(s.verdict = 'error'), false) THEN avg(s.value) END"
"""The mean of the values; null when a verifier failed to judge."""

JUDGED = f"""(
  SELECT s.run_id, s.round, s.subject_id AS rollout_id,
    {VERDICT} AS verdict,
    {VALUE} AS value,
    list(s.scorer || ' ' || s.scorer_version || ': ' || coalesce(s.verdict, s.value::VARCHAR, 'nothing')
      ORDER BY s.scorer, s.scorer_version, s.score_id) AS said
  FROM {of_runs("scores", "score_id, subject_kind, subject_id, step_index, scorer, scorer_version, verdict, value")} s
  {STANDING}
  WHERE {OF_ROLLOUT}
  GROUP BY ALL)"""
"""What the scorers of a run said of each rollout, in one row."""

DECIDED = f"""(
  SELECT run_id, round, subject_id AS rollout_id, bool_and(keep) AS kept,
    string_agg(decider || ': ' || coalesce(reason, '-'), '; ' ORDER BY decider) FILTER (NOT keep) AS reason
  FROM {of_runs("decisions", "subject_kind, subject_id, decider, keep, reason")}
  WHERE subject_kind = 'rollout'
  GROUP BY ALL)"""
"""Whether every filter of a run kept each rollout, and the reasons of those that did not."""
