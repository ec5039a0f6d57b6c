"""The stories of what is trained on and of what comes out: examples, pairs and policies."""

from __future__ import annotations

from strop.storage.explain.words import Teller, among, counted, gated, problem, said, text, trained
from strop.storage.kinds import Row, number
from strop.storage.links import SCORED_BY
from strop.storage.tables import REWARD
from strop.storage.views import literal

EXAMPLE = """
SELECT e.*, p.task, p.category, p.reference, p.prompt AS question, p.problem_id IS NOT NULL AS has_problem
FROM (SELECT * FROM examples WHERE example_id = {id}) e LEFT JOIN problems p ON p.problem_id = e.problem_id"""
SIDES = """
SELECT r.rollout_id, r.run_id, r.round, r.completion, p.name AS policy
FROM (SELECT * FROM rollouts WHERE rollout_id IN ({ids})) r LEFT JOIN policies p USING (policy_id)"""
POLICY = """
SELECT p.*, parent.name AS parent, parent.policy_id AS parent_id, reference.name AS reference,
  scorer.name AS scorer,
  s.plugin, s.plugin_version, s.seed AS stage_seed, s.stage, r.recipe, r.recipe_hash, r.seed AS run_seed,
  r.strop_version, r.code_version
FROM (SELECT *, {scored_by} AS scored_by FROM policies WHERE policy_id = {id}) p
LEFT JOIN policies parent ON parent.policy_id = p.parent_policy_id
LEFT JOIN policies reference ON reference.policy_id = p.reference_policy_id
LEFT JOIN policies scorer ON scorer.policy_id = p.scored_by
LEFT JOIN stage_runs s ON s.stage_run_id = p.stage_run_id LEFT JOIN runs r ON r.run_id = p.run_id"""
TRAINED_ON = """
WITH used AS (
  SELECT e.kind, e.run_id, e.round, e.problem_id, e.rollout_id, e.rejected_rollout_id
  FROM policy_examples t JOIN examples e USING (example_id) WHERE t.policy_id = {id})
SELECT
  (SELECT list(n || ' ' || kind ORDER BY n DESC, kind)
   FROM (SELECT kind, count(*) AS n FROM used GROUP BY kind)) AS kinds,
  (SELECT list(DISTINCT round ORDER BY round) FROM used) AS rounds,
  (SELECT count(DISTINCT problem_id) FROM used) AS problems,
  (SELECT count(*) FROM problems WHERE origin <> 'task' AND problem_id IN (SELECT problem_id FROM used)) AS made,
  (SELECT list(DISTINCT origin ORDER BY origin) FROM problems
   WHERE origin <> 'task' AND problem_id IN (SELECT problem_id FROM used)) AS origins,
  (SELECT list(name || ' (' || n || ')' ORDER BY n DESC, name) FROM (
    SELECT p.name, count(*) AS n FROM rollouts r JOIN policies p USING (policy_id)
    WHERE r.rollout_id IN (SELECT rollout_id FROM used UNION SELECT rejected_rollout_id FROM used)
    GROUP BY p.name)) AS samplers"""
MEASURED = """
SELECT m.policy_id, m.name, m.value, m.ci_low, m.ci_high, m.n FROM metrics m
WHERE m.slice = 'heldout' AND m.policy_id IN ({ids})
QUALIFY row_number() OVER (PARTITION BY m.policy_id, m.name ORDER BY m.round DESC) = 1
ORDER BY m.name NOT LIKE 'pass@%', m.name"""
LATER = """
SELECT
  (SELECT count(*) FROM rollouts WHERE policy_id = {id} AND split <> 'heldout') AS sampled,
  (SELECT list(DISTINCT round ORDER BY round) FROM rollouts WHERE policy_id = {id} AND split <> 'heldout') AS rounds,
  (SELECT count(*) FROM rollouts WHERE policy_id = {id} AND split = 'heldout') AS examined,
  (SELECT list(name ORDER BY run_id, round) FROM policies WHERE parent_policy_id = {id}) AS children,
  (SELECT list(name ORDER BY run_id, round) FROM policies WHERE reference_policy_id = {id}) AS kept_near"""

