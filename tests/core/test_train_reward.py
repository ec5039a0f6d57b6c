"""Stages that train reward models, from examples to the scores of the next round."""

import json
import shutil
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import tiny_run
import torch
import trainer_tiny
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from strop.core import training
from strop.core.recipe import load
from strop.core.stored import stored_recipe
from strop.core.trainer.job import TrainJob, write_examples
from strop.core.trainer.policy import load_model
from strop.core.trainer.score import SequenceScores
from strop.core.trainer.scorer import HeadScorer
from strop.core.trainer.train import train
from strop.storage.console import open_console
from strop.storage.errors import PluginError, RecipeError, StageError
from strop.storage.fsck import fsck
from strop.storage.gc import Wishes, gc
from strop.storage.lake import open_lake
from strop.storage.tables import Run

PLUGINS = '''
import trainer_tiny

from strop.core.plugin import PerRollout
from strop.storage.tables import Rollout, Score


@stage("base")
def random_policy(config: Nothing, *, directory: Path):
    return trainer_tiny.make_policy(directory)


class HasDigit(PerRollout):
    """Passes what has one of these characters."""

    of: str = "12345"


@stage("verify")
def has_digit(config: HasDigit, *, rollout: Rollout) -> Score:
    passed = any(c in rollout.completion for c in config.of)
    return Score(subject_id=rollout.rollout_id, verdict="pass" if passed else "fail", value=float(passed))
'''
STAGES = [
    {"select": {"use": "uniform", "problems": 12}},
    {"generate": {"use": "sample", "n": 8, "max_tokens": 5}},
    {"verify": "./mine.py:has_digit"},
    {"verify": {"use": "reward_model", "models": ["first", "second"]}},
    {"verify": {"use": "reward_model", "as": "process", "models": ["prm"]}},
    {"build": {"use": "best_worst", "scorer": "has_digit", "per_problem": 4}},
    {"build": {"use": "grouped", "scorer": "has_digit"}},
    {"train_reward": {"as": "first", "lr": 0.01, "share": 0.7}},
    {"train_reward": {"as": "second", "lr": 0.01, "share": 0.7}},
    {"train_reward": {"as": "prm", "objective": "implicit_reward", "lr": 0.01, "init_from": "previous"}},
    {"train": {"objective": "grpo", "init_from": "previous"}},
]


@contextmanager
def in_process():
    """No process but this one; the trainer is the real one."""
    with pytest.MonkeyPatch.context() as patch:
        tiny_run.inline(patch)
        patch.setattr(training, "_in_own_process", lambda session, job, round, step: train(job))
        yield


@pytest.fixture
def real():
    """`tiny_run` with the real trainer."""
    with in_process():
        yield tiny_run


