"""Every link between rows of the lake, in one list: which column of which table names what, and how both ends read.

A link goes from a child, which carries the reference or was made later, to its parent: a rollout to the policy that
sampled it, a score to the rollout it judges. Lineage walks the list in both directions, `v_lineage` is its union, and
a test fails when a column of `tables` that names rows is missing here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from strop.storage.kinds import KINDS

Far = str
"""Where a story follows a link: '' only from the row asked for; 'up', 'down' or 'up down' from other rows too; '-' not
at all, because a longer way tells more."""


@dataclass(frozen=True, slots=True)
class Link:
    """One way in which rows of one kind come from rows of another."""

    child: str
    parent: str
    up: str
    """What the parent is to the child: 'sampled by'."""
    down: str
    """What the child is to the parent: 'sampled'."""
    column: str
    """The column it stands for, as `table.column`; '' for a link that a join draws."""
    sql: str
    """Its pairs: child_id, parent_id, and the child's run_id and round. No pair twice."""
    far: Far = ""

    @property
    def chain(self) -> bool:
        """Whether it ties rows of one kind: ancestors of a policy, nodes of a tree of rollouts."""
        return self.child == self.parent


def _column(child: str, column: str, parent: str, up: str, down: str, far: Far = "", where: str = "") -> Link:
    """A column that holds one id; null names nothing, and where ids are numbers of rows neither does 0."""
    kind = KINDS[child]
    named = f"{column} <> 0" if KINDS[parent].table and not KINDS[parent].names_text else f"{column} IS NOT NULL"
    sql = f"SELECT {kind.id} AS child_id, {column} AS parent_id, run_id, round FROM {kind.table} WHERE {named}"
    return Link(child, parent, up, down, f"{kind.table}.{column}", sql + (f" AND {where}" if where else ""), far)


def _list(child: str, column: str, parent: str, up: str, down: str, far: Far = "") -> Link:
    """A column that holds a list of ids."""
    kind = KINDS[child]
    sql = (
        f"SELECT {kind.id} AS child_id, unnest(list_distinct({column})) AS parent_id, run_id, round "
        f"FROM {kind.table} WHERE len({column}) > 0"
    )
    return Link(child, parent, up, down, f"{kind.table}.{column}", sql, far)


def _subjects(child: str, verbs: dict[str, tuple[str, tuple[str, ...]]], far: Far) -> list[Link]:
    """`subject_id` names what `subject_kind` says: a step or token belongs to a rollout, a pair is an example."""
    return [
        _column(child, "subject_id", parent, "about", down, far, f"subject_kind IN ({', '.join(map(repr, kinds))})")
        for parent, (down, kinds) in verbs.items()
    ]


OF_ROLLOUT = ("rollout", "step", "token")

USED = """EXISTS (
  SELECT 1 FROM stage_runs u WHERE u.run_id = e.run_id AND coalesce(u.reuses, u.stage_run_id) = s.stage_run_id)"""
"""Whether the run that built an example read what this stage run wrote: it did the work itself, or re-uses it."""


def _evidence(child: str, up: str, down: str, rollout: str = "rollout_id") -> Link:
    """An example, and what scorers or filters of its run said of a rollout it was made from."""
    kind = KINDS[child]
    sql = (
        f"SELECT e.example_id AS child_id, s.{kind.id} AS parent_id, e.run_id, e.round "
        f"FROM examples e JOIN {kind.table} s ON s.subject_id = e.{rollout} "
        f"WHERE s.subject_kind IN {OF_ROLLOUT} AND (s.run_id = e.run_id OR {USED})"
    )
    return Link("example", child, up, down, "", sql, "up")


UPSTREAM = """
SELECT s.stage_run_id AS child_id, u.stage_run_id AS parent_id, s.run_id, s.round
FROM (SELECT stage_run_id, run_id, round, unnest(list_distinct(upstream)) AS key FROM stage_runs) s
JOIN stage_runs u USING (key)"""
TRAINED = """
SELECT policy_id AS child_id, example_id AS parent_id, run_id, round FROM policy_examples"""
WEIGHED = """
SELECT DISTINCT rollout_id AS child_id, policy_id AS parent_id, run_id, round FROM token_logps WHERE policy_id <> 0"""
LEARNT = """
SELECT DISTINCT t.policy_id AS child_id, e.problem_id AS parent_id, t.run_id, t.round
FROM policy_examples t JOIN examples e USING (example_id) WHERE e.problem_id <> 0"""
SCORED_BY = "CAST(detail ->> '$.reward_policy_id' AS BIGINT)"
"""The reward model that scored the tokens a policy was trained on."""
TOKENS = f"""
SELECT policy_id AS child_id, {SCORED_BY} AS parent_id, run_id, round FROM policies WHERE {SCORED_BY} <> 0"""
VERSION = """
SELECT score_id AS child_id, scorer || ' ' || scorer_version AS parent_id, run_id, round FROM scores"""

