"""The shards of a verify stage: one for each of the generators' shards, known before those are sampled.

So the first run, a resumed one and one that verifies while it still samples have the same shards. A stage may begin on
a generator's shard as soon as that is committed (`Ahead`), if nothing it reads comes later: a verifier that needs the
engine waits until the engine is free, and one that reads `scores` waits, shard by shard, for the stages it reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

from strop.core.events import StepResult
from strop.core.execute import WORKER_HANDLES, Call
from strop.core.recipe import Step
from strop.core.reward_models import keys_before
from strop.core.running import Shard
from strop.core.session import Session
from strop.core.steps import call_of, problems_of, rollouts_of, settled, shards_of
from strop.core.visible import made_by, stage_of
from strop.storage.tables import Rollout, Score, StageRun

SAMPLED = "SELECT count(*) FROM ({rows}) WHERE stage_run_id IN (SELECT unnest(?::BIGINT[]))"
OF_SHARDS = "round = ? AND stage_run_id IN (SELECT unnest(?::BIGINT[]))"


def generate_step(session: Session, round: int, step: Step, behind: Sequence[Step]) -> StepResult:
    """Sample what is not committed yet; the verify stages `behind` begin on what is."""
    done = settled(session, round, step)
    if done is not None:
        return done
    shards, total = shards_of(session, round, step)
    return session.running.run(round, step, shards, total, Ahead(session, round, step, behind))


def verify_step(session: Session, round: int, step: Step, behind: Sequence[Step]) -> StepResult:
    """Verify what is not committed yet: what was not begun while the rollouts were sampled."""
    done = settled(session, round, step)
    if done is not None:
        return done
    found = sources(session, round, step)
    shards = [_shard(session, round, step, i, found) for i in range(len(found))]
    total = _expected(session, round, step, found)
    return session.running.run(round, step, shards, total, Ahead(session, round, step, behind))


def followers(steps: Sequence[Step], step: Step) -> list[Step]:
    """The verify stages right behind a stage that can do a shard as soon as that stage has done it."""
    rest = steps[steps.index(step) + 1 :]
    found: list[Step] = []
    between: list[Step] = []
    for other in takewhile(lambda s: s.kind == "verify" and s.split == step.split, rest):
        handles = other.plugin.mark.handles
        if not WORKER_HANDLES & set(handles) and ("scores" not in handles or between == found):
            found.append(other)
        between.append(other)
    return found


@dataclass(frozen=True, slots=True)
class Source:
    """A generator's shard."""

    label: str
    shard: int


def sources(session: Session, round: int, step: Step) -> list[Source]:
    """The shards of the generators before a verify stage, committed or not; its own are numbered like these."""
    found = []
    for other in _before(session, step, "generate"):
        there = session.ledger.get((round, other.label), {})
        planned = next(iter(there.values())).shards if there else len(shards_of(session, round, other)[0])
        found += [Source(other.label, i) for i in range(planned)]
    return found


class Ahead:
    """What the verify stages behind a stage can do while it is at work; see `running.Meanwhile`."""

    def __init__(self, session: Session, round: int, step: Step, behind: Sequence[Step]) -> None:
        self._session, self._round = session, round
        found = {s.label: sources(session, round, s) for s in behind}
        self._behind = [(s, found[s.label], _expected(session, round, s, found[s.label])) for s in behind]

    def __call__(self, committed: StageRun | None) -> Iterator[Shard]:
        """The shards that nothing stands in the way of, now that this one is committed."""
        for step, found, total in self._behind:
            there = self._session.ledger.get((self._round, step.label), {})
            for index in self._touched(step, found, committed):
                if index not in there and self._ready(step, index, found[index]):
                    self._session.running.begin(self._round, step, total)
                    yield _shard(self._session, self._round, step, index, found)

    def _touched(self, step: Step, found: Sequence[Source], committed: StageRun | None) -> Iterable[int]:
        if committed is None:
            return range(len(found))
        if committed.kind == "verify":
            return [committed.shard] if committed.stage != step.label and committed.shard < len(found) else []
        here = Source(committed.stage, committed.shard)
        return [found.index(here)] if here in found else []

    def _ready(self, step: Step, index: int, source: Source) -> bool:
        session, round = self._session, self._round
        if source.shard not in session.ledger.get((round, source.label), {}):
            return False
        read = _before(session, step, "verify") if "scores" in step.plugin.mark.handles else []
        return all(
            session.committed(round, other.label)
            or index in session.ledger.get((round, other.label), {})
            or index >= len(sources(session, round, other))
            for other in read
        )


