"""Verification that begins while rollouts are still sampled: nothing but the time it takes may differ."""

import random

import pytest
import tiny_run
from lake_content import content

from strop.core import round, verifying
from strop.core.verifying import followers
from strop.storage.errors import StageError
from strop.storage.lake import Lake, open_lake
from strop.storage.tables import Rollout, Score, StageRun

PLUGINS = '''
import os, signal, time
from collections import Counter
from strop.core.engine import Request, Sampling
from strop.core.plugin import PerRollout
from strop.storage.tables import Plan, Rollout, Score


class Odd(Config):
    """Kills its process when it comes to the problem `at` and `kill` is there, which is then `killed`.

    From there on it waits for the file `wait`.
    """

    n: int = 4
    nap_s: float = 0.0
    at: str = "2="
    kill: Path = Path("none")
    wait: Path | None = None

    def tempt(self, prompts):
        if self.at in prompts and self.kill.exists():
            self.kill.rename(self.kill.with_name("killed"))
            os.kill(os.getpid(), signal.SIGKILL)
        while max(prompts) >= self.at and self.wait and not self.wait.exists():
            time.sleep(0.02)
        time.sleep(self.nap_s)


class Broken(PerRollout):
    """Says so before it breaks."""

    tell: Path


@stage("verify")
def second(config: Nothing, *, rollouts, scores):
    said = Counter(s.subject_id for s in scores)
    assert set(said) == {r.rollout_id for r in rollouts}, (len(said), len(rollouts))
    assert set(said.values()) == {1}, said
    right = {s.subject_id for s in scores if s.verdict == "pass"}
    return [
        Score(subject_id=r.rollout_id, verdict="pass" if r.rollout_id in right else "fail", value=0.5) for r in rollouts
    ]


@stage("verify")
def batch(config: Odd, *, rollouts, problems):
    config.tempt([problems[r.problem_id].prompt for r in rollouts])
    return [Score(subject_id=r.rollout_id, verdict="pass", value=1.0) for r in rollouts]


@stage("verify")
def asks(config: Nothing, *, rollouts, engine):
    lps = engine.score([(r.prompt, r.completion) for r in rollouts])
    return [Score(subject_id=r.rollout_id, value=sum(lp)) for r, lp in zip(rollouts, lps)]


@stage("verify")
def broken(config: Broken, *, rollout):
    config.tell.touch()
    return {}["nothing"]


@stage("select")
def in_order(config: Nothing, *, problems):
    return [Plan(problem_id=p.problem_id) for p in sorted(problems, key=lambda p: p.prompt)]


@stage("generate")
def slow(config: Odd, *, plan, problems, engine, sample_seed):
    config.tempt([problems[row.problem_id].prompt for row in plan])
    out = []
    for row in plan:
        problem = problems[row.problem_id]
        seeds = tuple(sample_seed(problem, i) for i in range(config.n))
        for i, c in enumerate(engine.sample([Request(prompt=problem.prompt, seeds=seeds)], Sampling(max_tokens=4))[0]):
            out.append(Rollout(problem_id=row.problem_id, sample_index=i, prompt=problem.prompt, completion=c.text,
                               token_ids=c.token_ids, logps=c.logps, n_tokens=len(c.token_ids), seed=seeds[i]))
    return out
'''
LIGHT = {"build": None, "train": None, "evaluate": None, "gate": None, "filter": None}
ORDERS = {
    "first come first served": lambda waiting: 0,
    "the last first": lambda waiting: waiting - 1,
    "any": lambda waiting: DRAW.randrange(waiting),
}
DRAW = random.Random(5)


class Died(BaseException):
    """Like a signal: nothing catches it."""


def twice(**changes):
    """The round with a second verifier, which reads what the first one said."""
    stages = tiny_run.stages(**changes)
    at = next(i for i, item in enumerate(stages) if "verify" in item)
    return [*stages[: at + 1], {"verify": "./mine.py:second"}, *stages[at + 1 :]]


@pytest.fixture
def ordered(tiny, monkeypatch):
    """Set the order in which jobs are done."""
    return lambda which: monkeypatch.setattr(tiny_run.InlineJobs, "which", staticmethod(which))


