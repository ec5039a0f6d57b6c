"""Verdicts made again: errors alone, or everything by a new version; every loop here takes about a second."""

import json

import pytest
import tiny_run
from lake_content import content
from rerun_tools import Died, copied, finished, query, rerun, rows

from strop.core.recipe import load
from strop.core.reverify import reverify
from strop.core.session import Session
from strop.storage.errors import LakeError, RecipeError
from strop.storage.locks import run_lock
from strop.storage.tables import Decision, Example, Metric, Score

PLUGINS = '''
import json
from strop.storage.tables import Plan, Score


class Flaky(Config):
    """A judge that can be down."""

    patience: int = 1


@stage("verify", version="1")
def flaky(config: Flaky, *, rollouts):
    down = json.loads(Path("down.json").read_text()) if config.patience < 2 else []
    return [
        Score(subject_id=r.rollout_id, verdict="error", reason="down")
        if r.sample_index in down
        else Score(subject_id=r.rollout_id, verdict="pass" if r.completion == "1" else "fail", value=1.0)
        for r in rollouts
    ]


@stage("select")
def by_rate(config: Nothing, *, problems, pass_rates, round):
    seen = sorted({rate.n for rate in pass_rates.values()})
    return [Plan(problem_id=p.problem_id, reason=str(seen)) for p in problems[:8]]
'''
ROUND = tiny_run.stages(select="./mine.py:by_rate", verify={"use": "./mine.py:flaky", "as": "judge"})
RUN = {"plugins": PLUGINS, "stages": ROUND, "shard_rollouts": 2}


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("judge"))
        down(0, 1, 2)
        return finished(tmp_path_factory, **RUN, rounds=1)


@pytest.fixture
def ran(tiny, once, tmp_path, monkeypatch):
    """A run of one round of whose four samples a problem three could not be judged; we stand in its folder."""
    copied(once, tmp_path, monkeypatch)
    down(0, 1, 2)
    return tmp_path


def down(*samples):
    """The judge fails on these samples from now on."""
    from pathlib import Path

    Path("down.json").write_text(json.dumps(samples))


def again(folder, **more):
    return reverify(folder / "lake", "tiny", **{"errors": True, **more})


def summary(found):
    return {(one.round, one.stage): (one.rollouts, one.verdicts) for one in found}


def test_errors_alone_are_judged_again_and_the_old_rows_stay(ran):
    before = {s.score_id: s for s in rows(ran, Score)}
    errors = {i for i, s in before.items() if s.verdict == "error"}
    down()
    found = again(ran)
    assert {key: n for key, (n, _) in summary(found).items()} == {
        (0, "heldout.verify"): 12,
        (1, "heldout.verify"): 12,
        (1, "verify"): 24,
    }
    after = {s.score_id: s for s in rows(ran, Score)}
    assert {i: after[i] for i in before} == before
    new = [s for i, s in after.items() if i not in before]
    assert {s.supersedes for s in new} == errors
    for score in new:
        old = before[score.supersedes]
        assert (old.subject_id, old.scorer, old.round) == (score.subject_id, score.scorer, score.round)
        assert score.verdict in {"pass", "fail"}
    stages = query(ran, "SELECT DISTINCT stage FROM stage_runs WHERE stage LIKE '%~%'")
    assert sorted(stages) == [("heldout.verify~2",), ("verify~2",)]
    assert [n for n, _ in summary(again(ran)).values()] == [0, 0, 0]


def test_what_rests_on_the_old_verdicts_is_named_and_a_rerun_uses_the_new_ones(ran):
    committed = {t: rows(ran, t) for t in (Decision, Example, Metric)}
    down()
    kept = {(one.round, one.stage): one.kept for one in again(ran)}
    assert kept[1, "verify"] == ("filter", "build", "train")
    assert kept[1, "heldout.verify"] == ("evaluate", "gate")
    assert kept[0, "heldout.verify"] == ("evaluate",)
    assert {t: rows(ran, t) for t in committed} == committed
    made = rerun(ran, "tiny", start="filter")
    reasons = (
        "SELECT count(*) FILTER (reason LIKE 'could not%'), count(*) FROM decisions WHERE run_id = ? AND round = 1 \
        AND subject_kind = 'rollout'"
    )
    assert query(ran, reasons, "tiny") == [(24, 32)]
    assert query(ran, reasons, made) == [(0, 32)]
    assert reverify(ran / "lake", made, errors=True)[-1].rollouts == 0


def test_what_is_still_an_error_is_superseded_by_the_newest_error_as_often_as_needed(ran):
    for attempt in (2, 3):
        assert summary(again(ran))[1, "verify"] == (24, {"error": 24}), attempt
    down()
    assert sum(summary(again(ran))[1, "verify"][1].values()) == 24
    chain = """
        SELECT DISTINCT a.verdict, b.verdict, c.verdict, d.verdict IN ('pass', 'fail') FROM scores d
        JOIN scores c ON c.score_id = d.supersedes JOIN scores b ON b.score_id = c.supersedes
        JOIN scores a ON a.score_id = b.supersedes WHERE d.round = 1
    """
    assert query(ran, chain) == [("error", "error", "error", True)]


