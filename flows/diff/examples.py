"""Problems whose pass rate changed, with what each side answered."""

from __future__ import annotations

from dataclasses import dataclass

from strop.flows.diff.compare import Difference
from strop.flows.diff.rates import Change
from strop.flows.runs import Queryable
from strop.storage.views import literal


@dataclass(frozen=True, slots=True)
class Example:
    """A problem whose rate changed, with a completion of each round that shows it."""

    change: Change
    left: str
    left_verdict: str
    right: str
    right_verdict: str


COMPLETIONS = """
SELECT r.problem_id, v.verdict, min_by(r.completion, r.sample_index) FROM rollouts r JOIN (
  SELECT subject_id, CASE WHEN bool_and(verdict = 'pass') THEN 'pass' ELSE 'fail' END AS verdict FROM scores
  WHERE run_id = {run} AND subject_kind = 'rollout' AND step_index IS NULL AND verdict IS NOT NULL
    AND score_id NOT IN (SELECT supersedes FROM scores WHERE supersedes IS NOT NULL)
  GROUP BY subject_id HAVING bool_and(verdict <> 'error')) v ON v.subject_id = r.rollout_id
WHERE r.run_id = {run} AND r.round = {round} AND r.problem_id IN ({problems}) GROUP BY ALL"""


def examples(console: Queryable, found: Difference, n: int) -> list[Example]:
    """The n held-out problems that gained most and the n that lost most, with a completion from each side.

    Where a side has both verdicts, the completion is one with the verdict that the other side has less of.
    """
    gained = [change for change in found.heldout if change.gain > 0][:n]
    lost = [change for change in reversed(found.heldout) if change.gain < 0][:n]
    chosen = gained + lost
    if not chosen:
        return []
    texts = []
    for s, ids in ((found.left, [c.left_id for c in chosen]), (found.right, [c.right_id for c in chosen])):
        sql = COMPLETIONS.format(run=literal(s.run), round=s.round, problems=", ".join(map(str, ids)))
        texts.append({(id, verdict): text for id, verdict, text in console.query(sql).rows})
    made = []
    for change in chosen:
        wanted = ("fail", "pass") if change.gain > 0 else ("pass", "fail")
        left, right = (
            next(
                (texts[i][id, verdict], verdict)
                for verdict in (want, *({"pass", "fail"} - {want}))
                if (id, verdict) in texts[i]
            )
            for i, (id, want) in enumerate(zip((change.left_id, change.right_id), wanted, strict=True))
        )
        made.append(Example(change, *left, *right))
    return made