def _before(session: Session, step: Step, kind: str) -> list[Step]:
    """Stages of that kind before this one, with the same split."""
    steps = takewhile(lambda s: s.label != stage_of(step.label), session.recipe.round)
    return [s for s in steps if s.kind == kind and s.split == step.split]


def _shard(session: Session, round: int, step: Step, index: int, found: Sequence[Source]) -> Shard:
    """It reads the generator's shard, and what was said of that; nothing else is in its key."""
    source = session.ledger[round, found[index].label][found[index].shard]
    said = _said(session, round, step, index, len(found)) if "scores" in step.plugin.mark.handles else []
    keys = {source.key, *(run.key for run in said)}
    if "engine" in step.plugin.mark.handles:
        keys |= session.keys_of(session.policy_of(round, step))
    keys |= keys_before(session, round, step)
    run = session.stage_run(round, step, index, len(found), sorted(keys))
    return Shard(step, run, partial(_call, session, run, step, source, said))


def _said(session: Session, round: int, step: Step, index: int, shards: int) -> list[StageRun]:
    """Stage runs of earlier verify stages that may speak of a shard: the one of its number, where they are as many."""
    labels = {s.label for s in _before(session, step, "verify")}
    found: list[StageRun] = []
    for (at, label), by in session.ledger.items():
        if at == round and stage_of(label) in labels:
            same = label in labels and next(iter(by.values())).shards == shards
            found += [by[index]] if same else by.values()
    return found


def _call(session: Session, run: StageRun, step: Step, source: StageRun, said: Sequence[StageRun]) -> Call:
    rollouts = rollouts_of(session, run.round, step, source)
    return call_of(session, run, step, handed(session, run.round, step, rollouts, [source, *said]))


def handed(
    session: Session, round: int, step: Step, rollouts: list[Rollout], said_by: Sequence[StageRun]
) -> dict[str, Any]:
    """What a verify stage is handed for these rollouts; it may see the scores of the stage runs in `said_by`."""
    wanted = {row.problem_id for row in rollouts}
    found: dict[str, Any] = {
        "rollouts": rollouts,
        "problems": {p.problem_id: p for p in problems_of(session, step.split) if p.problem_id in wanted},
    }
    if "scores" in step.plugin.mark.handles:
        ids = {row.rollout_id for row in rollouts}
        scores = session.read(Score, OF_SHARDS, [round, [made_by(run) for run in said_by]], keep=False)
        found["scores"] = [s for s in scores if s.subject_id in ids]
    return found


def said_before(session: Session, round: int, step: Step) -> list[StageRun]:
    """Every stage run of a round whose scores a verify stage may see: of generators and of verify stages before it."""
    labels = [s.label for kind in ("generate", "verify") for s in _before(session, step, kind)]
    return session.shards(round, labels)


def _expected(session: Session, round: int, step: Step, found: Sequence[Source]) -> int:
    """How many rollouts a stage will see: counted where they are there, else as planned."""
    runs = [session.ledger.get((round, source.label), {}).get(source.shard) for source in found]
    if None not in runs:
        rows, params = session.rows_sql(Rollout.TABLE)
        ids = [made_by(run) for run in runs if run is not None]
        return int(session.lake.query(SAMPLED.format(rows=rows), [*params, ids])[0][0])
    return sum(shards_of(session, round, s)[1] for s in _before(session, step, "generate"))
