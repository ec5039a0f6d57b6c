"""Rollouts of one run under another verifier, filter and builder; every loop here takes about a second."""

import json
import re

import pytest
import tiny_run
from lake_content import content
from rerun_tools import Died, copied, finished, prepared, query, rerun, rows

from strop.core.recipe import load, shipped
from strop.core.rerun import preview
from strop.core.reverify import reverify
from strop.core.stored import stored_recipe
from strop.storage.errors import LakeError, RecipeError, StageError
from strop.storage.lake import open_lake
from strop.storage.tables import Metric, Policy, Rollout, Run, Score, StageRun

PLUGINS = """
from strop.storage.tables import Decision, Problem, Score


@stage("synthesize")
def next_ones(config: Nothing, *, problems, round):
    return [Problem(prompt=f"{100 * round}=", reference="1", parents=[problems[0].problem_id])]


@stage("filter")
def told(config: Nothing, *, rollouts, scores, round):
    assert {r.round for r in rollouts} == {r.round for r in scores} == {round}
    assert len({r.run_id for r in rollouts}) == 1
    said = {s.subject_id: s.verdict for s in scores}
    return [
        Decision(subject_id=r.rollout_id, keep=said[r.rollout_id] == "pass", reason=f"{r.run_id} {round}")
        for r in rollouts
    ]


class Strict(Config):
    right: str = "1"


@stage("verify", version="2")
def strict(config: Strict, *, rollouts):
    return [
        Score(subject_id=r.rollout_id, verdict="pass" if r.completion == config.right else "fail", value=1.0)
        for r in rollouts
    ]
"""
ROUND = [
    {"select": {"use": "uniform", "problems": 99}},
    *tiny_run.stages(select=None, build=None, train=None, evaluate=None, gate=None),
    {"synthesize": "./mine.py:next_ones"},
    *tiny_run.stages(select=None, generate=None, verify=None, filter=None),
]


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    return finished(tmp_path_factory, ROUND, PLUGINS, shard_rollouts=32)


@pytest.fixture
def ran(tiny, once, tmp_path, monkeypatch):
    """A folder with a finished run `tiny` of two rounds, in which a problem is synthesized in each."""
    return copied(once, tmp_path, monkeypatch)


def recipe_file(folder, **changes):
    """Another recipe beside the run's own; `changes` replace stages by kind, None leaves them out."""
    import yaml

    data = yaml.safe_load((folder / "tiny.yaml").read_text())
    mine = next(folder.glob("mine_*.py")).name
    stages = [{kind: changes.get(kind, value) for kind, value in item.items()} for item in data["round"]]
    data["round"] = [item for item in stages if None not in item.values()]
    path = folder / "other.yaml"
    path.write_text(yaml.safe_dump(data).replace("./mine.py:", f"./{mine}:"))
    return str(path)


def of_run(folder, table, run_id):
    """What a run wrote itself, clocks aside."""
    return sorted(map(repr, query(folder, f"SELECT * FROM {table} WHERE run_id = ?", run_id)))


def test_the_same_recipe_on_the_same_rollouts_gives_the_same_decisions_and_examples(ran):
    made = rerun(ran, "tiny", start="filter")
    for sql in (
        "SELECT round, subject_id, keep FROM decisions WHERE run_id = ? AND subject_kind = 'rollout' ORDER BY 1, 2",
        "SELECT round, rollout_id, prompt, completion FROM examples WHERE run_id = ? ORDER BY 1, 2",
    ):
        assert query(ran, sql, made) == query(ran, sql, "tiny") != []


def test_nothing_is_copied_and_the_source_is_left_as_it_was(ran):
    tables = ("rollouts", "scores", "decisions", "examples", "policies", "problems", "metrics", "stage_runs")
    before = {table: of_run(ran, table, "tiny") for table in tables}
    made = rerun(ran, "tiny", start="verify", until="gate")
    assert {table: of_run(ran, table, "tiny") for table in tables} == before
    own = query(ran, "SELECT DISTINCT split FROM rollouts WHERE run_id = ?", made)
    assert own == [("heldout",)]  # of the policies it trained; its training rollouts are the source's
    ledger = query(ran, "SELECT round, stage, shard, reuses, rows_json, tokens FROM stage_runs WHERE run_id = ?", made)
    source = {
        row[:3]: row[3]
        for row in query(ran, "SELECT round, stage, shard, stage_run_id FROM stage_runs WHERE run_id = 'tiny'")
    }
    reused = [row for row in ledger if row[1] in {"select", "generate", "base", "task.ones"}]
    assert len(reused) == 2 * (1 + 2) + 2
    assert all(row[3] == source[row[:3]] and row[4:] == ("{}", None) for row in reused)
    assert {row[1] for row in ledger if row[3] is not None} == {row[1] for row in reused} | {"problems", "heldout"}


