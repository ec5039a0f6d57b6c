"""Pass rates of two rounds, problem by problem, over the problems that both rounds sampled.

The difference is paired: the interval is a percentile bootstrap over problems (as the gate's is), the p-value an exact
sign test on how many problems went up and how many down (McNemar's test where each problem has one completion).
A rollout passes when every verifier says so, and counts in neither number when one could not judge it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from strop.flows.runs import Queryable
from strop.storage.views import literal

RATES = """
WITH judged AS (
  SELECT subject_id, bool_and(verdict = 'pass') AS passed FROM scores
  WHERE run_id = {run} AND subject_kind = 'rollout' AND step_index IS NULL AND verdict IS NOT NULL
    AND score_id NOT IN (SELECT supersedes FROM scores WHERE supersedes IS NOT NULL)
  GROUP BY subject_id HAVING bool_and(verdict <> 'error')),
known AS (
  SELECT problem_id, any_value(problem_key) AS problem_key, any_value(task) AS task,
    any_value(category) AS category, any_value(prompt) AS prompt
  FROM problems GROUP BY problem_id)
SELECT r.split, coalesce(nullif(k.problem_key, ''), r.problem_id::VARCHAR) AS problem, any_value(r.problem_id),
  any_value(k.task), any_value(k.category), any_value(k.prompt), count(*), count(*) FILTER (passed)
FROM rollouts r JOIN judged ON subject_id = rollout_id LEFT JOIN known k USING (problem_id)
WHERE r.run_id = {run} AND r.round = {round} GROUP BY ALL ORDER BY ALL"""
RESAMPLES = 5000
EXACT = 2000
"""Changed problems up to which the sign test is summed exactly; beyond, the normal approximation with continuity."""


@dataclass(frozen=True, slots=True)
class Rate:
    """How often a round solved a problem."""

    problem_id: int
    task: str | None
    category: str | None
    prompt: str | None
    n: int
    passed: int

    @property
    def value(self) -> float:
        """Passed / n."""
        return self.passed / self.n


@dataclass(frozen=True, slots=True)
class Change:
    """One problem under both rounds."""

    problem: str
    """Its `problem_key`, the same in every run."""
    left_id: int
    right_id: int
    task: str | None
    category: str | None
    prompt: str | None
    left: float
    right: float

    @property
    def gain(self) -> float:
        """Right - left."""
        return self.right - self.left


@dataclass(frozen=True, slots=True)
class Slice:
    """The problems of a split, or of one category of it, under both rounds."""

    name: str
    n: int
    left: float
    right: float
    improved: int
    regressed: int
    low: float
    high: float
    """The 95 % interval of right - left."""
    p: float

    @property
    def gain(self) -> float:
        """Right - left."""
        return self.right - self.left


def rates(console: Queryable, run: str, round: int) -> dict[str, dict[str, Rate]]:
    """Split -> problem -> rate of the rollouts of a round."""
    found: dict[str, dict[str, Rate]] = {}
    for split, problem, *fields in console.query(RATES.format(run=literal(run), round=round)).rows:
        found.setdefault(split, {})[problem] = Rate(*fields)
    return found


def changes(left: dict[str, Rate], right: dict[str, Rate]) -> list[Change]:
    """The problems that both rounds judged, in order of problem, so that the bootstrap's draws are fixed."""
    return [
        Change(key, a.problem_id, b.problem_id, b.task, b.category, b.prompt, a.value, b.value)
        for key, a in sorted(left.items())
        if (b := right.get(key)) is not None
    ]


def slices(split: str, found: Sequence[Change]) -> list[Slice]:
    """The split as a whole, then each category where there are several; empty without problems."""
    if not found:
        return []
    by_category: dict[str, list[Change]] = {}
    for change in found:
        by_category.setdefault(change.category or "", []).append(change)
    parts = [(split, found)]
    if len(by_category) > 1:
        parts += [(f"{split}/{name}", members) for name, members in sorted(by_category.items())]
    return [_slice(name, members) for name, members in parts]


def _slice(name: str, members: Sequence[Change]) -> Slice:
    from strop.core.statistics import estimate

    gain = estimate([change.gain for change in members], seed=0, resamples=RESAMPLES)
    up, down = sum(change.gain > 0 for change in members), sum(change.gain < 0 for change in members)
    left, right = (
        math.fsum(values) / len(members) for values in zip(*((c.left, c.right) for c in members), strict=True)
    )
    return Slice(name, len(members), left, right, up, down, gain.low, gain.high, sign_test(up, down))


def sign_test(up: int, down: int) -> float:
    """Two-sided p-value of `up` and `down` changes when both are equally likely; 1 without any."""
    n = up + down
    if n == 0:
        return 1.0
    if n > EXACT:
        return math.erfc(max(abs(up - down) - 1, 0) / math.sqrt(2 * n))
    term = total = 1
    for i in range(1, min(up, down) + 1):
        term = term * (n - i + 1) // i
        total += term
    return float(min(1.0, 2 * total / 2**n))
