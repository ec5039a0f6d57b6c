"""The whole difference between two rounds, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from strop.flows.diff.rates import Change, Slice, changes, rates, slices
from strop.flows.diff.settings import Setting, settings
from strop.flows.runs import Queryable, Round, RunState, read_states
from strop.storage.errors import LakeError, did_you_mean
from strop.storage.views import literal

METRICS = """
SELECT name, slice, value, ci_low, ci_high, n FROM metrics
WHERE run_id = {run} AND round = {round} AND context_id IS NULL ORDER BY metric_id"""
PROBLEMS = """
WITH here AS (
  SELECT problem_key, task, split, category, origin, status FROM problems
  WHERE run_id = {left} AND round <= {left_round}),
there AS (
  SELECT problem_key, task, split, category, origin, status FROM problems
  WHERE run_id = {right} AND round <= {right_round})
SELECT 'added', split, task, category, origin, status, count(*)
FROM there ANTI JOIN here USING (problem_key, split) GROUP BY ALL
UNION ALL
SELECT 'gone', split, task, category, origin, status, count(*)
FROM here ANTI JOIN there USING (problem_key, split) GROUP BY ALL
ORDER BY ALL"""
POLICIES = """
SELECT p.run_id, p.round, p.name, p.status, d.action, d.reason FROM policies p
LEFT JOIN (SELECT run_id, round, max_by(action, decision_id) AS action, max_by(reason, decision_id) AS reason
  FROM decisions WHERE subject_kind = 'policy' GROUP BY ALL) d USING (run_id, round)
WHERE {where} AND p.kind <> 'reward' ORDER BY p.round, p.policy_id"""
ROLLOUTS = """
SELECT split, count(*), sum(n_tokens), avg(n_tokens), count(*) FILTER (finish_reason = 'length') FROM rollouts
WHERE run_id = {run} AND round = {round} GROUP BY ALL ORDER BY ALL"""
EXAMPLES = "SELECT count(*) FROM examples WHERE run_id = {run} AND round = {round}"


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two rounds."""

    run: str
    round: int

    def __str__(self) -> str:
        return f"{self.run}@{self.round}"


@dataclass(frozen=True, slots=True)
class Number:
    """A metric or a count of both rounds; null where a side has it not."""

    name: str
    slice: str
    left: float | None
    right: float | None
    left_interval: tuple[float, float] | None = None
    right_interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class ProblemCount:
    """Problems that one side alone has."""

    change: str
    """'added': the right side alone has them; 'gone': the left side alone."""
    split: str
    task: str
    category: str | None
    origin: str
    status: str
    count: int


@dataclass(frozen=True, slots=True)
class PolicyLine:
    """A policy of one of the rounds, or of a round between them."""

    run: str
    round: int
    name: str
    status: str
    """As it is now."""
    action: str | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Difference:
    """What changed from the left round to the right one."""

    left: Side
    right: Side
    settings: list[Setting]
    policies: list[PolicyLine]
    metrics: list[Number]
    counts: list[Number]
    problems: list[ProblemCount]
    pass_rates: list[Slice]
    heldout: list[Change]
    """Held-out problems whose rate differs, the largest gain first."""


def side(text: str, states: list[RunState]) -> Side:
    """The round that RUN@K, RUN (its newest) or, in a lake of one run, @K or K means. Raises LakeError."""
    runs = {state.run_id: state for state in states}
    if not runs:
        raise LakeError("the lake has no runs yet")
    run, at, number = text.rpartition("@")
    if text in runs:
        run, number = text, str(runs[text].round)
    elif not at and not text.isdecimal():
        raise LakeError(f"{text!r} names no round: write RUN@K, or RUN for its newest{did_you_mean(text, runs)}")
    elif not run and len(runs) > 1:
        raise LakeError(f"the lake has {len(runs)} runs: say which one, as in {max(runs)}@{number}")
    run = run or next(iter(runs))
    if run not in runs:
        raise LakeError(f"the lake has no run {run!r}{did_you_mean(run, runs)}")
    if not number.isdecimal() or int(number) not in runs[run].rounds:
        raise LakeError(f"{run} has no round {number!r}; there is: {', '.join(map(str, sorted(runs[run].rounds)))}")
    return Side(run, int(number))


