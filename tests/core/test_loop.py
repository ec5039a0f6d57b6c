"""The loop on the smoke recipe: a real model, really sampled and trained, in seconds."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lake_content import content

from strop.core.recipe import load
from strop.core.round import run_loop
from strop.storage.errors import LakeError, RecipeError, StageError
from strop.storage.lake import open_lake
from strop.storage.locks import run_lock
from strop.storage.tables import Decision, Example, Metric, PluginState, Policy, Problem, Rollout, Score, StageRun

SMALL = ["task.train=96", "task.heldout_per_category=8", "select.problems=32", "synthesize.problems=8"]
"""The smoke recipe with a tenth of its problems: where it is not how well it learns that counts."""
SHUFFLED = Path(__file__).parents[2] / "benchmarks" / "shuffled.py"


@pytest.fixture(scope="module")
def lake(smoke):
    with open_lake(smoke.lake, read_only=True) as opened:
        yield opened


def test_every_round_has_held_out_metrics_with_their_interval(lake):
    recipe = load("smoke")
    rows = lake.rows(Metric, "name = 'pass@1' AND slice = 'heldout'")
    assert [row.round for row in sorted(rows, key=lambda r: r.round)] == list(range(recipe.rounds + 1))
    heldout = lake.query("SELECT count(*) FROM problems WHERE split = 'heldout'")[0][0]
    for row in rows:
        assert row.n == heldout
        assert 0 <= row.ci_low <= row.value <= row.ci_high <= 1


def test_one_policy_is_the_champion_and_the_summary_names_it(lake, smoke):
    policies = lake.rows(Policy)
    champions = [p for p in policies if p.status == "champion"]
    assert [p.name for p in champions] == [smoke.summary.champion]
    assert champions[0].content_hash == smoke.summary.champion_hash
    assert {p.status for p in policies} <= {"champion", "retired", "rejected"}


def test_no_held_out_problem_is_ever_trained_on(lake):
    heldout = {p.problem_key for p in lake.rows(Problem, "split = 'heldout'")}
    trained = lake.query(
        "SELECT DISTINCT p.problem_key, p.split FROM policy_examples JOIN examples e USING (example_id) "
        "JOIN problems p ON p.problem_id = e.problem_id"
    )
    assert trained
    assert not heldout & {key for key, _ in trained}
    assert {split for _, split in trained} == {"train"}


def test_every_step_of_every_training_is_kept(lake):
    found = lake.query(
        "SELECT policy_id, p.steps, p.loss, count(DISTINCT step), max(step), count(DISTINCT m.name), "
        "count(*) FILTER (value IS NULL), avg(value) FILTER (m.name = 'loss' AND step > 0.9 * p.steps) "
        "FROM policies p JOIN train_metrics m USING (policy_id) GROUP BY ALL"
    )
    assert len(found) == load("smoke").rounds
    for _, steps, loss, distinct, last, names, lost, tail in found:
        assert distinct == last == steps
        assert (names, lost) == (4, 0)  # loss, lr, grad_norm, tokens
        assert tail == pytest.approx(loss, rel=0.2)


def test_the_model_is_sharper_at_the_end(lake):
    values = {row.round: row.value for row in lake.rows(Metric, "name = 'pass@1' AND slice = 'heldout'")}
    assert values[max(values)] > values[0] + 0.03


def test_all_six_kinds_of_stage_left_rows(lake):
    for row in (Rollout, Score, Decision, Example, Policy, Metric):
        assert lake.rows(row, "round = 1"), row.TABLE
    synthesized = lake.rows(Problem, "origin = 'weakness'")
    assert synthesized
    assert all(p.parents for p in synthesized)


def test_synthesized_problems_are_sampled_in_the_next_round(lake):
    rounds = lake.query(
        "SELECT DISTINCT r.round - p.round FROM rollouts r JOIN problems p ON p.problem_id = r.problem_id "
        "WHERE p.origin = 'weakness' AND r.split = 'train'"
    )
    assert rounds
    assert min(r for (r,) in rounds) == 1


def test_ids_name_their_stage_run_and_no_two_rows_share_one(lake):
    seen = set()
    for row in (Problem, Rollout, Score, Decision, Example, Policy, Metric):
        for member in lake.rows(row):
            identity = getattr(member, row.ID)
            assert identity >> 20 == member.stage_run_id
            assert identity not in seen
            seen.add(identity)
    assert {i >> 20 for i in seen} <= {run.stage_run_id for run in lake.rows(StageRun)}


def test_every_training_rollout_has_one_verdict_and_one_decision(lake):
    rollouts = {r.rollout_id for r in lake.rows(Rollout, "split = 'train'", without=["token_ids", "logps"])}
    assert len(rollouts) == len(lake.rows(Decision, "subject_kind = 'rollout'"))
    scored = [s.subject_id for s in lake.rows(Score) if s.subject_id in rollouts]
    assert sorted(scored) == sorted(rollouts)


def test_logps_and_tokens_are_kept_for_every_rollout(lake):
    for rollout in lake.rows(Rollout, "round = 1 AND split = 'train'")[:50]:
        assert len(rollout.token_ids) == len(rollout.logps) == rollout.n_tokens > 0
        assert all(logp <= 0 for logp in rollout.logps)


def test_running_again_does_nothing_and_says_so(smoke, tmp_path):
    copy = tmp_path / "lake"
    shutil.copytree(smoke.lake, copy)
    before = content(copy)
    events = []
    summary = run_loop(load("smoke"), lake=copy, run_id="smoke", on_event=events.append)
    assert summary.champion_hash == smoke.summary.champion_hash
    assert "stage_done" not in {event.kind for event in events}
    assert content(copy) == before


def test_the_same_recipe_and_seed_give_the_same_rollouts_and_champion_under_any_run_id(smoke, tmp_path):
    summary = run_loop(load("smoke"), lake=tmp_path / "lake", run_id="other")
    assert summary.champion_hash == smoke.summary.champion_hash
    mine, theirs = content(tmp_path / "lake", without_run=True), content(smoke.lake, without_run=True)
    assert mine["rollouts"] == theirs["rollouts"]
    assert mine == theirs


def test_another_seed_gives_other_rollouts(smoke, tmp_path):
    for seed in (0, 1):
        run_loop(load("smoke", overrides=SMALL, seed=seed), lake=tmp_path / str(seed), run_id="smoke", rounds=1)
    found = [content(tmp_path / str(seed), without_run=True)["rollouts"] for seed in (0, 1)]
    assert found[0] != found[1]


def test_a_finished_run_goes_on_with_more_rounds_and_keeps_what_it_has(smoke, tmp_path):
    copy = tmp_path / "lake"
    shutil.copytree(smoke.lake, copy)
    recipe = load("smoke")
    summary = run_loop(recipe, lake=copy, run_id="smoke", rounds=recipe.rounds + 1)
    assert summary.rounds == recipe.rounds + 1
    with open_lake(copy, read_only=True) as lake:
        assert len(lake.rows(Policy)) == recipe.rounds + 2


def test_a_checkpoint_that_was_changed_meanwhile_is_never_used(smoke, tmp_path):
    copy = tmp_path / "lake"
    shutil.copytree(smoke.lake, copy)
    weights = copy / "policies" / smoke.summary.champion_hash[:16] / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(LakeError, match="is not what was stored"):
        run_loop(load("smoke"), lake=copy, run_id="smoke", rounds=load("smoke").rounds + 1)


def test_another_recipe_under_the_same_run_id_is_refused_with_the_difference(smoke):
    with pytest.raises(RecipeError, match=r"round\.generate\.n was \d+, now 3.*--run-id"):
        run_loop(load("smoke", overrides=["generate.n=3"]), lake=smoke.lake, run_id="smoke")


def test_two_live_runs_of_one_id_are_refused_and_the_first_one_is_named(smoke, tmp_path):
    copy = tmp_path / "lake"
    shutil.copytree(smoke.lake, copy)
    holder = (
        "import sys, time; from pathlib import Path; from strop.storage.locks import run_lock\n"
        "with run_lock(Path(sys.argv[1]), 'smoke'):\n    print('held', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", holder, str(copy)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            with pytest.raises(LakeError, match=str(process.pid)):
                run_loop(load("smoke"), lake=copy, run_id="smoke")
        finally:
            process.kill()
    with run_lock(copy, "smoke"):
        pass


@pytest.fixture
def recipe_with(tmp_path):
    """The smoke recipe with one plugin of the test's own and a replaced line."""

    def make(old: str, new: str, plugin: str = "") -> Path:
        from strop.core.recipe import RECIPES

        text = (RECIPES / "smoke.yaml").read_text()
        assert old in text
        (tmp_path / "mine.py").write_text(plugin)
        path = tmp_path / "smoke_mine.yaml"
        path.write_text(text.replace(old, new))
        return path

    return make


