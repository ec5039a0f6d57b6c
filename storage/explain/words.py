"""The sentences that several stories share, and the teller that collects them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from strop.storage.kinds import Row, number, quoted
from strop.storage.nodes import Id, Reader, listed
from strop.storage.ready_views.view import STANDING

TEXT = 300
"""Characters quoted of a prompt or completion."""
MANY = 6
"""Names listed before the rest is counted."""


@dataclass(slots=True)
class Teller:
    """A row to tell of, and the lines told so far."""

    reader: Reader
    kind: str
    id: Id
    lines: list[str] = field(default_factory=list)

    def say(self, *parts: str | None) -> None:
        """One line, of the parts that are there."""
        self.lines.append(" ".join(part for part in parts if part))

    def rows(self, sql: str) -> list[Row]:
        """Rows of a query."""
        return self.reader.select(sql)

    def row(self, sql: str) -> Row:
        """The one row of a query; all null where there is none."""
        found = self.rows(sql)
        return found[0] if found else _Nothing()


class _Nothing(Row):
    def __missing__(self, key: str) -> None:
        return None


def counted(n: int | None, word: str, plural: str = "") -> str:
    """'1 rollout', '5,120 rollouts'."""
    return f"{n or 0:,} {word if n == 1 else plural or word + 's'}"


def among(names: Iterable[object], limit: int = MANY) -> str:
    """'a, b and c', or 'a, b and 7 more'."""
    told = [str(name) for name in names]
    if len(told) > limit:
        told = [*told[: limit - 1], f"{len(told) - limit + 1:,} more"]
    return told[0] if len(told) == 1 else f"{', '.join(told[:-1])} and {told[-1]}" if told else "none"


def text(value: object) -> str:
    """A completion or prompt, quoted."""
    return quoted(value, TEXT)


def problem(row: Row) -> str:
    """'problem 45 (sums, add-2): '7+9-3=', answer 13'."""
    where = ", ".join(str(part) for part in (row["task"], row["category"]) if part)
    answer = "" if row["reference"] is None else f", answer {quoted(row['reference'])}"
    return f"problem {row['problem_id']}{f' ({where})' if where else ''}: {text(row['prompt'])}{answer}"


def elsewhere(row: Row, run_id: object) -> str:
    """Names a row's run where it is not the one the story is about."""
    return "" if row["run_id"] == run_id else f" in run {row['run_id']}"


def said(teller: Teller, rollouts: Sequence[Id], run_id: object, of: str = "It") -> None:
    """What scorers said of rollouts, the scores that stand and those that were replaced."""
    rows = teller.rows(
        f"SELECT s.*, n.score_id AS newer FROM scores s LEFT JOIN scores n ON n.supersedes = s.score_id "
        f"WHERE s.subject_kind IN ('rollout', 'step', 'token') AND s.subject_id IN ({listed(rollouts)}) "
        "ORDER BY s.round, s.scorer, s.scorer_version, s.step_index NULLS FIRST, s.score_id"
    )
    whole = [row for row in rows if row["step_index"] is None]
    for row in whole:
        gone = f"; score {row['newer']} stands in its place" if row["newer"] else ""
        teller.say(f"{verdict(row)}{elsewhere(row, run_id)}{gone}.")
    parts = len(rows) - len(whole)
    if parts:
        teller.say(f"{of} was scored in parts as well: {counted(parts, 'score')} of steps or tokens.")


def verdict(row: Row) -> str:
    """'answer 1 said pass, value 1, and read the answer '13' (score 88)'."""
    who = f"{row['scorer']} {row['scorer_version']}"
    if row["verdict"] == "error":
        return f"{who} could not judge it: {row['reason'] or 'it gave no reason'} (score {row['score_id']})"
    value = "" if row["value"] is None else f"value {number(row['value'])}"
    answer = "" if row["answer"] is None else f"reading the answer {quoted(row['answer'])}"
    told = ", ".join(filter(None, [row["verdict"], value, answer])) or "nothing"
    return f"{who} said {told} (score {row['score_id']})" + (f": {row['reason']}" if row["reason"] else "")


def gated(teller: Teller, policies: Iterable[Id]) -> dict[Id, str]:
    """Of each policy what the gate said: 'the gate ... promoted it: pass@1 0.51 -> 0.60 ...'."""
    verbs = {"promote": "promoted it", "keep": "did not promote it", "roll_back": "rolled it back"}
    found: dict[Id, str] = {}
    for row in teller.rows(
        f"SELECT subject_id, decider, action, keep, reason FROM decisions WHERE subject_kind = 'policy' "
        f"AND subject_id IN ({listed(policies) or 'NULL'}) ORDER BY round, decision_id"
    ):
        verb = verbs.get(row["action"] or ("promote" if row["keep"] else "keep"), f"answered with {row['action']}")
        found[row["subject_id"]] = f"the gate {row['decider']} {verb}" + (f": {row['reason']}" if row["reason"] else "")
    return found


def trained(teller: Teller, examples: Sequence[Id]) -> None:
    """Which policies examples made, and what became of those."""
    rows = teller.rows(
        "SELECT p.policy_id, p.name, p.run_id, p.status, p.objective, p.round, any_value(p.examples) AS examples, "
        f"count(*) AS n FROM policy_examples t JOIN policies p USING (policy_id) "
        f"WHERE t.example_id IN ({listed(examples)}) GROUP BY ALL ORDER BY p.run_id, p.round"
    )
    if not rows:
        teller.say("No policy has been trained on it.")
    outcome = gated(teller, [row["policy_id"] for row in rows])
    for row in rows:
        others = "" if row["examples"] is None else f" with {counted(row['examples'] - row['n'], 'other example')}"
        gate = outcome.get(row["policy_id"])
        then = f"{gate}. {row['name']} is now {row['status']}" if gate else f"that policy is now {row['status']}"
        teller.say(f"It trained {row['name']} ({row['objective']}){others}; {then}.")


def standing(sql: str) -> str:
    """A query over `scores s` without the scores that were replaced."""
    return f"{sql} {STANDING}"