def test_a_new_version_of_a_scorer_stands_beside_the_old_and_flips_can_be_counted(ran):
    # the scripted engine says 1 or 2, so that every verdict flips
    other = recipe_file(ran, verify={"use": "./mine.py:strict", "as": "answer", "right": "2"}, train=None, gate=None)
    made = rerun(ran, "tiny", start="verify", recipe=other)
    flips = """
        SELECT o.verdict, n.verdict, count(*) FROM scores o JOIN scores n USING (subject_kind, subject_id, scorer)
        WHERE o.run_id = 'tiny' AND n.run_id = ? AND (o.scorer_version, n.scorer_version) = ('1', '2') GROUP BY ALL
    """
    before = dict(
        query(
            ran,
            "SELECT verdict, count(*) FROM scores WHERE run_id = 'tiny' AND subject_id IN \
        (SELECT rollout_id FROM rollouts WHERE split = 'train') GROUP BY 1",
        )
    )
    assert set(before) == {"pass", "fail"}
    assert sorted(query(ran, flips, made)) == [("fail", "pass", before["fail"]), ("pass", "fail", before["pass"])]
    assert query(ran, "SELECT DISTINCT completion FROM examples WHERE run_id = ?", made) == [("2",)]


def test_a_plugin_sees_re_used_rows_as_rows_of_the_new_run_and_round(ran):
    made = rerun(ran, "tiny@2", start="filter", recipe=recipe_file(ran, filter="./mine.py:told"))
    assert query(ran, "SELECT DISTINCT round, reason FROM decisions WHERE run_id = ?", made) == [(1, f"{made} 1")]


def test_rounds_are_numbered_in_the_order_given_and_bring_the_problems_they_answer(ran):
    made = rerun(ran, "tiny@2", "tiny@1", start="filter")
    prompts = {100: 1, 0: 2}  # problem 100= was synthesized in round 1 and is answered in round 2 only
    for prompt, round in prompts.items():
        found = query(
            ran, "SELECT DISTINCT round FROM examples WHERE run_id = ? AND prompt = ? ORDER BY 1", made, f"{prompt}="
        )
        assert (round,) in found
    assert query(ran, "SELECT round FROM examples WHERE run_id = ? AND prompt = '100='", made) == [(1,)]
    run = rows(ran, Run, f"run_id = '{made}'")[0]
    assert run.parent_run_id == "tiny"
    rounds = [[{"run": "tiny", "round": 2}], [{"run": "tiny", "round": 1}]]
    assert json.loads(run.sources_json) == {"from": "filter", "rounds": rounds}


@pytest.mark.parametrize(
    ("start", "again"), [("filter", {"evaluate", "heldout", "heldout.verify"}), ("verify", {"heldout"})]
)
def test_the_base_is_judged_afresh_only_where_verdicts_are_asked_for_afresh(ran, start, again):
    made = rerun(ran, "tiny", start=start, until="gate")
    found = query(ran, "SELECT stage FROM stage_runs WHERE run_id = ? AND round = 0 AND reuses IS NOT NULL", made)
    assert {stage for (stage,) in found} - {"base", "task.ones"} == again | {"problems"}
    assert sorted(m.round for m in rows(ran, Metric, f"run_id = '{made}'")) == (
        [1, 2] if start == "filter" else [0, 1, 2]
    )


def test_the_gate_of_a_rerun_decides_on_its_own_policies_and_not_on_the_sources(ran):
    made = rerun(ran, "tiny", start="filter", until="gate")
    status = {p.name: p.status for p in rows(ran, Policy)}
    assert status["tiny/r0"], status["tiny/r1"] == ("retired", "champion")
    assert [status[f"{made}/r{n}"] for n in (1, 2)] == ["champion", "rejected"]
    parents = dict(
        query(ran, "SELECT p.name, o.name FROM policies p JOIN policies o ON o.policy_id = p.parent_policy_id")
    )
    assert parents[f"{made}/r1"] == "tiny/r0"


