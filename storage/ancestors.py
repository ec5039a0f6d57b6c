"""Upwards: where a row of the lake came from."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from strop.storage.nodes import Node, Reader, Row
from strop.storage.views import literal

PROBLEM_PARENTS = """
WITH RECURSIVE p AS MATERIALIZED (SELECT problem_id, parents FROM problems WHERE len(parents) > 0),
chain AS (
  SELECT unnest(parents) AS problem_id, 1 AS depth FROM p WHERE problem_id = {id}
  UNION
  SELECT unnest(p.parents), depth + 1 FROM chain JOIN p USING (problem_id) WHERE depth < 100)
SELECT problem_id, min(depth) AS depth FROM chain GROUP BY problem_id ORDER BY depth, problem_id"""


def above(reader: Reader, kind: str, row: Row) -> list[Node]:
    """What a row was made from, then the stage run and the run that made it."""
    if kind == "run":
        return []
    found = _ORIGINS[kind](reader, row) if kind in _ORIGINS else []
    return found + (_run(reader, row) if kind == "stage_run" else _stage_run(reader, row))


def _stage_run(reader: Reader, row: Row) -> list[Node]:
    stage = reader.stage_runs.get(row["stage_run_id"])
    if stage is None:
        return _run(reader, row)
    return [reader.node("stage_run", stage, "written by", _run(reader, stage))]


def _run(reader: Reader, row: Row) -> list[Node]:
    run = reader.row("run", row["run_id"])
    return [reader.node("run", run, "part of")] if run else []


def _one(
    reader: Reader, kind: str, id: int | None, relation: str, expand: Callable[[Row], list[Node]] | None = None
) -> list[Node]:
    """The row an id points to, as a list; a dangling id is shown as such."""
    if not id:
        return []
    row = reader.row(kind, id)
    if row is None:
        return [Node(kind, str(id), "not in this snapshot", relation)]
    return [reader.node(kind, row, relation, expand(row) if expand else ())]


def _policy(reader: Reader, row: Row) -> list[Node]:
    id = row["policy_id"]
    trained = f"example_id IN (SELECT example_id FROM policy_examples WHERE policy_id = {id})"
    examples = reader.group("example", trained, "trained on", lambda example: _example(reader, example))
    return _chain(reader, row) + examples + _one(reader, "policy", row["reference_policy_id"], "kept near")


def _chain(reader: Reader, row: Row) -> list[Node]:
    """The parent policies, each under its child."""
    line, parent = [row["policy_id"]], row["parent_policy_id"]
    while parent in reader.policies and parent not in line:
        line.append(parent)
        parent = reader.policies[parent]["parent_policy_id"]
    nodes: list[Node] = []
    for policy_id in reversed(line[1:]):
        nodes = [reader.node("policy", reader.policies[policy_id], "started from", nodes)]
    return nodes


def _rollout(reader: Reader, row: Row) -> list[Node]:
    return [
        *_one(reader, "policy", row["policy_id"], "sampled by", lambda policy: _chain(reader, policy)),
        *_one(reader, "problem", row["problem_id"], "answers", lambda problem: _problem(reader, problem)),
        *_one(reader, "plan", row["plan_id"], "ordered by"),
        *_one(reader, "context", row["context_id"], "shown"),
        *_one(reader, "rollout", row["parent_rollout_id"], "continues"),
    ]


def _problem(reader: Reader, row: Row) -> list[Node]:
    """Parent problems, nearest first; the distance is a fact of each."""
    nodes = []
    for step in reader.select(PROBLEM_PARENTS.format(id=row["problem_id"])):
        for node in _one(reader, "problem", step["problem_id"], "synthesized from"):
            node.facts["distance"] = step["depth"]
            nodes.append(node)
    return nodes


def _example(reader: Reader, row: Row) -> list[Node]:
    chosen = _one(reader, "rollout", row["rollout_id"], "made from", lambda rollout: _evidence(reader, rollout))
    rejected = _one(reader, "rollout", row["rejected_rollout_id"], "against")
    sources = _listed(reader, "rollout", row["sources"], "made from")
    if chosen or rejected or sources:
        return chosen + rejected + sources
    return _one(reader, "problem", row["problem_id"], "about")


def _evidence(reader: Reader, row: Row) -> list[Node]:
    """Of a rollout that was trained on: what it says, who sampled it and what the scorers and filters said of it."""
    about = f"subject_kind = 'rollout' AND subject_id = {row['rollout_id']}"
    return [
        *_one(reader, "policy", row["policy_id"], "sampled by"),
        *_one(reader, "problem", row["problem_id"], "answers", lambda problem: _problem(reader, problem)),
        *reader.group("score", about, "scored"),
        *reader.group("decision", about, "decided"),
    ]


def _listed(reader: Reader, kind: str, ids: Iterable[int] | None, relation: str) -> list[Node]:
    wanted = ", ".join(str(id) for id in ids or ())
    return reader.group(kind, f"{kind}_id IN ({wanted})", relation) if wanted else []


def _subject(reader: Reader, row: Row) -> list[Node]:
    """The subject of a score or a decision; a step or token belongs to a rollout, a pair is an example."""
    said: str = row["subject_kind"]
    kind = {"step": "rollout", "token": "rollout", "pair": "example"}.get(said, said)
    return _one(reader, kind, row["subject_id"], "about", lambda subject: _ORIGINS[kind](reader, subject))


def _upstream(reader: Reader, row: Row) -> list[Node]:
    keys = ", ".join(literal(key) for key in row["upstream"] or ())
    return reader.group("stage_run", f"key IN ({keys})", "read") if keys else []


_ORIGINS: dict[str, Callable[[Reader, Row], list[Node]]] = {
    "policy": _policy,
    "rollout": _rollout,
    "problem": _problem,
    "example": _example,
    "score": _subject,
    "decision": _subject,
    "metric": lambda reader, row: _one(
        reader, "policy", row["policy_id"], "measured on", lambda policy: _chain(reader, policy)
    ),
    "plan": lambda reader, row: [
        *_one(reader, "problem", row["problem_id"], "asks", lambda problem: _problem(reader, problem)),
        *_one(reader, "context", row["context_id"], "shows"),
        *_one(reader, "rollout", row["start_rollout_id"], "continues"),
    ],
    "context": lambda reader, row: [
        *_one(reader, "context", row["parent_context_id"], "replaces"),
        *_listed(reader, "rollout", row["sources"], "learnt from"),
    ],
    "stage_run": _upstream,
}
