"""Downwards: what a row of the lake led to."""

from __future__ import annotations

from collections.abc import Callable

from strop.storage.nodes import KINDS, Node, Reader, Row
from strop.storage.views import literal


def below(reader: Reader, kind: str, row: Row) -> list[Node]:
    """What came of a row; for many, a count and a few."""
    return _OUTCOMES[kind](reader, row) if kind in _OUTCOMES else []


def _policy(reader: Reader, row: Row) -> list[Node]:
    id = row["policy_id"]
    return [
        *_children(reader, id),
        *reader.group("policy", f"reference_policy_id = {id}", "reference of"),
        *reader.group("rollout", f"policy_id = {id} AND split = 'train'", "sampled"),
        *reader.group("rollout", f"policy_id = {id} AND split = 'heldout'", "examined by"),
        *reader.group("metric", f"policy_id = {id} AND slice = 'heldout'", "measured as"),
        *reader.group("decision", f"subject_kind = 'policy' AND subject_id = {id}", "gated by"),
    ]


def _children(reader: Reader, id: int, seen: frozenset[int] = frozenset()) -> list[Node]:
    """The policies trained from this one, and from those."""
    return [
        reader.node("policy", row, "parent of", _children(reader, child, seen | {id}))
        for child, row in reader.policies.items()
        if row["parent_policy_id"] == id and child not in seen | {id}
    ]


def _rollout(reader: Reader, row: Row) -> list[Node]:
    id = row["rollout_id"]
    about = f"subject_kind IN ('rollout', 'step', 'token') AND subject_id = {id}"
    used = f"rollout_id = {id} OR rejected_rollout_id = {id} OR list_contains(sources, {id})"
    return [
        *reader.group("score", about, "scored"),
        *reader.group("decision", about, "decided"),
        *reader.group("example", used, "became", lambda example: _example(reader, example)),
        *reader.group("rollout", f"parent_rollout_id = {id}", "continued as"),
        *reader.group("context", f"list_contains(sources, {id})", "taught"),
    ]


def _problem(reader: Reader, row: Row) -> list[Node]:
    id = row["problem_id"]
    trained = (
        f"policy_id IN (SELECT policy_id FROM policy_examples JOIN examples USING (example_id) WHERE problem_id = {id})"
    )
    return [
        *reader.group("plan", f"problem_id = {id}", "ordered in"),
        *reader.group("rollout", f"problem_id = {id}", "answered by"),
        *reader.group("example", f"problem_id = {id}", "became"),
        *reader.group("policy", trained, "trained"),
        *reader.group("problem", f"list_contains(parents, {id})", "parent of"),
    ]


def _example(reader: Reader, row: Row) -> list[Node]:
    trained = f"policy_id IN (SELECT policy_id FROM policy_examples WHERE example_id = {row['example_id']})"
    return reader.group("policy", trained, "trained")


def _context(reader: Reader, row: Row) -> list[Node]:
    id = row["context_id"]
    return [
        *reader.group("rollout", f"context_id = {id}", "shown to"),
        *reader.group("context", f"parent_context_id = {id}", "replaced by"),
    ]


def _stage_run(reader: Reader, row: Row) -> list[Node]:
    readers = reader.group("stage_run", f"list_contains(upstream, {literal(row['key'])})", "read by")
    return _written(reader, f"stage_run_id = {row['stage_run_id']}") + readers


def _run(reader: Reader, row: Row) -> list[Node]:
    run = f"run_id = {literal(row['run_id'])}"
    counts = [node for node in _written(reader, run) if node.kind != "policies"]
    return reader.group("policy", run, "made") + counts


def _written(reader: Reader, where: str) -> list[Node]:
    """How many rows of each table were written."""
    nodes = []
    for kind in KINDS.values():
        if kind.name not in ("run", "stage_run") and (total := reader.count(kind.name, where)):
            nodes.append(Node(kind.table, "", f"{total} {kind.table}", "wrote", {"count": total}, (), total))
    return nodes


_OUTCOMES: dict[str, Callable[[Reader, Row], list[Node]]] = {
    "policy": _policy,
    "rollout": _rollout,
    "problem": _problem,
    "example": _example,
    "context": _context,
    "plan": lambda reader, row: reader.group("rollout", f"plan_id = {row['plan_id']}", "sampled"),
    "stage_run": _stage_run,
    "run": _run,
}
