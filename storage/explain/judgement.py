"""The stories of what was judged: scores, the scorers that gave them, decisions and metrics."""

from __future__ import annotations

from strop.storage.explain.words import Teller, among, counted, elsewhere, problem, standing, text, trained, verdict
from strop.storage.kinds import Row, number
from strop.storage.views import literal

SUBJECT = """
SELECT r.rollout_id, r.completion, r.split, r.run_id, r.round, p.name AS policy, q.problem_id, q.task, q.category,
  q.prompt, q.reference
FROM (SELECT * FROM rollouts WHERE rollout_id = {id}) r LEFT JOIN policies p USING (policy_id)
LEFT JOIN problems q ON q.problem_id = r.problem_id"""
OF_ROLLOUT = ("rollout", "step", "token")


def score(teller: Teller) -> None:
    """Tell of a score: who said what of which subject, what it replaces, and what followed."""
    row = teller.row(
        "SELECT s.*, x.plugin, x.plugin_version, x.seed AS stage_seed "
        f"FROM (SELECT * FROM scores WHERE score_id = {teller.id}) s "
        "LEFT JOIN stage_runs x ON x.stage_run_id = s.stage_run_id"
    )
    part = "" if row["step_index"] is None else f" {row['subject_kind']} {row['step_index']} of"
    subject = "rollout" if row["subject_kind"] in OF_ROLLOUT else row["subject_kind"]
    teller.say(f"Score {teller.id} is about{part} {subject} {row['subject_id']}. {verdict(row)}.")
    by = f" by the plugin {row['plugin']} {row['plugin_version']}" if row["plugin"] else ""
    teller.say(f"It was given in round {row['round']} of run {row['run_id']}{by}.")
    if subject == "rollout":
        _subject(teller, row["subject_id"])
    if row["supersedes"]:
        old = teller.row(f"SELECT * FROM scores WHERE score_id = {row['supersedes']}")
        was = "which this snapshot lacks" if old["score_id"] is None else f"where {verdict(old)}"
        teller.say(f"It replaces score {row['supersedes']}, {was}.")
    newer = teller.rows(f"SELECT * FROM scores WHERE supersedes = {teller.id} ORDER BY score_id")
    for item in newer:
        teller.say(f"It was replaced{elsewhere(item, row['run_id'])}: {verdict(item)}.")
    if row["verdict"] == "error" and not newer:
        teller.say("An error counts neither as a pass nor as a fail, and can be verified again.")
    if subject == "rollout" and row["step_index"] is None:
        _consequences(teller, row)


def _subject(teller: Teller, id: int) -> None:
    made = teller.row(SUBJECT.format(id=id))
    if made["rollout_id"] is not None:
        held = "held-out " if made["split"] == "heldout" else ""
        teller.say(
            f"The rollout says {text(made['completion'])}; {made['policy']} sampled it in round {made['round']} of run "
            f"{made['run_id']} for {held}{problem(made)}."
        )


def _consequences(teller: Teller, row: Row) -> None:
    for item in teller.rows(
        "SELECT decider, keep, reason, run_id FROM decisions WHERE subject_kind = 'rollout' "
        f"AND subject_id = {row['subject_id']} AND run_id = {literal(row['run_id'])} ORDER BY decider"
    ):
        reason = f": {item['reason']}" if item["reason"] else ""
        teller.say(f"The filter {item['decider']} then {'kept' if item['keep'] else 'dropped'} the rollout{reason}.")
    made = teller.rows(
        f"SELECT example_id, kind FROM examples WHERE run_id = {literal(row['run_id'])} AND "
        f"(rollout_id = {row['subject_id']} OR rejected_rollout_id = {row['subject_id']}) ORDER BY example_id"
    )
    if made:
        told = [f"{item['kind']} example {item['example_id']}" for item in made]
        teller.say(f"The rollout is in {among(told)}.")
        trained(teller, [item["example_id"] for item in made])


def decision(teller: Teller) -> None:
    """Tell of a decision: a filter's on a rollout, or a gate's on a policy."""
    row = teller.row(
        "SELECT d.*, x.plugin, x.plugin_version, x.config_json "
        f"FROM (SELECT * FROM decisions WHERE decision_id = {teller.id}) d "
        "LEFT JOIN stage_runs x ON x.stage_run_id = d.stage_run_id"
    )
    what = row["action"] or ("keep" if row["keep"] else "drop")
    weight = "" if row["weight"] is None else f", weight {number(row['weight'])}"
    reason = f": {row['reason']}" if row["reason"] else ""
    teller.say(
        f"Decision {teller.id}: {row['decider']} said {what!r} of {row['subject_kind']} {row['subject_id']}"
        f"{weight}{reason}."
    )
    by = f" by the plugin {row['plugin']} {row['plugin_version']} with {row['config_json']}" if row["plugin"] else ""
    teller.say(f"It was taken in round {row['round']} of run {row['run_id']}{by}.")
    if row["subject_kind"] == "rollout":
        _subject(teller, row["subject_id"])
        for item in teller.rows(
            standing("SELECT s.* FROM scores s")
            + f" WHERE s.subject_kind = 'rollout' AND s.subject_id = {row['subject_id']} ORDER BY s.score_id"
        ):
            teller.say(f"{verdict(item)}{elsewhere(item, row['run_id'])}.")
    if row["subject_kind"] == "policy":
        policy = teller.row(f"SELECT name, status FROM policies WHERE policy_id = {row['subject_id']}")
        teller.say(f"The policy is {policy['name']}, now {policy['status']}.")


def metric(teller: Teller) -> None:
    """Tell of a metric: what was measured, of whom, on how much."""
    row = teller.row(
        "SELECT m.*, p.name AS policy, p.status, x.plugin, x.plugin_version "
        f"FROM (SELECT * FROM metrics WHERE metric_id = {teller.id}) m LEFT JOIN policies p USING (policy_id) "
        "LEFT JOIN stage_runs x ON x.stage_run_id = m.stage_run_id"
    )
    interval = "" if row["ci_low"] is None else f", 95 % interval [{row['ci_low']:.4f}, {row['ci_high']:.4f}]"
    n = "" if row["n"] is None else f" (n = {row['n']:,})"
    of = f"{row['policy']}, now {row['status']}" if row["policy"] else "no policy in this snapshot"
    teller.say(f"Metric {teller.id}: {row['name']} = {number(row['value'])}{interval} on {row['slice']}{n}, of {of}.")
    by = f" by {row['plugin']} {row['plugin_version']}" if row["plugin"] else ""
    context = f", shown context {row['context_id']}" if row["context_id"] else ""
    teller.say(f"It was measured in round {row['round']} of run {row['run_id']}{by}{context}.")


def scorer(teller: Teller) -> None:
    """Tell of a scorer with its version: what it said, run by run."""
    name, _, version = str(teller.id).rpartition(" ")
    for item in teller.rows(
        standing("SELECT s.run_id, s.verdict, count(*) AS n, avg(s.value) AS mean FROM scores s")
        + f" WHERE s.scorer = {literal(name)} AND s.scorer_version = {literal(version)} GROUP BY ALL ORDER BY ALL"
    ):
        mean = "" if item["mean"] is None else f", mean value {number(item['mean'])}"
        teller.say(
            f"{teller.id} said {item['verdict'] or 'a value alone'} of {counted(item['n'], 'subject')} in run "
            f"{item['run_id']}{mean}."
        )
