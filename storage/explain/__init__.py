"""Why a row of the lake exists and what it led to, in sentences.

    with open_console(Path("lake")) as console:
        print("\\n".join(explain(console, "default-s0/r3").lines))

Every number is read from rows; what the lake does not know is not said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from strop.storage.console import Console
from strop.storage.explain import judgement, ledger, problems, rollouts, training
from strop.storage.explain.words import Teller
from strop.storage.naming import find
from strop.storage.nodes import Reader

TELL: dict[str, Callable[[Teller], None]] = {
    "rollout": rollouts.rollout,
    "group": rollouts.group,
    "example": training.example,
    "policy": training.policy,
    "problem": problems.told_problem,
    "plan": problems.plan,
    "context": problems.context,
    "score": judgement.score,
    "decision": judgement.decision,
    "metric": judgement.metric,
    "scorer": judgement.scorer,
    "stage_run": ledger.stage_run,
    "run": ledger.run,
    "recipe": ledger.recipe,
    "seed": ledger.seed,
    "code": ledger.code,
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """What there is to say of a row."""

    kind: str
    id: str
    lines: tuple[str, ...]


def explain(console: Console, id: int | str) -> Explanation:
    """The story of whatever an id names (see `naming.find`). Raises LakeError when nothing answers to it."""
    reader = Reader(console)
    kind, found = find(reader, str(id).strip())
    teller = Teller(reader, kind, found)
    TELL[kind](teller)
    return Explanation(kind, str(found), tuple(teller.lines))
