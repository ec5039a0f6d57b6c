"""The story of a rollout: who sampled it and how, what was said of it, and whether anything was learnt from it."""

from __future__ import annotations

from strop.storage.explain.words import Teller, among, counted, elsewhere, problem, said, standing, text, trained
from strop.storage.kinds import Row, number
from strop.storage.views import literal

ROLLOUT = """
SELECT r.* EXCLUDE (token_ids, logps), p.name AS policy, p.kind AS policy_kind, p.status AS policy_status,
  q.task, q.category, q.reference, q.prompt AS question,
  (SELECT count(*) FROM rollouts g WHERE g.group_id = r.group_id AND g.stage_run_id = r.stage_run_id) AS members,
  (SELECT max(d.round) FROM decisions d WHERE d.subject_kind = 'policy' AND d.subject_id = r.policy_id AND d.keep)
    AS promoted
FROM (SELECT * FROM rollouts WHERE rollout_id = {id}) r
LEFT JOIN policies p ON p.policy_id = r.policy_id LEFT JOIN problems q ON q.problem_id = r.problem_id"""
TREE = """
WITH RECURSIVE edges AS MATERIALIZED (
  SELECT rollout_id, parent_rollout_id FROM rollouts WHERE parent_rollout_id IS NOT NULL),
up AS (
  SELECT {id}::BIGINT AS rollout_id, 0 AS depth
  UNION
  SELECT edges.parent_rollout_id, depth + 1 FROM up JOIN edges USING (rollout_id) WHERE depth < 10000)
SELECT max_by(rollout_id, depth) AS root, max(depth) AS depth,
  (SELECT count(*) FROM edges WHERE parent_rollout_id = {id}) AS children FROM up"""

TWIN = """
SELECT e.example_id, e.rollout_id FROM examples e JOIN rollouts r ON r.rollout_id = e.rollout_id
WHERE {here} AND r.problem_id = e.problem_id
  AND (r.problem_id, r.completion) IN (SELECT (problem_id, completion) FROM rollouts WHERE rollout_id = {id})
ORDER BY e.example_id LIMIT 1"""
SAME = """
SELECT count(*) AS n, count(DISTINCT completion) AS texts,
  (SELECT count(*) FROM examples WHERE problem_id = {problem} AND {here}) AS used
FROM rollouts WHERE problem_id = {problem} AND split <> 'heldout' AND {here}"""


def rollout(teller: Teller) -> None:
    """Tell of a rollout."""
    row = teller.row(ROLLOUT.format(id=teller.id))
    _sampling(teller, row)
    _tree(teller, row)
    said(teller, [teller.id], row["run_id"])
    kept = _decided(teller, row)
    _outcome(teller, row, kept)


def _sampling(teller: Teller, row: Row) -> None:
    of = f"sample {row['sample_index'] + 1} of {row['members']}" if row["group_id"] else "a rollout"
    about = problem({**row, "prompt": row["question"]}) if row["question"] is not None else f"{row['problem_id']}"
    teller.say(f"Rollout {teller.id} is {of} for {'the held-out ' if row['split'] == 'heldout' else ''}{about}.")
    settings = [
        "" if row[name] is None or row[name] == off else f"{called} {number(row[name])}"
        for name, called, off in (
            ("temperature", "temperature", None),
            ("top_p", "top_p", 1),
            ("top_k", "top_k", 0),
            ("max_tokens", "max_tokens", None),
            ("seed", "seed", None),
        )
    ]
    how = ", ".join(filter(None, settings))
    who = f"{row['policy'] or 'an unknown policy'}{_then(row)}"
    engine = f" through {row['engine']}" if row["engine"] else ""
    teller.say(f"{who} sampled it in round {row['round']} of run {row['run_id']}{engine}{f' at {how}' if how else ''}.")
    ended = {"length": "it was cut off there", "error": f"then the engine failed: {row['error']}"}
    end = ended.get(row["finish_reason"], "it ended by itself")
    teller.say(f"It says {text(row['completion'])} in {counted(row['n_tokens'], 'token')}; {end}.")
    if row["context_id"]:
        teller.say(f"It was shown context {row['context_id']}.")


def _then(row: Row) -> str:
    """What the policy was when it sampled."""
    if row["policy"] is None:
        return ""
    now = f"now {row['policy_status']}"
    if row["split"] == "heldout":
        return f" (examined here; {now})"
    if row["promoted"] is not None and row["promoted"] < row["round"]:
        return f" (champion since round {row['promoted']}, {now})"
    return f" ({'the base policy' if row['policy_kind'] == 'base' else 'the newest then'}, {now})"


def _tree(teller: Teller, row: Row) -> None:
    tree = teller.row(TREE.format(id=teller.id))
    if tree["depth"]:
        step = "" if row["branch_step"] is None else f" after its step {row['branch_step']}"
        teller.say(
            f"It continues rollout {row['parent_rollout_id']}{step}, {counted(tree['depth'], 'step')} below "
            f"rollout {tree['root']}, the root of its tree."
        )
    if tree["children"]:
        verb = "continues" if tree["children"] == 1 else "continue"
        teller.say(f"{counted(tree['children'], 'rollout')} of the tree {verb} it.")