SCORED = """
SELECT count(DISTINCT subject_id) AS n, list(DISTINCT round ORDER BY round) AS rounds FROM scores
WHERE subject_kind = 'rollout' AND value IS NOT NULL AND contains(detail, {name})"""
TAUGHT = "SELECT list(name ORDER BY run_id, round) AS names FROM policies WHERE {scored_by} = {id}"


def example(teller: Teller) -> None:
    """Tell of an example: an SFT row, a pair, or a member of a group."""
    row = teller.row(EXAMPLE.format(id=teller.id))
    of = f" for {problem({**row, 'prompt': row['question']})}" if row["has_problem"] else ""
    where = f"which {row['builder']} built in round {row['round']} of run {row['run_id']}"
    teller.say(f"{_what(row, teller.id)}, {where}{of}.")
    if row["prompt"] != row["question"]:
        teller.say(f"The loss sees the prompt {text(row['prompt'])}.")
    told = [("weight", row["weight"]), ("reward", row["reward"]), ("margin", row["margin"])]
    if any(value is not None for _, value in told):
        teller.say(f"It carries {among(f'{name} {number(value)}' for name, value in told if value is not None)}.")
    if row["kind"] == "pair":
        _side(teller, row, "Chosen", row["chosen"], row["rollout_id"])
        _side(teller, row, "Rejected", row["rejected"], row["rejected_rollout_id"])
    else:
        _side(teller, row, "Trained on", row["completion"], row["rollout_id"])
    if row["sources"]:
        teller.say(f"It was also made from {counted(len(row['sources']), 'rollout')}: {among(row['sources'])}.")
    trained(teller, [teller.id])


def _what(row: Row, id: object) -> str:
    if row["kind"] == "pair":
        return f"Pair {id} prefers one completion over another"
    if row["kind"] == "group":
        return f"Example {id} is a member of group {row['group_id']}"
    return f"Example {id} is {'an SFT' if row['kind'] == 'sft' else row['kind']} row"


def _side(teller: Teller, example: Row, title: str, completion: str | None, rollout: int | None) -> None:
    made = teller.row(SIDES.format(ids=rollout)) if rollout else None
    if made is None or made["rollout_id"] is None:
        teller.say(f"{title}: {text(completion)}, which is no rollout's.")
        return
    same = "" if made["completion"] == completion else f", edited from {text(made['completion'])}"
    where = f"round {made['round']} of run {made['run_id']}"
    teller.say(f"{title}: {text(completion)}{same}, rollout {rollout}, sampled by {made['policy']} in {where}.")
    said(teller, [made["rollout_id"]], example["run_id"], title)


def policy(teller: Teller) -> None:
    """Tell of a policy: what it was trained on, how it fared, and what the gate made of it."""
    row = teller.row(POLICY.format(id=teller.id, scored_by=SCORED_BY))
    title = {
        "champion": "the champion",
        "retired": "a former champion",
        "rejected": "a rejected candidate",
        "scorer": "a reward model",
    }
    is_ = title.get(row["status"], f"a {row['status']}")
    teller.say(
        f"{row['name']} is {is_} of run {row['run_id']}, made in round {row['round']} "
        f"(policy {teller.id}, hash {row['content_hash']}, in {row['path']})."
    )
    if row["kind"] == "base":
        teller.say(f"It is the base policy, from {row['plugin']} {row['plugin_version']}; training starts from it.")
    else:
        _training(teller, row)
    _measures(teller, row)
    outcome = gated(teller, [teller.id]).get(teller.id)
    if outcome:
        teller.say(f"{outcome[0].upper()}{outcome[1:]}.")
    elif row["kind"] == REWARD:
        teller.say("It scores rollouts and writes none, so no gate decides on it.")
    elif row["kind"] != "base":
        teller.say("No gate has decided on it.")
    if row["kind"] == REWARD:
        _scored(teller, row)
    else:
        _afterwards(teller, row)
    _provenance(teller, row)


