"""One step of a rerun that is not run: its ledger rows name the stage runs whose rows stand for its own."""

from __future__ import annotations

from dataclasses import replace

from strop.core.events import Event, StepResult
from strop.core.reuse import rows_of
from strop.core.session import Session
from strop.core.visible import made_by
from strop.storage.ids import digest, shard_number
from strop.storage.tables import StageRun


def reuse_step(session: Session, round: int, label: str, found: dict[str, list[StageRun]]) -> StepResult:
    """Commit a row for each source shard, by the label it gets; one transaction each.

    What was verified again comes first, so that the stage counts as committed only when all of it is there.
    """
    there = {name: session.ledger.get((round, name), {}) for name in found}
    todo = {name: [i for i in range(len(found[name])) if i not in there[name]] for name in found}
    if there.get(label) and not todo[label]:
        session.emit(Event("stage_skipped", session.run_id, round, label))
        return StepResult(label, round, {}, 0, 0.0, skipped=True)
    for name in sorted(found, reverse=True):
        for shard in todo[name]:
            run = _row(session, round, name, shard, len(found[name]), found[name][shard])
            session.commit(run, counts={}, seconds=0.0)
    shards = [run for runs in found.values() for run in runs]
    counts = rows_of(session.lake, shards)
    sources = sorted({run.run_id for run in shards})
    detail = {"rows": counts, "sources": sources, "shards": len(shards)}
    session.emit(Event("stage_reused", session.run_id, round, label, detail=detail))
    return StepResult(label, round, {}, 0, 0.0, skipped=False)


def _row(session: Session, round: int, label: str, shard: int, shards: int, source: StageRun) -> StageRun:
    """The source's row under the new run's name; the only thing it read is the source."""
    made = made_by(source)
    return replace(
        source,
        run_id=session.run_id,
        round=round,
        stage_run_id=shard_number(session.run_id, round, label, shard),
        key=digest("reuse", session.run_id, round, label, shard, made),
        stage=label,
        shard=shard,
        shards=shards,
        upstream=[source.key],
        tokens=None,
        reuses=made,
    )