def test_the_order_in_which_shards_end_changes_nothing(tiny, ordered, tmp_path):
    recipe = tiny.write(tmp_path, twice(), PLUGINS, shard_rollouts=8)
    found = {}
    for name, which in ORDERS.items():
        ordered(which)
        events = []
        summary = tiny.run(recipe, tmp_path / name, on_event=events.append)
        order = [(e.round, e.stage, e.kind) for e in events]
        found[name] = (content(tmp_path / name / "lake"), summary.champion_hash, summary.rounds)
        ahead = (1, "verify.answer", "progress") in order[: order.index((1, "generate", "stage_done"))]
        assert ahead == (name != "first come first served")
    first, *others = found.values()
    assert len(first[0]["stage_runs"]) > 30
    for other in others:
        assert other[1:] == first[1:]
        assert {table for table in first[0] if other[0][table] != first[0][table]} == set()


def test_a_verify_shard_read_its_generators_shard_and_the_verdicts_on_it_and_says_so(tiny, ordered, tmp_path):
    ordered(ORDERS["any"])
    shape = twice(**LIGHT)
    shape[1:1] = [{"generate": {"use": "sample", "as": "other", "n": 2, "max_tokens": 4}}]
    tiny.run(tiny.write(tmp_path, shape, PLUGINS, rounds=1, shard_rollouts=4), tmp_path)
    with open_lake(tmp_path / "lake", read_only=True) as lake:
        runs = {run.key: run for run in lake.rows(StageRun)}
        sampled = {r.rollout_id: r.stage_run_id for r in lake.rows(Rollout)}
        scores = lake.rows(Score)
    by_id = {run.stage_run_id: run for run in runs.values()}
    assert len({by_id[i].stage for i in sampled.values()}) == 2
    assert len(scores) == 2 * len(sampled) == 2 * 36
    for score in scores:
        read = [runs[key] for key in by_id[score.stage_run_id].upstream]
        assert sampled[score.subject_id] in {run.stage_run_id for run in read}
        kinds = ["generate", "verify"] if score.scorer == "second" else ["generate"]
        assert sorted(run.kind for run in read) == kinds


def test_a_run_that_dies_after_any_commit_ends_as_one_that_never_did(tiny, ordered, tmp_path, monkeypatch):
    recipe = tiny.write(tmp_path, twice(**LIGHT), PLUGINS, rounds=1, shard_rollouts=4)
    tiny.run(recipe, tmp_path / "whole")
    plain, deaths, left = Lake.commit, 0, []

    def mortal(self, stage_run, **more):
        plain(self, stage_run, **more)
        left.pop()
        if not left:
            raise Died

    ordered(ORDERS["any"])
    monkeypatch.setattr(Lake, "commit", mortal)
    while True:
        left[:] = [None] * (1 if deaths < 6 else 3)  # after each commit at first, then after every third
        try:
            tiny.run(recipe, tmp_path / "torn")
            break
        except Died:
            deaths += 1
    assert deaths >= 8
    assert content(tmp_path / "torn" / "lake") == content(tmp_path / "whole" / "lake")


def test_the_watcher_sees_a_stage_that_was_verified_meanwhile_begin_go_on_and_end(tiny, ordered, tmp_path):
    ordered(ORDERS["the last first"])
    events = []
    recipe = tiny.write(tmp_path, twice(**LIGHT), PLUGINS, rounds=1, shard_rollouts=4)
    tiny.run(recipe, tmp_path, on_event=events.append)
    for label in ("verify.answer", "verify.second"):
        mine = [e for e in events if e.stage == label]
        assert [e.kind for e in mine if e.kind != "progress"] == ["stage_start", "stage_done"]
        assert {e.total for e in mine if e.kind != "stage_done"} == {24}
        done = [e.done for e in mine if e.kind == "progress"]
        assert done == sorted(done)
        assert done[-1] == 24
        assert mine[-1].detail == {"rows": {"scores": 24}}
        begun, over = (
            next(i for i, e in enumerate(events) if e.stage == label and e.kind == kind)
            for kind in ("stage_start", "stage_done")
        )
        assert begun < [e.kind for e in events].index("stage_done", begun) < over


def steps(tiny, tmp_path, *verify):
    stages = [
        *tiny.stages(verify=None, **LIGHT),
        *({"verify": f"./mine.py:{v}" if v != "answer" else v} for v in verify),
    ]
    found = tiny.write(tmp_path, stages, PLUGINS).round
    return [s.name for s in followers(found, found[1])]


def test_what_waits_for_the_engine_or_for_a_verdict_that_is_to_come_is_not_begun_ahead(tiny, tmp_path):
    assert steps(tiny, tmp_path, "answer", "second", "batch") == ["answer", "second", "batch"]
    assert steps(tiny, tmp_path, "asks", "second", "batch") == ["batch"]
    assert steps(tiny, tmp_path, "answer", "asks") == ["answer"]