def _training(teller: Teller, row: Row) -> None:
    start = f" from {row['parent']}" if row["parent"] else ""
    near = [f"kept near {row['reference']}"] if row["reference"] else []
    near += [f"its tokens scored by {row['scorer']}"] if row["scorer"] else []
    aside = f", {', '.join(near)}," if near else ""
    steps = f" in {counted(row['steps'], 'step')}" if row["steps"] is not None else ""
    loss = f" (loss {number(row['loss'])} over the last tenth)" if row["loss"] is not None else ""
    weights = "full" if row["kind"] == REWARD else row["kind"]
    teller.say(
        f"It was trained{start} with {row['objective']}{aside} on "
        f"{counted(row['examples'], 'example')}{steps}{loss}; the weights are {weights}."
    )
    used = teller.row(TRAINED_ON.format(id=teller.id))
    if not used["kinds"]:
        return
    made = f", {used['made']:,} of them synthesized by {among(used['origins'])}" if used["made"] else ""
    rounds = among(used["rounds"])
    teller.say(
        f"Those are {among(used['kinds'])} examples of round{'s' if len(used['rounds']) > 1 else ''} {rounds}, "
        f"for {counted(used['problems'], 'problem')}{made}."
    )
    if used["samplers"]:
        teller.say(f"Their rollouts were sampled by {among(used['samplers'])}.")
    sampled = teller.row(
        f"SELECT rollouts, kept FROM v_rounds WHERE run_id = {literal(row['run_id'])} AND round = {row['round']}"
    )
    if sampled["rollouts"] and sampled["kept"] is not None:
        teller.say(
            f"Of the {counted(sampled['rollouts'], 'training rollout')} of that round the filters kept "
            f"{sampled['kept']:,}."
        )


def _measures(teller: Teller, row: Row) -> None:
    ids = [teller.id, *([row["parent_id"]] if row["parent_id"] else [])]
    rows = teller.rows(MEASURED.format(ids=", ".join(map(str, ids))))
    before = {item["name"]: item["value"] for item in rows if item["policy_id"] != teller.id}
    told = []
    for item in rows:
        if item["policy_id"] == teller.id and item["value"] is not None:
            interval = "" if item["ci_low"] is None else f" [{item['ci_low']:.3f}, {item['ci_high']:.3f}]"
            was = "" if before.get(item["name"]) is None else f" (before: {before[item['name']]:.3f})"
            told.append(f"{item['name']} {item['value']:.3f}{interval}{was}")
    if told:
        n = max(item["n"] or 0 for item in rows)
        teller.say(f"Held out, on {counted(n, 'problem')}: {', '.join(told)}.")


def _afterwards(teller: Teller, row: Row) -> None:
    later = teller.row(LATER.format(id=teller.id))
    parts = []
    if later["sampled"]:
        rounds = f"round{'s' if len(later['rounds']) > 1 else ''} {among(later['rounds'])}"
        parts.append(f"sampled {counted(later['sampled'], 'training rollout')} in {rounds}")
    if later["children"]:
        parts.append(f"became the start of {among(later['children'])}")
    if later["kept_near"]:
        parts.append(f"was the reference of {among(later['kept_near'])}")
    teller.say(f"Since then it {among(parts)}." if parts else "Nothing has been sampled or trained from it since.")


def _scored(teller: Teller, row: Row) -> None:
    """What a reward model has been used for: the scores that name it, and the policies whose tokens it scored."""
    found = teller.row(SCORED.format(name=literal(f'"{row["name"]}"')))
    taught = teller.row(TAUGHT.format(id=teller.id, scored_by=SCORED_BY))["names"]
    parts = []
    if found["n"]:
        rounds = f"round{'s' if len(found['rounds']) > 1 else ''} {among(found['rounds'])}"
        parts.append(f"scored {counted(found['n'], 'rollout')} in {rounds}")
    if taught:
        parts.append(f"scored the tokens that {among(taught)} learnt from")
    teller.say(f"Since then it {among(parts)}." if parts else "It has scored nothing since.")


def _provenance(teller: Teller, row: Row) -> None:
    if row["recipe"]:
        code = f" at commit {row['code_version']}" if row["code_version"] else ""
        stage = f"stage {row['stage']} ({row['plugin']} {row['plugin_version']}) with seed {row['stage_seed']}"
        recipe = f"Recipe {row['recipe']} ({row['recipe_hash']}), seed {row['run_seed']}"
        teller.say(f"{recipe}, Strop {row['strop_version']}{code}; {stage}.")