def test_another_gate_on_the_same_metrics_says_it_of_policies_that_are_the_sources(ran):
    mine = next(ran.glob("mine_*.py")).name
    gate = {"use": f"./{mine}:say", "actions": ["keep", "promote"]}
    made = rerun(ran, "tiny", start="gate", recipe=recipe_file(ran, gate=gate))
    assert made in query(ran, "SELECT DISTINCT run_id FROM decisions WHERE subject_kind = 'policy'").__repr__()
    assert {p.name: p.status for p in rows(ran, Policy)}["tiny/r2"] == "rejected"  # what its own run said
    from strop.flows.runs import states

    told = {state.run_id: state.champion for state in states(ran / "lake")}
    assert told == {"tiny": "tiny/r1", made: "tiny/r2"}


def test_a_rerun_that_dies_after_every_commit_ends_as_one_that_never_did(ran, tmp_path_factory, monkeypatch):
    whole = copied(ran, tmp_path_factory.mktemp("whole"), monkeypatch)
    words = {"start": "verify", "until": "gate"}
    made = rerun(whole, "tiny@2", **words)
    monkeypatch.chdir(ran)

    def die(event):
        if event.kind in {"stage_done", "stage_reused"}:
            raise Died

    deaths = 0
    while True:
        try:
            assert rerun(ran, "tiny@2", **words, on_event=die) == made
            break
        except Died:
            deaths += 1
    assert deaths == 3 + 3 + 11  # task, problems, base; the base's examination; the round
    assert content(ran / "lake") == content(whole / "lake")


def test_the_same_words_find_the_same_run_and_another_end_takes_it_further(ran):
    made = rerun(ran, "tiny", start="filter")
    before = content(ran / "lake")
    assert rerun(ran, "tiny", start="filter") == made
    assert content(ran / "lake") == before
    assert rerun(ran, "tiny", start="filter", until="train") == made
    assert len(rows(ran, Policy, f"run_id = '{made}'")) == 2
    assert prepared(ran, "tiny", start="build").run_id != made
    assert prepared(ran, "tiny@1", start="filter").run_id != made


def test_a_rerun_can_be_re_used_and_gone_on_with(ran, tiny):
    first = rerun(ran, "tiny", start="filter")
    second = rerun(ran, first, start="build", until="train")
    reused = query(ran, "SELECT DISTINCT reuses FROM stage_runs WHERE run_id = ? AND stage = 'generate'", second)
    made = query(ran, "SELECT stage_run_id FROM stage_runs WHERE run_id = 'tiny' AND stage = 'generate'")
    assert sorted(reused) == sorted(made)  # not what stands between
    recipe = load(str(ran / "tiny.yaml"))
    summary = tiny.run(recipe, ran, run_id=second, rounds=3)
    assert summary.rounds == 3
    own = query(ran, "SELECT DISTINCT round, split FROM rollouts WHERE run_id = ? ORDER BY ALL", second)
    assert own == [(0, "heldout"), (1, "heldout"), (2, "heldout"), (3, "heldout"), (3, "train")]


def test_a_killed_rerun_that_is_gone_on_with_as_a_run_still_samples_nothing_of_its_sources(ran, tiny):
    with pytest.raises(Died):
        rerun(ran, "tiny", start="filter", on_event=lambda e: die_at(e, "stage_reused", "base"))
    made = rows(ran, Run, "parent_run_id IS NOT NULL")[0].run_id
    tiny.run(load(str(ran / "tiny.yaml")), ran, run_id=made)
    assert query(ran, "SELECT DISTINCT split FROM rollouts WHERE run_id = ?", made) == [("heldout",)]


def die_at(event, kind, stage):
    if (event.kind, event.stage) == (kind, stage):
        raise Died


@pytest.fixture
def two(ran, tiny):
    """A second run beside it, of another seed."""
    tiny.run(load(str(ran / "tiny.yaml"), seed=1), ran, run_id="other", rounds=1)
    return ran


def test_rollouts_of_several_runs_are_pooled_in_one_round_and_trained_on_once(two):
    made = rerun(two, "tiny", "other", start="filter", until="gate", pool=True)
    counted = "SELECT p.run_id, count(*) FROM policy_examples x JOIN examples e USING (example_id) \
        JOIN rollouts r USING (rollout_id) JOIN problems p ON p.problem_id = r.problem_id WHERE x.run_id = ? GROUP BY 1"
    assert {name for name, _ in query(two, counted, made)} == {"tiny", "other"}
    assert len(rows(two, Policy, f"run_id = '{made}'")) == 1
    shards = query(two, "SELECT shard, shards FROM stage_runs WHERE run_id = ? AND stage = 'generate' ORDER BY 1", made)
    assert shards == [(i, len(shards)) for i in range(len(shards))]
    examined = rows(two, Rollout, f"run_id = '{made}' AND split = 'heldout'")
    problems = query(two, "SELECT problem_id FROM problems WHERE run_id = 'tiny' AND split = 'heldout'")
    assert {r.problem_id for r in examined} == {i for (i,) in problems}  # each once: those of the first source
    assert len(examined) == 4 * len(problems)