def test_shuffled_verdicts_teach_nothing(recipe_with, tmp_path, smoke):
    path = recipe_with("- filter: correct", f"- filter: {SHUFFLED}:shuffled")
    path.write_text(path.read_text().replace("  - gate: bootstrap_better\n", ""))
    run_loop(load(str(path)), lake=tmp_path / "lake", run_id="shuffled")
    name = "name = 'pass@1' AND slice = 'heldout'"
    with open_lake(tmp_path / "lake", read_only=True) as lake:
        values = {row.round: row.value for row in lake.rows(Metric, name)}
        assert {p.status for p in lake.rows(Policy)} == {"retired", "champion"}
    with open_lake(smoke.lake, read_only=True) as lake:
        honest = {row.round: row.value for row in lake.rows(Metric, name)}
    assert values[max(values)] < values[0] + 0.03
    assert values[max(values)] < honest[max(honest)] - 0.05


CONTROL = '''
"""Cools the sampler by a tenth each round."""
from strop.core.plugin import Config, Returned, stage

class Cooling(Config):
    """Nothing to set."""

@stage("control")
def cooling(config: Cooling, *, state, round):
    steps = (state or {}).get("steps", 0) + 1
    return Returned({"generate.temperature": round_to(1 - 0.1 * steps)}, {"steps": steps})

def round_to(value):
    return float(f"{value:.3f}")
'''


