"""The stories of the ledger: stage runs, runs, and the recipes, seeds and code versions they follow."""

from __future__ import annotations

import json

from strop.storage.explain.words import Teller, among, counted
from strop.storage.kinds import number
from strop.storage.nodes import listed
from strop.storage.views import literal

RUNS = """
SELECT run_id, recipe, seed, champion, base_pass_at_1, pass_at_1, rounds FROM v_runs
WHERE run_id IN (SELECT run_id FROM runs WHERE {where}) ORDER BY created_at, run_id"""


def stage_run(teller: Teller) -> None:
    """Tell of a stage run: what ran, with what, what it read and wrote."""
    row = teller.row(f"SELECT * FROM stage_runs WHERE stage_run_id = {teller.id}")
    shard = "" if row["shards"] == 1 else f", shard {row['shard'] + 1} of {row['shards']}"
    plugin = f"{row['kind']} plugin {row['plugin']} {row['plugin_version']}"
    teller.say(
        f"Stage run {teller.id} is {row['stage']} in round {row['round']} of run {row['run_id']}{shard}: "
        f"the {plugin} with seed {row['seed']} and {row['config_json']}."
    )
    if row["reuses"]:
        source = teller.row(f"SELECT run_id, round, stage FROM stage_runs WHERE stage_run_id = {row['reuses']}")
        where = f" ({source['stage']}, round {source['round']} of run {source['run_id']})" if source["run_id"] else ""
        teller.say(f"It did no work: the rows of stage run {row['reuses']}{where} stand for its own.")
    wrote = [counted(n, table, table) for table, n in json.loads(row["rows_json"]).items() if n]
    took = "" if row["seconds"] is None else f" in {number(row['seconds'])} s"
    tokens = f", {counted(row['tokens'], 'token')}" if row["tokens"] else ""
    when = "" if row["started_at"] is None else f", begun {row['started_at']:%Y-%m-%d %H:%M:%S} UTC"
    teller.say(f"It wrote {among(wrote)}{took}{tokens}{when}" + (f", on {row['host']}." if row["host"] else "."))
    read = teller.rows(
        "SELECT stage, run_id, round, count(*) AS n FROM stage_runs "
        f"WHERE key IN ({listed(row['upstream'] or ()) or 'NULL'}) GROUP BY ALL ORDER BY run_id, round, stage"
    )
    if read:
        teller.say(f"It read {among(_shards(r) for r in read)}.")
    users = teller.rows(
        "SELECT stage, run_id, round, count(*) AS n FROM stage_runs "
        f"WHERE list_contains(upstream, {literal(row['key'])}) GROUP BY ALL ORDER BY run_id, round, stage"
    )
    if users:
        teller.say(f"It was read by {among(_shards(r) for r in users)}.")
    again = teller.rows(f"SELECT run_id, round FROM stage_runs WHERE reuses = {teller.id} ORDER BY run_id, round")
    if again:
        told = [f"round {item['round']} of run {item['run_id']}" for item in again]
        teller.say(f"Re-used by {among(told)}.")


def _shards(row: dict[str, object]) -> str:
    shards = f" ({row['n']} shards)" if row["n"] != 1 else ""
    return f"{row['stage']} of round {row['round']}{shards}"


def _reused(parent: str, sources_json: str | None) -> str:
    if sources_json is None:
        return f"It re-uses run {parent}."
    sources = json.loads(sources_json)
    rounds = [" + ".join(f"{source['run']}@{source['round']}" for source in pooled) for pooled in sources["rounds"]]
    return f"It re-uses {', '.join(rounds)}; its own work begins with {sources['from']}."


def run(teller: Teller) -> None:
    """Tell of a run: recipe, seed and code, then round by round what came out."""
    where = f"run_id = {literal(teller.id)}"
    row = teller.row(f"SELECT * FROM runs WHERE {where}")
    code = f" at commit {row['code_version']}" if row["code_version"] else ""
    when = "" if row["created_at"] is None else f", started {row['created_at']:%Y-%m-%d %H:%M} UTC"
    teller.say(
        f"Run {teller.id} follows the recipe {row['recipe']} ({row['recipe_hash']}) with seed {row['seed']}, on Strop "
        f"{row['strop_version']}{code}{when}."
    )
    if row["parent_run_id"]:
        teller.say(_reused(row["parent_run_id"], row["sources_json"]))
    reused = teller.row(f"SELECT count(*) AS n, count(reuses) AS reused FROM stage_runs WHERE {where}")
    again = f", {reused['reused']:,} of them re-used" if reused["reused"] else ""
    teller.say(f"{counted(reused['n'], 'stage run')} are committed{again}.")
    for item in teller.rows(
        "SELECT v.*, p.action, p.reason FROM v_rounds v LEFT JOIN v_policies p "
        f"ON p.run_id = v.run_id AND p.policy = v.policy WHERE v.{where} ORDER BY v.round"
    ):
        kept = "" if item["kept"] is None else f", {item['kept']:,} kept"
        sampled = f"{counted(item['rollouts'], 'training rollout')}{kept}; " if item["rollouts"] else ""
        mark = "" if item["pass_at_1"] is None else f", pass@1 {item['pass_at_1']:.3f}"
        made = f"{item['policy']} ({item['status']}){mark}" if item["policy"] else "no policy"
        gate = f"; {item['action']}: {item['reason']}" if item["action"] else ""
        teller.say(f"Round {item['round']}: {sampled}{made}{gate}.")
    children = teller.rows(f"SELECT run_id FROM runs WHERE parent_run_id = {literal(teller.id)} ORDER BY run_id")
    if children:
        teller.say(f"Re-used by {among(child['run_id'] for child in children)}.")


def recipe(teller: Teller) -> None:
    """Tell of a recipe: its runs."""
    name = teller.row(f"SELECT recipe FROM runs WHERE recipe_hash = {literal(teller.id)}")["recipe"]
    _runs(teller, f"Recipe {name} ({teller.id})", f"recipe_hash = {literal(teller.id)}")


def seed(teller: Teller) -> None:
    """Tell of a seed: its runs."""
    _runs(teller, f"Seed {teller.id}", f"seed = {teller.id}")


def code(teller: Teller) -> None:
    """Tell of a code version: its runs."""
    _runs(teller, f"Commit {teller.id} of Strop's source", f"code_version = {literal(teller.id)}")


def _runs(teller: Teller, what: str, where: str) -> None:
    rows = teller.rows(RUNS.format(where=where))
    teller.say(f"{what} was used by {counted(len(rows), 'run')}.")
    for row in rows:
        gain = ""
        if row["pass_at_1"] is not None and row["base_pass_at_1"] is not None:
            gain = f", pass@1 {row['base_pass_at_1']:.3f} -> {row['pass_at_1']:.3f}"
        teller.say(
            f"Run {row['run_id']}: recipe {row['recipe']}, seed {row['seed']}, {counted(row['rounds'], 'round')}, "
            f"champion {row['champion']}{gain}."
        )
