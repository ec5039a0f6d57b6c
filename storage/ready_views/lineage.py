"""Views of ancestry: policies, problems, and every link of the lake."""

from __future__ import annotations

from strop.storage.kinds import KINDS
from strop.storage.links import LINKS
from strop.storage.ready_views.view import Query, ReadyView, columns

# No MATERIALIZED here, although a recursion would gain by it: with a materialized CTE inside a view DuckDB 1.5 reads
# every column of the tables that a query joins to it, and the texts of a million rollouts cost more than the rescans.

DEEPEST = 1000
"""Generations of problems followed; a circle of parents ends there."""

V_ANCESTORS = ReadyView(
    "v_ancestors",
    "One row per policy and ancestor, itself included: which checkpoints training went through.",
    ("policies",),
    columns(
        policy_id=("BIGINT", "the policy"),
        policy=("VARCHAR", "its name"),
        ancestor_id=("BIGINT", "the ancestor"),
        ancestor=("VARCHAR", "its name"),
        distance=("INTEGER", "trainings between them; 0 = the policy itself, 1 = the policy it started from"),
    ),
    """
WITH RECURSIVE chain AS (
  SELECT policy_id, name AS policy, policy_id AS ancestor_id, name AS ancestor, parent_policy_id AS next,
    [policy_id] AS met
  FROM policies
  UNION ALL
  SELECT chain.policy_id, chain.policy, p.policy_id, p.name, p.parent_policy_id, list_append(chain.met, p.policy_id)
  FROM chain JOIN policies p ON p.policy_id = chain.next
  WHERE NOT list_contains(chain.met, p.policy_id))
SELECT policy_id, policy, ancestor_id, ancestor, len(met)::INTEGER - 1 AS distance FROM chain""",
    (
        Query(
            "Which checkpoints did each champion go through?",
            "SELECT policy, distance, ancestor FROM v_ancestors JOIN policies USING (policy_id)\n"
            "WHERE status = 'champion' ORDER BY policy, distance",
        ),
    ),
)

V_PROBLEM_PARENTS = ReadyView(
    "v_problem_parents",
    "One row per synthesized problem and problem it descends from.",
    ("problems",),
    columns(
        problem_id=("BIGINT", "the problem"),
        ancestor_id=("BIGINT", "a problem it was synthesized from, or one that was"),
        distance=("INTEGER", "generations between them; 1 = a parent"),
    ),
    f"""
WITH RECURSIVE p AS NOT MATERIALIZED (
  SELECT problem_id, unnest(parents) AS parent_id FROM problems WHERE len(parents) > 0),
chain AS (
  SELECT problem_id, parent_id AS ancestor_id, 1 AS distance FROM p
  UNION
  SELECT chain.problem_id, p.parent_id, distance + 1 FROM chain JOIN p ON p.problem_id = chain.ancestor_id
  WHERE distance < {DEEPEST})
SELECT problem_id, ancestor_id, min(distance) AS distance FROM chain GROUP BY problem_id, ancestor_id""",
    (
        Query(
            "Which problems had the most descendants?",
            "SELECT q.prompt, q.reference, count(*) AS descendants, max(distance) AS generations\n"
            "FROM v_problem_parents v JOIN problems q ON q.problem_id = v.ancestor_id\n"
            "GROUP BY ALL ORDER BY descendants DESC, q.prompt LIMIT 5",
        ),
    ),
)

V_LINEAGE = ReadyView(
    "v_lineage",
    "Every link between two rows with a number, both ways round: `WHERE from_id = x` is what x comes from, "
    "`WHERE to_id = x` what comes from x. The run of a row is its `run_id`, and so is not among them.",
    tuple(sorted({"examples", *(KINDS[link.child].table for link in LINKS), "policy_examples", "token_logps"})),
    columns(
        from_kind=("VARCHAR", "kind of the row that was made later: 'rollout', 'score', ..."),
        from_id=("BIGINT", "its id"),
        relation=("VARCHAR", "how it comes from the other: 'sampled by', 'about', ..."),
        to_kind=("VARCHAR", "kind of the row it comes from"),
        to_id=("BIGINT", "its id"),
        run_id=("VARCHAR", "run of the later row"),
        round=("INTEGER", "its round"),
    ),
    "\nUNION ALL\n".join(
        f"SELECT '{link.child}' AS from_kind, child_id AS from_id, '{link.up}' AS relation, "
        f"'{link.parent}' AS to_kind, parent_id AS to_id, run_id, round FROM ({link.sql})"
        for link in LINKS
        if not KINDS[link.child].names_text and not KINDS[link.parent].names_text
    ),
    (
        Query(
            "What came of one rollout?",
            "SELECT from_kind, from_id, relation FROM v_lineage\n"
            "WHERE to_kind = 'rollout' AND to_id = (SELECT min(rollout_id) FROM rollouts) ORDER BY ALL",
        ),
        Query(
            "Which kinds of link does this lake have, and how many?",
            "SELECT from_kind, relation, to_kind, count(*) AS links FROM v_lineage GROUP BY ALL ORDER BY ALL",
        ),
    ),
)

VIEWS = (V_ANCESTORS, V_PROBLEM_PARENTS, V_LINEAGE)