LINKS: tuple[Link, ...] = (
    # policies
    _column("policy", "parent_policy_id", "policy", "started from", "parent of", "up down"),
    _column("policy", "reference_policy_id", "policy", "kept near", "reference of"),
    Link("policy", "policy", "tokens scored by", "scored tokens of", "", TOKENS),
    Link("policy", "example", "trained on", "trained", "policy_examples.example_id", TRAINED, "down"),
    Link("policy", "problem", "learnt from", "trained", "", LEARNT),
    # examples and pairs
    _column("example", "rollout_id", "rollout", "made from", "became", "up down"),
    _column("example", "rejected_rollout_id", "rollout", "against", "rejected in", "up down"),
    _list("example", "sources", "rollout", "also made from", "helped to make", "up down"),
    _evidence("score", "judged by", "spoke on"),
    _evidence("decision", "let in by", "let in"),
    _evidence("score", "rejected by", "spoke against", "rejected_rollout_id"),
    _column("example", "problem_id", "problem", "about", "became"),
    _column("example", "group_id", "group", "member of", "trained as"),
    # rollouts and their trees
    _column("rollout", "policy_id", "policy", "sampled by", "sampled", "up", "split <> 'heldout'"),
    _column("rollout", "policy_id", "policy", "sampled by", "examined by", "up", "split = 'heldout'"),
    Link("rollout", "policy", "weighed by", "weighed", "token_logps.policy_id", WEIGHED),
    _column("rollout", "problem_id", "problem", "answers", "answered by", "up"),
    _column("rollout", "context_id", "context", "shown", "shown to", "up"),
    _column("rollout", "parent_rollout_id", "rollout", "continues", "continued as", "up down"),
    _column("rollout", "plan_id", "plan", "ordered by", "ordered"),
    _column("rollout", "group_id", "group", "member of", "has"),
    # what is said of them
    *_subjects(
        "score",
        {
            "rollout": ("scored", OF_ROLLOUT),
            "problem": ("scored", ("problem",)),
            "example": ("scored", ("pair", "example")),
            "policy": ("scored", ("policy",)),
        },
        "up down",
    ),
    _column("score", "supersedes", "score", "supersedes", "superseded by", "up down"),
    _column("score", "problem_id", "problem", "on", "judged in", "-"),
    Link("score", "scorer", "said by", "said", "scores.scorer_version", VERSION),
    *_subjects(
        "decision",
        {
            "rollout": ("decided", OF_ROLLOUT),
            "policy": ("gated by", ("policy",)),
            "problem": ("decided", ("problem",)),
            "example": ("decided", ("pair", "example")),
        },
        "up down",
    ),
    _column("metric", "policy_id", "policy", "measured on", "measured as", "up"),
    _column("metric", "context_id", "context", "measured in", "measured as", "up"),
    # problems, plans, contexts
    _list("problem", "parents", "problem", "synthesized from", "parent of", "up down"),
    _column("plan", "problem_id", "problem", "asks", "ordered in", "up"),
    _column("plan", "context_id", "context", "shows", "ordered in", "up"),
    _column("plan", "start_rollout_id", "rollout", "continues from", "continued by", "up"),
    _column("context", "parent_context_id", "context", "replaces", "replaced by", "up down"),
    _list("context", "sources", "rollout", "learnt from", "taught", "up"),
    # the ledger
    *(
        _column(kind.name, "stage_run_id", "stage_run", "written by", "wrote")
        for kind in KINDS.values()
        if kind.table and kind.name not in ("run", "stage_run", "recipe")
    ),
    _column("stage_run", "reuses", "stage_run", "re-uses", "re-used by", "up down"),
    Link("stage_run", "stage_run", "read", "read by", "stage_runs.upstream", UPSTREAM),
    _column("stage_run", "run_id", "run", "part of", "did", "up"),
    replace(_column("policy", "run_id", "run", "part of", "made"), far=""),
    _column("run", "parent_run_id", "run", "re-uses", "re-used by", "up down"),
    _column("run", "recipe_hash", "recipe", "follows", "run as", "up"),
    _column("run", "seed", "seed", "drew from", "seeded", "up"),
    _column("run", "code_version", "code", "made with", "made", "up"),
)