def test_a_verifier_that_asks_for_the_engine_gets_the_policy_that_wrote_the_rollouts(two, tiny, monkeypatch):
    from strop.core import execute

    plugin = """
@stage("verify")
def by_engine(config: Nothing, *, rollouts, engine):
    return [Score(subject_id=r.rollout_id, verdict="pass", value=1.0) for r in rollouts]
"""
    mine = next(two.glob("mine_*.py"))
    other = two / "mine_engine.py"
    other.write_text(mine.read_text() + plugin)
    seen = []
    plain = execute.engine_for

    def engine_for(ref, wanted_by):
        seen.append(ref.directory.name)
        return plain(ref, wanted_by)

    monkeypatch.setattr(execute, "engine_for", engine_for)
    recipe = recipe_file(two, verify=f"./{other.name}:by_engine")
    rerun(two, "tiny@2", "other", start="verify", recipe=recipe, pool=True)
    wrote = query(two, "SELECT DISTINCT path FROM policies WHERE name IN ('tiny/r1', 'other/r0')")
    assert set(seen) == {path.rpartition("/")[2] for (path,) in wrote}
    assert len(set(seen)) == 2


def test_a_problem_trained_on_in_one_source_and_held_out_in_another_is_refused(ran, tiny):
    overrides = ["task.start=12"]  # the problems 12= to 15= are held out in `tiny`
    tiny.run(load(str(ran / "tiny.yaml"), overrides=overrides), ran, run_id="shifted", rounds=1)
    with pytest.raises(StageError, match=r"a training problem of 'shifted' is held out in 'tiny': '1\d='.* one by one"):
        prepared(ran, "tiny", "shifted", start="filter")
    with pytest.raises(StageError, match=r"a training problem of 'shifted' is held out in 'tiny'"):
        prepared(ran, "shifted", "tiny", start="filter", overrides=overrides)
    assert prepared(ran, "shifted", start="filter").reuse.runs == ["shifted"]


REFUSED = [
    (["tinny"], {}, LakeError, r"no run 'tinny'; did you mean 'tiny'\?"),
    (["tiny@3"], {}, LakeError, r"'tiny' has no round 3; it has rounds 1 to 2"),
    (["tiny@0"], {}, LakeError, r"rounds count from 1 .* write tiny@1-3"),
    (["tiny@2-1"], {}, LakeError, r"rounds count from 1 and go up"),
    (["tiny", "tiny@2"], {}, StageError, r"of tiny@2 would be re-used twice"),
    (["tiny"], {"start": "filtre"}, RecipeError, r"no stage 'filtre'; did you mean 'filter'\?"),
    (["tiny"], {"until": "verify"}, RecipeError, r"--to verify comes before --from filter"),
    (["tiny"], {"run_id": "tiny"}, RecipeError, r"a source of this rerun"),
    (
        ["tiny"],
        {"overrides": ["generate.n=8"]},
        RecipeError,
        r"generate is not as 'tiny' ran it: generate.n was 4, now 8\. .* use --from generate",
    ),
    (
        ["tiny"],
        {"overrides": ["task.train=3"]},
        RecipeError,
        r"other tasks than 'tiny'.*tasks.ones.train was 12, now 3\. Put it back, or sample anew",
    ),
    (
        ["tiny"],
        {"start": "evaluate", "pool": True},
        RecipeError,
        r"a round has one policy: use --from train or earlier",
    ),
]