def test_a_controller_overrides_the_next_round_and_keeps_its_state(recipe_with, tmp_path):
    path = recipe_with(
        "  - gate: bootstrap_better", "  - control: ./mine.py:cooling\n  - gate: bootstrap_better", CONTROL
    )
    run_loop(load(str(path), overrides=SMALL), lake=tmp_path / "lake", run_id="cooling", rounds=3)
    with open_lake(tmp_path / "lake", read_only=True) as lake:
        sampled = lake.query("SELECT DISTINCT round, temperature FROM rollouts WHERE split = 'train' ORDER BY round")
        states = [json.loads(row.state_json)["state"] for row in sorted(lake.rows(PluginState), key=lambda r: r.round)]
    assert sampled == [(1, 1.0), (2, 0.9), (3, 0.8)]
    assert states == [{"steps": 1}, {"steps": 2}, {"steps": 3}]


BROKEN = '''
"""A verifier with a bug."""
from strop.core.plugin import Config, stage

class Broken(Config):
    """Nothing to set."""

@stage("verify")
def broken(config: Broken, *, rollouts):
    return [1 / 0 for _ in rollouts]
'''


def test_a_bad_plugin_stops_the_run_and_the_rollouts_before_it_stay(recipe_with, tmp_path):
    path = recipe_with("- verify: answer", "- verify: ./mine.py:broken", BROKEN)
    with pytest.raises(
        StageError, match=r"heldout\.verify: shard . of 2: verify plugin 'broken' failed: ZeroDivisionError"
    ):
        run_loop(load(str(path)), lake=tmp_path / "lake", run_id="broken")
    with open_lake(tmp_path / "lake", read_only=True) as lake:
        assert lake.rows(Rollout, "split = 'heldout'", without=["token_ids", "logps"])