def _decided(teller: Teller, row: Row) -> bool | None:
    """Whether every filter kept it; None where none was asked."""
    rows = teller.rows(
        "SELECT decider, keep, weight, reason, run_id FROM decisions "
        f"WHERE subject_kind = 'rollout' AND subject_id = {teller.id} "
        f"ORDER BY run_id <> {literal(row['run_id'])}, round, decider"
    )
    for item in rows:
        weight = "" if item["weight"] is None else f" with weight {number(item['weight'])}"
        what = f"{'kept' if item['keep'] else 'dropped'} it{weight}{elsewhere(item, row['run_id'])}"
        teller.say(f"The filter {item['decider']} {what}" + (f": {item['reason']}." if item["reason"] else "."))
    own = [item["keep"] for item in rows if item["run_id"] == row["run_id"]]
    return all(own) if own else None


def _outcome(teller: Teller, row: Row, kept: bool | None) -> None:
    if row["split"] == "heldout":
        teller.say("It is held out: it measures its policy, and nothing is trained on it.")
        return
    made = teller.rows(
        "SELECT example_id, kind, builder, run_id, round, rollout_id, rejected_rollout_id, weight, reward, margin "
        f"FROM examples WHERE rollout_id = {teller.id} OR rejected_rollout_id = {teller.id} "
        f"OR list_contains(sources, {teller.id}) ORDER BY round, example_id"
    )
    for example in made:
        teller.say(f"{_example(example, teller.id)}{elsewhere(example, row['run_id'])}.")
        trained(teller, [example["example_id"]])
    if not made:
        teller.say(_unused(teller, row, kept))


def _example(example: Row, id: object) -> str:
    """What the builder made of the rollout."""
    builder, number_ = example["builder"], example["example_id"]
    if example["kind"] == "pair" and id in (example["rollout_id"], example["rejected_rollout_id"]):
        chosen = example["rollout_id"] == id
        other = example["rejected_rollout_id"] if chosen else example["rollout_id"]
        margin = "" if example["margin"] is None else f", margin {number(example['margin'])}"
        side = "preferred" if chosen else "rejected"
        return f"{builder} made it the {side} side of pair {number_}, against rollout {other}{margin}"
    kind = "SFT" if example["kind"] == "sft" else example["kind"]
    reward = "" if example["reward"] is None else f" with reward {number(example['reward'])}"
    if example["rollout_id"] == id:
        return f"{builder} made {kind} example {number_} of it{reward}"
    return f"{builder} used it for {kind} example {number_}"


def _unused(teller: Teller, row: Row, kept: bool | None) -> str:
    """Why no example was made of it, as far as rows tell."""
    if kept is False:
        return "No example was made of it, because it was dropped."
    here = f"run_id = {literal(row['run_id'])} AND round = {row['round']}"
    built = teller.rows(f"SELECT DISTINCT stage, config_json FROM stage_runs WHERE {here} AND kind = 'build'")
    if not built:
        return f"No example was made of it: run {row['run_id']} has built none in round {row['round']}."
    twin = teller.row(TWIN.format(id=teller.id, here=f"e.{here.replace(' round', ' e.round')}"))
    if twin["example_id"] is not None:
        return (
            f"No example was made of it: example {twin['example_id']} was made of rollout {twin['rollout_id']}, "
            "which says the same."
        )
    same = teller.row(SAME.format(problem=row["problem_id"], here=here))
    stages = among(f"{item['stage']} {item['config_json']}" for item in built)
    return (
        f"No example was made of it: {stages} made {counted(same['used'], 'example')} of the "
        f"{counted(same['n'], 'rollout')} of its problem ({counted(same['texts'], 'distinct text')})."
    )


def group(teller: Teller) -> None:
    """Tell of a group: the rollouts of one prompt under one policy."""
    row = teller.row(
        "SELECT any_value(r.run_id) AS run_id, min(r.round) AS round, any_value(p.name) AS policy, count(*) AS n, "
        "count(DISTINCT r.completion) AS texts, any_value(q.problem_id) AS problem_id, any_value(q.task) AS task, "
        "any_value(q.category) AS category, any_value(q.prompt) AS prompt, any_value(q.reference) AS reference "
        "FROM rollouts r LEFT JOIN policies p USING (policy_id) LEFT JOIN problems q ON q.problem_id = r.problem_id "
        f"WHERE r.group_id = {teller.id}"
    )
    teller.say(
        f"Group {teller.id} is {counted(row['n'], 'rollout')} ({counted(row['texts'], 'distinct text')}) that "
        f"{row['policy']} sampled in round {row['round']} of run {row['run_id']} for {problem(row)}."
    )
    for item in teller.rows(
        standing("SELECT s.scorer, s.scorer_version, s.verdict, count(*) AS n, avg(s.value) AS mean FROM scores s")
        + " WHERE s.subject_kind = 'rollout' AND s.step_index IS NULL AND s.subject_id IN "
        f"(SELECT rollout_id FROM rollouts WHERE group_id = {teller.id}) GROUP BY ALL ORDER BY ALL"
    ):
        teller.say(
            f"{item['scorer']} {item['scorer_version']} said {item['verdict'] or number(item['mean'])} of {item['n']}."
        )