@pytest.mark.parametrize(("sources", "more", "error", "message"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_a_rerun_that_does_not_fit_its_source_is_refused_before_anything_is_written(ran, sources, more, error, message):
    before = content(ran / "lake")
    with pytest.raises(error, match=message):
        prepared(ran, *sources, **{"start": "filter", **more})
    assert content(ran / "lake") == before


def test_a_round_that_is_not_complete_is_left_out_by_name_or_refused_by_number(ran, tiny):
    with pytest.raises(Died):
        tiny.run(load(str(ran / "tiny.yaml")), ran, rounds=3, on_event=lambda e: die_at(e, "stage_done", "verify"))
    with pytest.raises(LakeError, match=r"round 3 of 'tiny' is not complete: filter is missing"):
        prepared(ran, "tiny@3", start="build")
    made = prepared(ran, "tiny", start="build")
    assert len(made.reuse.rounds) == 2
    assert made.left_out == ("tiny@3 (no complete filter)",)
    assert len(prepared(ran, "tiny", start="filter").reuse.rounds) == 3


def test_another_stage_before_the_first_own_one_is_refused_and_behind_it_is_fine(ran):
    without = recipe_file(ran, verify=None, filter="./mine.py:every", build=None, train=None, evaluate=None, gate=None)
    (ran / "mine_every.py").write_text(
        "from strop.core.plugin import Config, stage\nfrom strop.storage.tables import Decision\n"
        "class Every(Config):\n    pass\n@stage('filter')\ndef every(config: Every, *, rollouts):\n"
        "    return [Decision(subject_id=r.rollout_id, keep=True) for r in rollouts]\n"
    )
    text = re.sub(r"\./mine_\d+\.py:every", "./mine_every.py:every", (ran / "other.yaml").read_text())
    (ran / "other.yaml").write_text(text)
    with pytest.raises(
        RecipeError, match=r"stage 3 of the recipe is 'filter', and of 'tiny' it is 'verify'.*--from filter"
    ):
        prepared(ran, "tiny", start="synthesize", recipe=without)
    made = rerun(ran, "tiny", start="filter", recipe=without)
    assert query(ran, "SELECT bool_and(keep) FROM decisions WHERE run_id = ?", made) == [(True,)]
    assert rows(ran, Score, f"run_id = '{made}'") == []


def test_what_would_be_re_used_is_told_without_a_write(ran):
    before = content(ran / "lake")
    made = prepared(ran, "tiny", start="filter")
    with open_lake(ran / "lake", read_only=True) as lake:
        told = {(one.round, one.stage): one for one in preview(lake, made)}
    rollouts = dict(query(ran, "SELECT round, count(*) FROM rollouts WHERE split = 'train' GROUP BY 1"))
    assert [told[n, "generate"].rows["rollouts"] for n in (1, 2)] == [rollouts[1], rollouts[2]]
    assert told[1, "generate"].sources == ("tiny",)
    assert [one.stage for one in told.values() if not one.shards] == ["filter", "synthesize", "build"] * 2
    assert content(ran / "lake") == before


def test_another_use_of_a_run_id_is_refused(ran, tiny):
    rerun(ran, "tiny", start="filter", run_id="mine")
    with pytest.raises(RecipeError, match=r"'mine' re-uses tiny@1, tiny@2 from filter, and not tiny@1 from filter"):
        rerun(ran, "tiny@1", start="filter", run_id="mine")
    tiny.run(load(str(ran / "tiny.yaml")), ran, run_id="plain", rounds=1)
    with pytest.raises(RecipeError, match=r"'plain' is no rerun"):
        rerun(ran, "tiny@1", start="filter", run_id="plain")


@pytest.mark.parametrize("name", sorted(shipped()))
def test_a_stored_recipe_is_the_recipe(name):
    recipe = load(name, overrides=["generate.n=3"], seed=7)
    run = Run(
        run_id="r", recipe=name, recipe_json=json.dumps(recipe.canonical()), recipe_hash="", seed=7, strop_version=""
    )
    assert stored_recipe(run).canonical() == recipe.canonical()


def test_a_stored_recipe_with_local_plugins_says_where_it_looked_for_them(ran, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(RecipeError, match=r"(?s)the recipe of run tiny.*Go to the recipe's folder, or name its file"):
        prepared(ran, "tiny", start="filter")
    assert prepared(ran, "tiny", start="filter", recipe=str(ran / "tiny.yaml"))


def test_an_import_has_no_stages_to_re_use(ran):
    row = Run(
        run_id="theirs", recipe="import:x", recipe_json='{"name":"import:x"}', recipe_hash="", seed=0, strop_version=""
    )
    run = StageRun(
        run_id="theirs",
        stage_run_id=1,
        key="theirs",
        stage="run",
        kind="run",
        shard=0,
        shards=1,
        plugin="",
        plugin_version="",
        config_json="{}",
        upstream=[],
        seed=0,
        rows_json="{}",
    )
    with open_lake(ran / "lake") as lake:
        lake.commit(run, rows={"runs": [row]})
    with pytest.raises(LakeError, match="'theirs' was imported: it has no stages to re-use"):
        prepared(ran, "theirs", start="filter")
    with pytest.raises(RecipeError, match="'theirs' has no recipe: it was imported"):
        reverify(ran / "lake", "theirs", errors=True)
