"""The stories of what is asked: problems, the plans that order rollouts of them, and contexts shown before them."""

from __future__ import annotations

from strop.storage.explain.words import Teller, among, counted, elsewhere, gated, problem, text
from strop.storage.kinds import Row, number
from strop.storage.views import literal

RATES = """
SELECT scorer, scorer_version, run_id, round, n, passed FROM v_pass_rates WHERE problem_id IN ({ids})
ORDER BY run_id, round, scorer, scorer_version"""
PARENTS = """
SELECT q.problem_id, q.prompt, sum(v.passed)::BIGINT AS passed, sum(v.n)::BIGINT AS n
FROM problems q LEFT JOIN v_pass_rates v ON v.problem_id = q.problem_id AND v.round <= {round}
WHERE q.problem_id IN ({ids}) GROUP BY ALL ORDER BY q.problem_id"""
LEARNERS = """
SELECT p.policy_id, p.name, p.status, count(*) AS n FROM examples e JOIN policy_examples t USING (example_id)
JOIN policies p USING (policy_id) WHERE e.problem_id = {id} GROUP BY ALL ORDER BY p.name"""
CHILDREN = "SELECT count(*) AS n, list(DISTINCT origin) AS origins FROM problems WHERE list_contains(parents, {id})"


def told_problem(teller: Teller) -> None:
    """Tell of a problem: where it comes from, how well it was solved, and what it taught."""
    row = teller.row(f"SELECT * FROM problems WHERE problem_id = {teller.id}")
    about = problem(row)
    level = "" if row["level"] is None else f", level {number(row['level'])}"
    split = "a held-out" if row["split"] == "heldout" else "a training"
    teller.say(f"P{about[1:]}; {split} problem{level}.")
    _origin(teller, row)
    for plan in teller.rows(
        "SELECT run_id, round, coalesce(reason, 'no reason given') AS reason, n FROM plans "
        f"WHERE problem_id = {teller.id} ORDER BY run_id, round"
    ):
        n = "" if plan["n"] is None else f" for {counted(plan['n'], 'rollout')}"
        teller.say(f"Selected in round {plan['round']}{elsewhere(plan, row['run_id'])}{n}: {plan['reason']}.")
    rates = teller.rows(RATES.format(ids=teller.id))
    for rate in rates:
        teller.say(
            f"{rate['scorer']} {rate['scorer_version']} passed {rate['passed']} of {counted(rate['n'], 'rollout')} "
            f"in round {rate['round']}{elsewhere(rate, row['run_id'])}."
        )
    if not rates:
        teller.say("No rollout of it has a verdict.")
    _lessons(teller, row)


def _origin(teller: Teller, row: Row) -> None:
    where = f"in round {row['round']} of run {row['run_id']}"
    if row["origin"] == "task":
        teller.say(f"It came with the task {row['task']} {where}.")
    else:
        parents = teller.rows(PARENTS.format(ids=", ".join(map(str, row["parents"])) or "NULL", round=row["round"]))
        teller.say(f"{row['origin']} synthesized it {where} from {counted(len(row['parents']), 'problem')}.")
        for parent in parents:
            solved = f", solved {parent['passed']} of {parent['n']} times by then" if parent["n"] else ""
            teller.say(f"  parent {parent['problem_id']}: {text(parent['prompt'])}{solved}")
    if row["status"] != "active":
        teller.say(f"It is {row['status']}: it may not be selected.")


def _lessons(teller: Teller, row: Row) -> None:
    learners = teller.rows(LEARNERS.format(id=teller.id))
    outcome = gated(teller, [item["policy_id"] for item in learners])
    for item in learners:
        gate = outcome.get(item["policy_id"], f"it is now {item['status']}")
        teller.say(f"{counted(item['n'], 'example')} of it trained {item['name']}; {gate}.")
    if not learners:
        held = row["split"] == "heldout"
        teller.say("It measures, and is never trained on." if held else "No policy has been trained on it.")
    children = teller.row(CHILDREN.format(id=teller.id))
    if children["n"]:
        teller.say(f"{among(children['origins'])} made {counted(children['n'], 'new problem')} from it.")


def plan(teller: Teller) -> None:
    """Tell of a plan: what was ordered, why, and what was sampled for it."""
    row = teller.row(
        "SELECT x.*, q.task, q.category, q.prompt, q.reference, s.plugin, s.plugin_version "
        f"FROM (SELECT * FROM plans WHERE plan_id = {teller.id}) x LEFT JOIN problems q USING (problem_id) "
        "LEFT JOIN stage_runs s ON s.stage_run_id = x.stage_run_id"
    )
    n = "as many rollouts as the generator makes" if row["n"] is None else counted(row["n"], "rollout")
    teller.say(f"Plan {teller.id} orders {n} of {problem(row)}.")
    who = f"{row['plugin']} {row['plugin_version']}" if row["plugin"] else "The selector"
    teller.say(
        f"{who} wrote it in round {row['round']} of run {row['run_id']}"
        + (f": {row['reason']}." if row["reason"] else ".")
    )
    if row["start_rollout_id"]:
        step = "" if row["branch_step"] is None else f" after its step {row['branch_step']}"
        teller.say(f"The rollouts continue rollout {row['start_rollout_id']}{step}.")
    if row["context_id"]:
        teller.say(f"Context {row['context_id']} is shown before the problem.")
    if row["params"]:
        teller.say(f"It overrides the generator with {row['params']}.")
    made = teller.row(
        f"SELECT count(*) AS n, list(rollout_id ORDER BY rollout_id) AS ids FROM rollouts WHERE plan_id = {teller.id}"
    )
    if made["n"]:
        teller.say(f"It led to {counted(made['n'], 'rollout')}: {among(made['ids'])}.")
        return
    near = teller.row(
        f"SELECT count(*) AS n FROM rollouts WHERE problem_id = {row['problem_id']} AND split <> 'heldout' "
        f"AND run_id = {literal(row['run_id'])} AND round = {row['round']}"
    )
    teller.say(f"No rollout names it; the run sampled {counted(near['n'], 'rollout')} of that problem in that round.")


def context(teller: Teller) -> None:
    """Tell of a context: what it says, what it was learnt from, and how the policy fared with it."""
    row = teller.row(f"SELECT * FROM contexts WHERE context_id = {teller.id}")
    teller.say(
        f"Context {teller.id} is {row['name']!r} of the memory {row['memory']}, written in round {row['round']} "
        f"of run {row['run_id']} ({row['op']}): {text(row['text'])}."
    )
    if row["parent_context_id"]:
        teller.say(f"It replaces context {row['parent_context_id']}.")
    if row["sources"]:
        teller.say(f"It was learnt from {counted(len(row['sources']), 'rollout')}: {among(row['sources'])}.")
    newer = teller.rows(
        f"SELECT context_id, op, round FROM contexts WHERE parent_context_id = {teller.id} ORDER BY round"
    )
    for item in newer:
        teller.say(f"Context {item['context_id']} ({item['op']}) replaced it in round {item['round']}.")
    shown = teller.rows(
        "SELECT r.run_id, r.round, count(*) AS n, count(*) FILTER (v.verdict = 'pass') AS passed "
        f"FROM rollouts r LEFT JOIN v_rollouts v USING (run_id, round, rollout_id) WHERE r.context_id = {teller.id} "
        "GROUP BY ALL ORDER BY ALL"
    )
    for item in shown:
        teller.say(
            f"It was shown to {counted(item['n'], 'rollout')} in round {item['round']}"
            f"{elsewhere(item, row['run_id'])}, {item['passed']} of which passed."
        )
    if not shown:
        teller.say("No rollout has been shown it.")
