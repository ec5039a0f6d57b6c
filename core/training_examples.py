"""What a training reads from the lake, and the log-probabilities of frozen policies that it gives back.

The lake keeps what a policy makes of a rollout's tokens under (hash of the policy's files, rollout), so that neither a
killed training, nor a rerun, nor another run with the same base computes it twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from strop.core.replay import replayed
from strop.core.seeds import derive
from strop.core.session import Session
from strop.core.trainer.config import Replay
from strop.core.trainer.job import FROZEN
from strop.core.units import units
from strop.storage.ids import stamp
from strop.storage.tables import Policy, Row, StageRun, TokenLogps

if TYPE_CHECKING:
    import pyarrow as pa

EXAMPLES = """
SELECT e.round, e.example_id, e.kind, e.prompt, e.completion, e.chosen, e.rejected,
       CASE WHEN e.kind <> 'pair' THEN a.token_ids END AS completion_token_ids,
       CASE WHEN e.kind = 'pair' THEN a.token_ids END AS chosen_token_ids,
       b.token_ids AS rejected_token_ids,
       CASE WHEN e.kind = 'group' THEN a.logps END AS behaviour_logps,
       e.reward, e.group_id, e.weight, e.margin, e.loss_spans, e.stratum
FROM ({rows}) e
LEFT JOIN rollouts a ON a.rollout_id = e.rollout_id AND a.completion = coalesce(e.completion, e.chosen)
LEFT JOIN rollouts b ON b.rollout_id = e.rejected_rollout_id AND b.completion = e.rejected
WHERE e.round BETWEEN ? AND ?
ORDER BY e.round, e.builder, e.example_id
"""
"""Sampled token ids are used where the example is the rollout's own text; an edited text is tokenised afresh.
Over several rounds or builders the order of ids alone would depend on the run's name, and the weights with it.
"""
WEIGHED = """
WITH known AS (
  SELECT rollout_id, arg_min(logps, stage_run_id) AS logps FROM token_logps WHERE policy_hash = ? GROUP BY rollout_id)
SELECT e.example_id, s.side, s.rollout_id, k.logps
FROM ({rows}) e,
  LATERAL (SELECT unnest([
    {{'side': CASE WHEN e.kind = 'pair' THEN 'chosen' ELSE 'completion' END, 'rollout_id': e.rollout_id,
      'text': coalesce(e.completion, e.chosen)}},
    {{'side': 'rejected', 'rollout_id': e.rejected_rollout_id, 'text': e.rejected}}], recursive := true)) s
JOIN rollouts r ON r.rollout_id = s.rollout_id AND r.completion = s.text AND r.prompt = e.prompt
LEFT JOIN known k ON k.rollout_id = r.rollout_id AND len(k.logps) = len(r.token_ids)
WHERE e.round BETWEEN ? AND ? AND r.token_ids IS NOT NULL
"""
"""The sides of the examples that are a rollout after the very prompt it was sampled from, and what is known of each."""


class Sides:
    """Which rollout each side of an example is, and what the lake knows of it under the training's frozen policies."""

    def __init__(self, session: Session, policies: Mapping[str, Policy], window: tuple[int, int]) -> None:
        """`policies` by what they are to the training, see `job.FROZEN`."""
        rows, params = session.rows_sql("examples")
        self.policies = policies
        self.rollout: dict[tuple[int, str], int] = {}
        self.known: dict[str, dict[tuple[int, str], list[float]]] = {}
        for name, policy in policies.items():
            found = session.lake.query(WEIGHED.format(rows=rows), [policy.content_hash, *params, *window])
            self.rollout |= {(example, side): rollout for example, side, rollout, _ in found}
            self.known[name] = {(example, side): logps for example, side, _, logps in found if logps is not None}

    def added_to(self, table: pa.Table) -> pa.Table:
        """The examples with what is known."""
        import pyarrow as pa

        ids = table.column("example_id").to_pylist()
        for name, known in self.known.items():
            for side in FROZEN[name]:
                logps = pa.array([known.get((id, side)) for id in ids], pa.list_(pa.float32()))
                table = table.append_column(f"{side}_{name}_logps", logps)
        return table

    def computed(self, session: Session, run: StageRun, work: Path) -> tuple[int, dict[str, list[Path]]]:
        """What the training computed, as rows of the lake: how many, and the file to commit with the policy."""
        from strop.core.trainer.reference import computed_logps
        from strop.storage.parquet import write_rows

        found: dict[tuple[str, int], TokenLogps] = {}
        for name, policy in self.policies.items():
            for example, side, logps in computed_logps(work, name):
                rollout = self.rollout.get((example, side))
                if rollout is not None:
                    found[policy.content_hash, rollout] = TokenLogps(
                        rollout_id=rollout,
                        policy_hash=policy.content_hash,
                        policy_id=policy.policy_id,
                        logps=logps,
                        engine="trainer",
                    )
        if not found:
            return 0, {}
        rows: list[Row] = [found[key] for key in sorted(found)]
        stamped = stamp({TokenLogps.TABLE: rows}, run_id=run.run_id, round=run.round, stage_run_id=run.stage_run_id)
        file = write_rows(Path(f"{session.out(run)}-{TokenLogps.TABLE}.parquet"), TokenLogps, stamped[TokenLogps.TABLE])
        return len(rows), {TokenLogps.TABLE: [file]}


def examples_of(
    session: Session,
    window: tuple[int, int],
    sides: Sides | None,
    replay: Replay | None,
    seed: int,
    *,
    kind: str | None = None,
) -> pa.Table:
    """The examples of these rounds (first and last) as the trainer reads them; of one kind only, where it is named."""
    rows, params = session.rows_sql("examples")
    if kind is not None:
        rows, params = f"SELECT * FROM ({rows}) WHERE kind = ?", [*params, kind]
    table = session.lake.arrow(EXAMPLES.format(rows=rows), [*params, *window])
    if replay is not None:
        made, groups = (table.column(name).to_pylist() for name in ("round", "group_id"))
        table = table.take(replayed(made, groups, window[1], replay, derive(seed, "replay")))
    table = table.drop_columns(["round"])
    return table if sides is None else sides.added_to(table)


def shared(table: pa.Table, share: float, seed: int) -> pa.Table:
    """A random share of the examples, whole groups, in their order; at least one."""
    import numpy as np

    members = units(table.column("group_id").to_pylist())
    count = max(1, round(share * len(members))) if members else 0
    chosen = np.random.default_rng(derive(seed, "share")).permutation(len(members))[:count]
    return table.take(sorted(i for unit in chosen for i in members[unit]))