def test_a_verifier_that_needs_the_engine_judges_after_it_and_another_follows_it_shard_by_shard(
    tiny, ordered, tmp_path
):
    ordered(ORDERS["the last first"])
    shape = [*tiny.stages(verify="./mine.py:asks", **LIGHT), {"verify": "./mine.py:second"}]
    order = []
    recipe = tiny.write(tmp_path, shape, PLUGINS, rounds=1, shard_rollouts=4)
    tiny.run(recipe, tmp_path, on_event=lambda e: order.append((e.stage, e.kind)))
    assert order.index(("verify.asks", "stage_start")) > order.index(("generate", "stage_done"))
    assert order.index(("verify.second", "stage_start")) < order.index(("verify.asks", "stage_done"))


@pytest.fixture
def real(tmp_path):
    """real(name, stages, **top): run in a lake of that name, with processes; the recipe's own by the first call."""
    made = {}

    def call(name, shape=None, **more):
        if shape is not None:
            made["recipe"] = tiny_run.write(
                tmp_path, shape, PLUGINS, rounds=1, shard_rollouts=4, tasks=[{"use": "./mine.py:ones", "train": 6}]
            )
        return tiny_run.run(made["recipe"], tmp_path / name, **more)

    return call


def shape_of(generate, verify):
    light = {**LIGHT, "select": "./mine.py:in_order"}
    return tiny_run.stages(
        generate={"use": "./mine.py:slow", **generate}, verify={"use": "./mine.py:batch", **verify}, **light
    )


@pytest.mark.parametrize("victim", ["generate", "verify"])
def test_a_process_killed_in_generation_or_verification_costs_its_shard_and_the_same_command_goes_on(
    real, tmp_path, victim
):
    settings = {"generate": {"nap_s": 0.2}, "verify": {"nap_s": 0.1}}
    settings[victim] |= {"kill": str(tmp_path / "kill"), "at": "3=" if victim == "generate" else "1="}
    if victim == "verify":
        settings["generate"] |= {"wait": str(tmp_path / "killed"), "nap_s": 0.5}
    shape = shape_of(**settings)
    events = []
    (tmp_path / "kill").touch()
    with pytest.raises(
        StageError, match=rf"round 1, {victim}: shard \d of 6: a worker process ended by signal SIGKILL"
    ):
        real("torn", shape, on_event=lambda e: events.append((e.stage, e.kind)))
    assert ("verify", "progress") in events
    assert ("generate", "stage_done") not in events
    with open_lake(tmp_path / "torn" / "lake", read_only=True) as lake:
        shards = lake.query("SELECT stage, count(*) FROM stage_runs WHERE stage IN ('generate', 'verify') GROUP BY ALL")
    assert 2 <= dict(shards)["generate"] < 6
    assert real("torn").rounds == 1
    real("whole")
    whole = content(tmp_path / "whole" / "lake")
    assert len(whole["scores"]) == 24
    assert content(tmp_path / "torn" / "lake") == whole


def test_a_broken_verifier_ends_the_stage_and_what_was_being_sampled_is_kept(real, tmp_path):
    told = str(tmp_path / "told")
    shape = shape_of({"wait": told, "nap_s": 0.3}, {"use": "./mine.py:broken", "tell": told})
    with pytest.raises(StageError, match=r"round 1, verify: .*verify plugin 'broken' failed: KeyError: 'nothing'"):
        real("lake", shape)
    with open_lake(tmp_path / "lake" / "lake", read_only=True) as lake:
        assert 4 <= len(lake.rows(Rollout)) < 24
        assert not lake.rows(Score)
    assert not list((tmp_path / "lake" / "lake" / "staging").rglob("*.parquet"))


def test_a_stage_that_an_older_strop_left_half_done_in_other_shards_is_refused(tiny, tmp_path, monkeypatch):
    recipe = tiny.write(tmp_path, tiny.stages(**LIGHT), rounds=1, shard_rollouts=4)
    plain = verifying.sources
    monkeypatch.setattr(verifying, "sources", lambda *a: plain(*a)[:2])
    monkeypatch.setattr(round, "followers", lambda steps, step: [])
    commit = Lake.commit

    def mortal(self, stage_run, **more):
        commit(self, stage_run, **more)
        if stage_run.stage == "verify":
            raise Died

    monkeypatch.setattr(Lake, "commit", mortal)
    with pytest.raises(Died):
        tiny.run(recipe, tmp_path)
    monkeypatch.undo()
    tiny_run.inline(monkeypatch)
    with pytest.raises(
        StageError, match="verify: an older Strop left it half done, cut into 2 shards where it now has 6"
    ):
        tiny.run(recipe, tmp_path)