def compare(console: Queryable, left_text: str, right_text: str) -> Difference:
    """The difference between the rounds that two texts name. Raises LakeError."""
    states = read_states(console)
    left, right = side(left_text, states), side(right_text, states)
    rounds = {(state.run_id, number): row for state in states for number, row in state.rounds.items()}
    left_rates, right_rates = (rates(console, s.run, s.round) for s in (left, right))
    pairs = {name: changes(left_rates.get(name, {}), right_rates.get(name, {})) for name in ("heldout", "train")}
    moved = [change for change in pairs["heldout"] if change.gain]
    return Difference(
        left,
        right,
        settings(console, (left.run, left.round), (right.run, right.round)),
        _policies(console, left, right),
        _metrics(console, left, right),
        _counts(console, (left, rounds[left.run, left.round]), (right, rounds[right.run, right.round])),
        _problems(console, left, right),
        [part for name, found in pairs.items() for part in slices(name, found)],
        sorted(moved, key=lambda change: (-change.gain, change.problem)),
    )


def _policies(console: Queryable, left: Side, right: Side) -> list[PolicyLine]:
    """Those of the rounds after the left one up to the right one; of two runs, each one's own."""
    if left.run == right.run:
        low, high = sorted((left.round, right.round))
        where = f"p.run_id = {literal(left.run)} AND p.round BETWEEN {low} AND {high}"
    else:
        where = " OR ".join(f"(p.run_id = {literal(s.run)} AND p.round = {s.round})" for s in (left, right))
    found = [PolicyLine(*row) for row in console.query(POLICIES.format(where=where)).rows]
    return sorted(found, key=lambda policy: policy.run != left.run)


def _metrics(console: Queryable, left: Side, right: Side) -> list[Number]:
    found: list[dict[tuple[str, str], tuple[Any, ...]]] = []
    for s in (left, right):
        rows = console.query(METRICS.format(run=literal(s.run), round=s.round)).rows
        found.append({(name, part): values for name, part, *values in rows})  # type: ignore[misc]
    return [
        Number(*key, *(f.get(key, (None,))[0] for f in found), *(_interval(f.get(key)) for f in found))
        for key in dict.fromkeys((*found[0], *found[1]))
    ]


def _interval(values: tuple[Any, ...] | None) -> tuple[float, float] | None:
    return None if values is None or values[1] is None or values[2] is None else (values[1], values[2])


def _counts(console: Queryable, left: tuple[Side, Round], right: tuple[Side, Round]) -> list[Number]:
    sides = []
    for s, row in (left, right):
        counts: dict[tuple[str, str], float | None] = {}
        for split, n, tokens, mean, cut in console.query(ROLLOUTS.format(run=literal(s.run), round=s.round)).rows:
            counts |= {("rollouts", split): n, ("tokens", split): tokens, ("tokens a rollout", split): mean}
            counts |= {("cut by the limit", split): cut}
        counts |= {("kept by every filter", ""): row.kept}
        counts |= {
            ("training examples", ""): console.query(EXAMPLES.format(run=literal(s.run), round=s.round)).rows[0][0]
        }
        counts |= {("seconds", ""): row.seconds}
        sides.append(counts)
    keys = dict.fromkeys((*sides[0], *sides[1]))
    return [Number(*key, sides[0].get(key), sides[1].get(key)) for key in keys if any(side.get(key) for side in sides)]


def _problems(console: Queryable, left: Side, right: Side) -> list[ProblemCount]:
    sql = PROBLEMS.format(
        left=literal(left.run), right=literal(right.run), left_round=left.round, right_round=right.round
    )
    return [ProblemCount(*row) for row in console.query(sql).rows]