def made(folder, stages=STAGES):
    top = {"base": "./mine.py:random_policy", "engine": "hf", "shard_rollouts": 64}
    return tiny_run.write(folder, stages, PLUGINS, **top)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Recipe, summary and lake of two rounds: the reward models of the first score the second."""
    folder = tmp_path_factory.mktemp("rewarded")
    with in_process():
        recipe = made(folder)
        return recipe, tiny_run.run(recipe, folder), folder / "lake"


def rows(lake, sql):
    with open_console(lake) as console:
        return console.query(sql).rows


def test_the_reward_models_of_a_round_score_the_next(finished):
    _, summary, folder = finished
    assert summary.champion == "tiny/r2"
    policies = rows(folder, "SELECT name, kind, status FROM policies ORDER BY round, name")
    assert policies == [
        ("tiny/r0", "base", "retired"),
        ("tiny/r1", "full", "retired"),
        *((f"tiny/r1/{name}", "reward", "scorer") for name in ("first", "prm", "second")),
        ("tiny/r2", "full", "champion"),
        *((f"tiny/r2/{name}", "reward", "scorer") for name in ("first", "prm", "second")),
    ]
    assert rows(folder, "SELECT policy, status FROM v_rounds ORDER BY round") == [
        ("tiny/r0", "retired"),
        ("tiny/r1", "retired"),
        ("tiny/r2", "champion"),
    ]
    for scorer, models in (("reward_model", ["tiny/r1/first", "tiny/r1/second"]), ("process", ["tiny/r1/prm"])):
        given = f"FROM scores WHERE scorer = '{scorer}' AND round"
        ((n, scored, reason),) = rows(folder, f"SELECT count(*), count(value), any_value(reason) {given} = 1")
        assert (n, scored) == (96, 0)
        assert "no reward model yet" in reason
        second = rows(folder, f"SELECT value, verdict, detail {given} = 2")
        assert len(second) == 96
        for value, verdict, detail in second:
            told = json.loads(detail)
            assert verdict is None
            assert told["models"] == models
            assert value == pytest.approx(np.mean(told["scores"]), abs=1e-5)
    # the same by hand, from the saved model and transformers' own forward pass
    ((path,),) = rows(folder, "SELECT path FROM policies WHERE name = 'tiny/r1/first'")
    model = AutoModelForSequenceClassification.from_pretrained(folder / path).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / path)
    sampled = rows(
        folder,
        "SELECT r.prompt, r.token_ids, s.detail FROM rollouts r JOIN scores s ON s.subject_id = r.rollout_id "
        "WHERE s.scorer = 'reward_model' AND s.round = 2 LIMIT 8",
    )
    for prompt, ids, detail in sampled:
        whole = torch.tensor([[*tokenizer(prompt)["input_ids"], *ids]])
        assert model(whole).logits.item() == pytest.approx(json.loads(detail)["scores"][0], abs=1e-4)


def test_an_implicit_model_leaves_the_rewards_of_tokens(finished):
    _, _, folder = finished
    found = rows(
        folder,
        "SELECT s.value, a.logps, b.logps, r.n_tokens FROM scores s JOIN rollouts r ON r.rollout_id = s.subject_id "
        "JOIN policies p ON p.name = 'tiny/r1/prm' JOIN policies q ON q.policy_id = p.reference_policy_id "
        "JOIN token_logps a ON a.rollout_id = s.subject_id AND a.policy_id = p.policy_id "
        "JOIN token_logps b ON b.rollout_id = s.subject_id AND b.policy_id = q.policy_id "
        "WHERE s.scorer = 'process' AND s.round = 2",
    )
    assert len(found) == 96
    for value, ours, reference, n in found:
        steps = 0.05 * (np.array(ours) - np.array(reference))
        assert len(steps) == n
        assert value == pytest.approx(steps.sum(), abs=1e-5)
    assert max(abs(value) for value, *_ in found) > 1e-4
    # `previous` goes on from the stage's own last model, kept near the base
    assert rows(folder, "SELECT parent, reference FROM v_policies WHERE policy LIKE 'tiny/r%/prm' ORDER BY round") == [
        ("tiny/r0", "tiny/r0"),
        ("tiny/r1/prm", "tiny/r0"),
    ]


def test_each_stage_takes_the_examples_of_its_kind_and_its_own_share(finished):
    _, _, folder = finished
    kinds = rows(
        folder,
        "SELECT p.name, list(DISTINCT e.kind), count(*) FROM policy_examples t JOIN policies p USING (policy_id) "
        "JOIN examples e USING (example_id) WHERE p.round = 1 GROUP BY ALL ORDER BY 1",
    )
    ((pairs,),) = rows(folder, "SELECT count(*) FROM examples WHERE kind = 'pair' AND round = 1")
    assert kinds == [
        ("tiny/r1", ["group"], 96),
        ("tiny/r1/first", ["pair"], round(0.7 * pairs)),
        ("tiny/r1/prm", ["group"], 96),
        ("tiny/r1/second", ["pair"], round(0.7 * pairs)),
    ]
    alike = rows(
        folder,
        "SELECT count(*) FROM policy_examples a JOIN policy_examples b USING (example_id) "
        "JOIN policies p ON p.policy_id = a.policy_id JOIN policies q ON q.policy_id = b.policy_id "
        "WHERE p.name = 'tiny/r1/first' AND q.name = 'tiny/r1/second'",
    )
    assert alike[0][0] < round(0.7 * pairs)


def test_a_resumed_run_uses_the_models_it_would_have_used(real, finished, tmp_path):
    recipe, _, whole = finished
    with pytest.raises(StageError, match="stop here"):
        real.run(recipe, tmp_path, call=_until(2, "train_reward.second"))
    real.run(recipe, tmp_path)
    for sql in (
        "SELECT value FROM scores WHERE scorer = 'reward_model' ORDER BY score_id",
        "SELECT name, content_hash FROM policies ORDER BY name",
    ):
        assert rows(whole, sql) == rows(tmp_path / "lake", sql)


def _until(round, label):
    def call(at, number, step):
        if (number, at) == (round, label):
            raise StageError("stop here")
        return step()

    return call


def test_fsck_explain_and_gc_know_reward_models(real, finished, tmp_path):
    from strop.storage.explain import explain

    recipe, _, whole = finished
    folder = shutil.copytree(whole, tmp_path / "lake")
    assert fsck(folder).findings == []
    with open_console(folder) as console:
        told = " ".join(explain(console, "tiny/r1/first").lines)
    assert "tiny/r1/first is a reward model of run tiny" in told
    assert "Since then it scored 96 rollouts in round 2." in told
    gc(folder, Wishes(checkpoints="not-champion"))
    there = dict(rows(folder, "SELECT name, coalesce(detail, '') LIKE '%pruned%' FROM policies"))
    assert there == {
        "tiny/r0": False,
        "tiny/r1": True,
        "tiny/r2": False,
        **{f"tiny/r{n}/{name}": n == 1 for n in (1, 2) for name in ("first", "second", "prm")},
    }
    real.run(recipe, tmp_path, rounds=3)  # on the newest models, which are still there
    assert rows(folder, "SELECT count(value) FROM scores WHERE scorer = 'reward_model' AND round = 3") == [(96,)]


def test_a_model_trained_earlier_in_the_round_scores_at_once(real, tmp_path):
    stages = [*STAGES[:3], STAGES[5], {"train_reward": {"lr": 0.01}}, {"verify": "reward_model"}]
    stages += [{"build": {"use": "grouped", "scorer": "reward_model"}}, {"train": "grpo"}]
    summary = real.run(made(tmp_path, stages), tmp_path, rounds=1)
    assert summary.champion == "tiny/r1"
    lake = tmp_path / "lake"
    assert rows(lake, "SELECT count(value) FROM scores WHERE scorer = 'reward_model'") == [(96,)]
    assert rows(lake, "SELECT count(reward) FROM examples WHERE kind = 'group'") == [(96,)]


def test_a_policy_tuned_on_good_completions_rewards_what_is_like_them(real, tmp_path):
    """Self-Rewarding PPO in one round."""
    stages = [*STAGES[:3], {"build": {"use": "rft", "per_problem": 4}}]
    stages += [{"train_reward": {"objective": "sft", "lr": 0.01, "epochs": 3}}, {"verify": "reward_model"}]
    stages += [{"build": {"use": "grouped", "scorer": "reward_model"}}, {"train": {"objective": "ppo"}}]
    summary = real.run(made(tmp_path, stages), tmp_path, rounds=1)
    lake = tmp_path / "lake"
    assert summary.champion == "tiny/r1"
    found = rows(
        lake,
        "SELECT s.value, list_sum(a.logps) - list_sum(b.logps), v.verdict = 'pass' FROM scores s "
        "JOIN scores v ON v.subject_id = s.subject_id AND v.scorer = 'has_digit' "
        "JOIN policies p ON p.name = 'tiny/r1/sft' JOIN policies q ON q.name = 'tiny/r0' "
        "JOIN token_logps a ON a.rollout_id = s.subject_id AND a.policy_id = p.policy_id "
        "JOIN token_logps b ON b.rollout_id = s.subject_id AND b.policy_id = q.policy_id "
        "WHERE s.scorer = 'reward_model'",
    )
    assert len(found) == 96
    assert [value for value, *_ in found] == pytest.approx([ratio for _, ratio, _ in found], abs=1e-4)
    good, bad = ([value for value, _, passed in found if passed is there] for there in (True, False))
    assert np.mean(good) > np.mean(bad) + 0.1
    ((n,),) = rows(
        lake,
        "SELECT count(*) FROM train_metrics m JOIN policies USING (policy_id) "
        "WHERE policies.name = 'tiny/r1' AND m.name = 'explained_variance'",
    )
    assert n > 0


def test_while_there_is_no_model_a_policy_that_learns_from_it_waits(real, tmp_path):
    stages = [*STAGES[:3], {"verify": "reward_model"}, STAGES[5]]
    stages += [
        {"build": {"use": "grouped", "scorer": "reward_model"}},
        {"train_reward": {"lr": 0.01}},
        {"train": "grpo"},
    ]
    summary = real.run(made(tmp_path, stages), tmp_path)
    names = rows(tmp_path / "lake", "SELECT name FROM policies ORDER BY round, name")
    assert [name for (name,) in names] == ["tiny/r0", "tiny/r1/bradley_terry", "tiny/r2", "tiny/r2/bradley_terry"]
    assert summary.champion == "tiny/r2"


@pytest.mark.parametrize(
    ("stage", "why"),
    [
        ({"train": "bradley_terry"}, "'bradley_terry' gives a reward model, which is no policy: write `train_reward`"),
        ({"train_reward": "grpo"}, "'grpo' gives no reward: name an objective with a score head"),
        ({"train_reward": {"lora": {"merge": False}}}, "a reward model is saved whole"),
        (
            {"train_reward": {"use": "trl", "trainer": "dpo"}},
            "`train_reward` has a trainer of its own: leave `use` out",
        ),
        ({"train_reward": {"objectiv": "dpo"}}, "unknown key 'objectiv'; did you mean 'objective'"),
    ],
)
def test_a_recipe_says_what_does_not_fit(tmp_path, stage, why):
    with pytest.raises((RecipeError, PluginError), match=why):
        made(tmp_path, [*STAGES[:6], stage])


def test_a_stage_that_trained_no_model_is_named(real, tmp_path):
    stages = [*STAGES[:3], {"verify": {"use": "reward_model", "models": ["frist"]}}, STAGES[5], STAGES[7]]
    with pytest.raises(PluginError, match=r"no `train_reward` stage called 'frist'.*did you mean 'first'"):
        real.run(made(tmp_path, stages), tmp_path)


def test_a_stored_recipe_is_the_recipe(finished):
    recipe, _, folder = finished
    with open_lake(folder) as opened:
        (run,) = opened.rows(Run)
    text = yaml.safe_dump(json.loads(run.recipe_json))
    assert "train_reward.prm" in text
    folder = recipe.path.parent
    assert load(str(recipe.path), overrides=["train_reward.prm.lr=0.01"]).identity() == recipe.identity()
    assert load(str(recipe.path), overrides=["train_reward.prm.lr=0.02"]).identity() != recipe.identity()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert stored_recipe(run).canonical() == recipe.canonical()


@pytest.fixture
def job(tmp_path) -> TrainJob:
    base, settings = trainer_tiny.make_policy(tmp_path / "init"), {"lr": 5e-3, "batch_tokens": 64, "epochs": 2}
    return trainer_tiny.job(tmp_path, base, trainer_tiny.pair_rows(40), "bradley_terry", train=settings, seed=3)


@pytest.mark.parametrize("lora", [None, {"r": 4}])
def test_the_model_loads_in_transformers_and_scores_the_same(job, lora):
    job = replace(job, train={**job.train, "lora": lora})
    result = train(job)
    assert result.metrics[-1]["accuracy"] >= 0.7
    model = AutoModelForSequenceClassification.from_pretrained(job.output).eval()
    assert model.config.num_labels == 1
    tokenizer = AutoTokenizer.from_pretrained(job.output)
    texts = [("1+2=", "3"), ("4+5+6=", "9=15")]
    batch = tokenizer([f"{a}{b}</s>" for a, b in texts], padding=True, return_tensors="pt", return_token_type_ids=False)
    own = model(**batch).logits.squeeze(-1).tolist()
    assert HeadScorer(job.output, 1).scores(texts) == pytest.approx(own, abs=1e-5)
    assert own[0] != pytest.approx(own[1], abs=1e-3)
    with pytest.raises(ValueError, match="reads 48"):
        HeadScorer(job.output, 1).scores([("1+2=", [5] * 50)])


def test_micro_batches_change_nothing_and_the_same_job_gives_the_same_weights(job, tmp_path):
    first = train(job)
    again = train(replace(job, output=tmp_path / "again", work=tmp_path / "work2"))
    assert first.metrics == again.metrics
    small = {**job.train, "micro_batch_tokens": 16}
    cut = train(replace(job, output=tmp_path / "cut", work=tmp_path / "work3", train=small))
    assert [m["loss"] for m in cut.metrics] == pytest.approx([m["loss"] for m in first.metrics], abs=1e-5)


def test_a_reward_model_is_gone_on_from_with_its_head(job, tmp_path):
    train(job)
    still = {**job.train, "lr": 1e-12}
    train(replace(job, init=job.output, output=tmp_path / "next", work=tmp_path / "work2", train=still))
    pairs = [("1+2=", "3"), ("4+5=", "9")]
    assert HeadScorer(tmp_path / "next", 1).scores(pairs) == pytest.approx(HeadScorer(job.output, 1).scores(pairs))


def test_it_may_start_from_a_policy_that_is_an_adapter(job, tmp_path):
    rows = write_examples(tmp_path / "sft.parquet", trainer_tiny.sft_rows(20))
    lora = {"r": 4, "merge": False}
    adapter = replace(job, examples=rows, objective="sft", output=tmp_path / "adapter", work=tmp_path / "work2")
    assert train(replace(adapter, train={"lr": 1e-2, "lora": lora})).kind == "lora"
    train(replace(job, init=tmp_path / "adapter", train={"lr": 1e-12}))
    found = AutoModelForSequenceClassification.from_pretrained(job.output).model.state_dict()
    for name, weight in load_model(tmp_path / "adapter")[0].model.state_dict().items():
        torch.testing.assert_close(found[name], weight)


def test_where_padding_is_the_end_of_sequence_the_token_before_it_is_read(job):
    path = job.init / "tokenizer_config.json"
    path.write_text(path.read_text().replace('"pad_token": "<pad>"', '"pad_token": "</s>"'))
    train(job)
    model = AutoModelForSequenceClassification.from_pretrained(job.output).eval()
    assert model.config.pad_token_id == 2
    ids = [np.array([1, 5, 14, 8, 2]), np.array([1, 5, 13, 5, 14, 8, 2])]
    batch = torch.full((2, 7), 2)
    for row, sequence in enumerate(ids):
        batch[row, : len(sequence)] = torch.from_numpy(sequence)
    torch.testing.assert_close(SequenceScores(model).of(ids), model(batch).logits.squeeze(-1))


def test_margins_are_asked_for_where_they_are_needed(job):
    with pytest.raises(StageError, match="'combined_reward' needs the column 'margin', which is null"):
        train(replace(job, objective="combined_reward"))


def test_on_chain_arithmetic_it_orders_pairs_it_has_not_seen(smoke, tmp_path):
    pairs = rows(
        smoke.lake,
        "WITH judged AS (SELECT r.problem_id, r.prompt, r.token_ids, s.value, "
        "  row_number() OVER (PARTITION BY r.problem_id, s.value ORDER BY r.rollout_id) AS place "
        "  FROM (SELECT DISTINCT ON (problem_id, completion) * FROM rollouts WHERE split = 'train' AND round = 1 "
        "    ORDER BY rollout_id) r JOIN scores s ON s.subject_id = r.rollout_id) "
        "SELECT a.problem_id, a.prompt, a.token_ids, b.token_ids FROM judged a JOIN judged b "
        "ON b.problem_id = a.problem_id AND b.place = a.place WHERE a.value = 1 AND b.value = 0 ORDER BY ALL",
    )
    problems = sorted({row[0] for row in pairs})
    seen = set(problems[: 3 * len(problems) // 4])
    train_rows = [
        {"example_id": i, "kind": "pair", "prompt": prompt, "chosen_token_ids": good, "rejected_token_ids": bad}
        for i, (problem, prompt, good, bad) in enumerate(pairs)
        if problem in seen
    ]
    ((base,),) = rows(smoke.lake, "SELECT path FROM policies WHERE kind = 'base'")
    settings = {"lr": 3e-3, "epochs": 6, "batch_tokens": 512}
    job = trainer_tiny.job(tmp_path, smoke.lake / base, train_rows, "bradley_terry", train=settings)
    train(job)
    unseen = [row for row in pairs if row[0] not in seen]
    scores = HeadScorer(job.output, 1).scores([(prompt, ids) for _, prompt, *both in unseen for ids in both])
    right = sum(good > bad for good, bad in zip(scores[::2], scores[1::2], strict=True))
    n = len(unseen)
    assert n > 50
    assert right / n > 0.5 + 2.5 * (0.25 / n) ** 0.5, f"{right} of {n}"