def test_a_run_in_progress_goes_on_with_the_new_verdicts(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    down(0)
    recipe = tiny.write(tmp_path, ROUND, PLUGINS)

    def die(event):
        if (event.kind, event.stage, event.round) == ("stage_done", "verify", 1):
            raise Died

    with pytest.raises(Died):
        tiny.run(recipe, tmp_path, on_event=die)
    down()
    (base, first) = again(tmp_path)
    assert (first.round, first.rollouts, first.kept) == (1, 8, ())
    assert base.kept == ("evaluate",)
    tiny.run(recipe, tmp_path, rounds=2)
    reasons = query(tmp_path, "SELECT count(*) FROM decisions WHERE reason LIKE 'could not%'")
    assert reasons == [(0,)]
    seen = query(tmp_path, "SELECT DISTINCT round, reason FROM plans ORDER BY 1")
    assert seen == [(1, "[]"), (2, "[4]")]  # pass rates over all four samples, none counted twice
    upstream = query(tmp_path, "SELECT upstream FROM stage_runs WHERE stage = 'filter' AND round = 1")[0][0]
    keys = query(tmp_path, "SELECT key FROM stage_runs WHERE stage = 'verify~2' AND round = 1")
    assert {key for (key,) in keys} <= set(upstream)


def test_killed_between_two_shards_it_ends_as_one_that_never_was(ran, tmp_path_factory, monkeypatch):
    whole = copied(ran, tmp_path_factory.mktemp("whole"), monkeypatch)
    down()
    again(whole)
    monkeypatch.chdir(ran)
    down()
    plain, made = Session.commit, []

    def commit(self, run, **more):
        plain(self, run, **more)
        made.append(run.stage)
        if made[-1] == "verify~2":
            raise Died

    monkeypatch.setattr(Session, "commit", commit)
    with pytest.raises(Died):
        again(ran)
    monkeypatch.setattr(Session, "commit", plain)
    shards = query(ran, "SELECT count(*), max(shards) FROM stage_runs WHERE stage = 'verify~2'")[0]
    assert 0 < shards[0] < shards[1]
    again(ran)
    assert content(ran / "lake") == content(whole / "lake")


def test_a_new_version_of_a_scorer_judges_all_and_takes_the_place_of_the_old(ran):
    whole = {"errors": False, "scorer": "judge"}
    assert [one.rollouts for one in again(ran, **whole)] == [0, 0, 0]  # the same version would say the same
    mine = next(ran.glob("mine_*.py"))
    mine.write_text(mine.read_text().replace('version="1"', 'version="2"').replace('"1" else', '"2" else'))
    (ran / "new").mkdir()
    mine.rename(ran / "new" / mine.name)  # a module is loaded once a process
    (ran / "tiny.yaml").rename(ran / "new" / "tiny.yaml")
    recipe = str(ran / "new" / "tiny.yaml")
    found = again(ran, **whole, recipe=recipe)
    assert [(one.rollouts, one.version) for one in found] == [(16, "2"), (32, "2"), (16, "2")]
    both = "SELECT scorer_version, count(*), count(supersedes) FROM scores GROUP BY 1 ORDER BY 1"
    assert query(ran, both) == [("1", 64, 0), ("2", 64, 64)]
    assert [one.rollouts for one in again(ran, **whole, recipe=recipe)] == [0, 0, 0]
    made = rerun(ran, "tiny", start="filter", recipe=recipe)
    assert query(ran, "SELECT DISTINCT completion FROM examples WHERE run_id = ?", made) == [("2",)]


def test_a_setting_of_the_verifier_may_be_changed_for_it(ran):
    found = summary(again(ran, overrides=["verify.patience=2"]))
    assert found[1, "verify"][0] == 24
    assert "error" not in found[1, "verify"][1]
    configs = query(ran, "SELECT config_json FROM stage_runs WHERE stage = 'verify~2'")
    assert {json.loads(text)["patience"] for (text,) in configs} == {2}
    with pytest.raises(RecipeError, match=r"'filter.scorer=judge': only verify stages run here.*`strop rerun`"):
        again(ran, overrides=["filter.scorer=judge"])


def test_one_round_and_one_scorer_can_be_named(ran):
    down()
    assert set(summary(again(ran, rounds=[1], scorer="judge"))) == {(1, "verify"), (1, "heldout.verify")}
    with pytest.raises(RecipeError, match=r"no verify stage 'jugde'; did you mean 'judge'\?"):
        again(ran, scorer="jugde")
    with pytest.raises(LakeError, match=r"'tiny' has no round 7; it has 0, 1"):
        again(ran, rounds=[7])
    with pytest.raises(LakeError, match=r"no run 'tinny'; did you mean 'tiny'\?"):
        reverify(ran / "lake", "tinny", errors=True)


def test_a_run_that_is_being_driven_is_refused(ran):
    with run_lock(ran / "lake", "tiny"), pytest.raises(LakeError, match="already being driven"):
        again(ran)


def test_another_recipe_than_the_runs_is_refused(ran):
    text = (ran / "tiny.yaml").read_text().replace("max_tokens: 4", "max_tokens: 5")
    (ran / "other.yaml").write_text(text)
    assert load(str(ran / "other.yaml"))
    with pytest.raises(RecipeError, match="started with another recipe"):
        again(ran, recipe=str(ran / "other.yaml"))
