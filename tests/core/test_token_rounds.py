"""Rounds whose policy learns from a reward model's word on each token: prime and oreal, from recipe to lineage."""

import json
import shutil

import numpy as np
import pytest
import tiny_run
import torch
import yaml
from plain_training import load as load_model
from rerun_tools import copied, query, rerun
from test_train_reward import STAGES, in_process, made, rows
from transformers import AutoTokenizer

from strop.core.recipe import RECIPES, load
from strop.core.round import run_loop
from strop.core.trainer import reference
from strop.core.trainer.token_head import load_head
from strop.storage.console import open_console
from strop.storage.errors import RecipeError
from strop.storage.explain import explain
from strop.storage.fsck import fsck
from strop.storage.gc import Wishes, gc

GROUPS = {"build": {"use": "grouped", "scorer": "has_digit", "contrast": True}}
PRM = {"train_reward": {"as": "prm", "objective": "implicit_reward", "lr": 0.01, "init_from": "previous"}}
PRIME = {"train": {"objective": "prime", "init_from": "previous", "lr": 1e-3}}
TOKENS = {"train_reward": {"objective": "token_outcome", "lr": 0.01, "init_from": "previous", "epochs": 3}}
OREAL = {"train": {"objective": "oreal", "init_from": "previous", "reference": "base", "lr": 1e-3}}


@pytest.fixture
def real():
    """The loop in this process, with the real trainer."""
    with in_process():
        yield tiny_run


@pytest.fixture(scope="module")
def primed(tmp_path_factory):
    """Recipe and folder of two rounds of PRIME."""
    folder = tmp_path_factory.mktemp("primed")
    with in_process():
        recipe = made(folder, [*STAGES[:3], GROUPS, PRM, PRIME])
        assert tiny_run.run(recipe, folder).champion == "tiny/r2"
    return recipe, folder


def test_a_policy_knows_which_reward_model_scored_its_tokens(primed):
    lake = primed[1] / "lake"
    named = rows(
        lake,
        "SELECT p.name, q.name FROM policies p JOIN policies q "
        "ON q.policy_id = CAST(p.detail ->> '$.reward_policy_id' AS BIGINT) ORDER BY 1",
    )
    assert named == [("tiny/r1", "tiny/r1/prm"), ("tiny/r2", "tiny/r2/prm")]
    read = rows(
        lake,
        "SELECT t.round FROM stage_runs t JOIN stage_runs r ON list_contains(t.upstream, r.key) "
        "WHERE t.stage = 'train' AND r.stage = 'train_reward' ORDER BY 1",
    )
    assert read == [(1,), (2,)]
    assert rows(lake, "SELECT count(*) FROM v_lineage WHERE relation = 'tokens scored by'") == [(2,)]
    assert fsck(lake).findings == []
    with open_console(lake) as console:
        policy, model = (" ".join(explain(console, name).lines) for name in ("tiny/r2", "tiny/r2/prm"))
    assert "was trained from tiny/r1 with prime, its tokens scored by tiny/r2/prm, on" in policy
    assert "Since then it scored the tokens that tiny/r2 learnt from." in model


def test_the_lake_keeps_what_the_reward_model_and_its_reference_make_of_tokens(primed):
    lake = primed[1] / "lake"
    kept = rows(
        lake,
        "SELECT p.name, r.prompt, r.token_ids, t.logps FROM token_logps t JOIN policies p USING (policy_id) "
        "JOIN rollouts r USING (rollout_id) WHERE r.round = 2 ORDER BY p.name, r.rollout_id",
    )
    ((examples,),) = rows(lake, "SELECT count(*) FROM examples WHERE round = 2")
    assert [name for name, *_ in kept] == ["tiny/r0"] * examples + ["tiny/r2/prm"] * examples
    for name in ("tiny/r0", "tiny/r2/prm"):
        ((path,),) = rows(lake, f"SELECT path FROM policies WHERE name = '{name}'")
        model, tokenizer = load_model(lake / path), AutoTokenizer.from_pretrained(lake / path)
        for _, prompt, ids, logps in [row for row in kept if row[0] == name][:3]:
            before = tokenizer(prompt)["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([before + ids])).logits[0, len(before) - 1 : -1]
            assert logps == pytest.approx(logits.log_softmax(-1)[range(len(ids)), ids].tolist(), abs=1e-5)


def test_a_rerun_finds_all_it_needs(real, primed, tmp_path, monkeypatch):
    copied(primed[1], tmp_path, monkeypatch)
    asked = []
    original = reference.reference_logps
    monkeypatch.setattr(reference, "reference_logps", lambda *a, **more: asked.append(1) or original(*a, **more))
    again = rerun(tmp_path, "tiny@1", start="train")
    assert asked == []
    hashes = query(tmp_path, "SELECT DISTINCT content_hash FROM policies WHERE round = 1 AND kind = 'full'")
    runs = query(tmp_path, "SELECT run_id FROM policies WHERE round = 1 AND kind = 'full' ORDER BY 1")
    assert (len(hashes), sorted(run for (run,) in runs)) == (1, sorted([again, "tiny"]))


def test_gc_leaves_the_reward_model_of_the_next_round(real, primed, tmp_path):
    shutil.copytree(primed[1], tmp_path, dirs_exist_ok=True)
    lake = tmp_path / "lake"
    gc(lake, Wishes(checkpoints="not-champion"))
    pruned = dict(rows(lake, "SELECT name, coalesce(detail, '') LIKE '%pruned%' FROM policies"))
    assert (pruned["tiny/r1/prm"], pruned["tiny/r2/prm"]) == (True, False)
    assert real.run(primed[0], tmp_path, rounds=3).champion == "tiny/r3"
    with open_console(lake) as console:
        assert "its tokens scored by tiny/r1/prm" in " ".join(explain(console, "tiny/r1").lines)
    assert fsck(lake).findings == []


def test_before_its_reward_model_is_trained_a_policy_waits(real, tmp_path):
    real.run(made(tmp_path, [*STAGES[:3], GROUPS, PRIME, PRM]), tmp_path)
    lake = tmp_path / "lake"
    names = [name for (name,) in rows(lake, "SELECT name FROM policies ORDER BY name")]
    assert names == ["tiny/r0", "tiny/r1/prm", "tiny/r2", "tiny/r2/prm"]
    with open_console(lake) as console:
        assert "its tokens scored by tiny/r1/prm" in " ".join(explain(console, "tiny/r2").lines)


def test_oreal_learns_from_a_token_reward_model_that_scores_the_next_round(real, tmp_path):
    stages = [*STAGES[:3], {"verify": "reward_model"}, GROUPS, TOKENS, OREAL]
    assert real.run(made(tmp_path, stages), tmp_path).champion == "tiny/r2"
    lake = tmp_path / "lake"
    scored = rows(
        lake,
        "SELECT r.prompt, r.token_ids, s.value FROM scores s JOIN rollouts r ON r.rollout_id = s.subject_id "
        "WHERE s.scorer = 'reward_model' AND s.round = 2 ORDER BY r.rollout_id",
    )
    assert len(scored) == 96
    ((path,),) = rows(lake, "SELECT path FROM policies WHERE name = 'tiny/r1/token_outcome'")
    model, tokenizer = load_model(lake / path), AutoTokenizer.from_pretrained(lake / path)
    head = load_head(lake / path, "outcome", model)
    for prompt, ids, value in scored[:6]:
        before = tokenizer(prompt)["input_ids"]
        with torch.no_grad():
            hidden = model(torch.tensor([before + ids]), output_hidden_states=True).hidden_states[-1]
            assert value == pytest.approx(head(hidden)[0, len(before) - 1 : -1].mean().item(), abs=1e-4)
    judged = rows(
        lake,
        "SELECT a.value, b.value FROM scores a JOIN scores b USING (subject_id) "
        "WHERE a.scorer = 'reward_model' AND b.scorer = 'has_digit' AND a.round = 2",
    )
    said, right = (np.array(column) for column in zip(*judged, strict=True))
    assert said[right == 1].mean() > said[right == 0].mean()
    told = rows(lake, "SELECT count(*) FROM train_metrics WHERE name IN ('positive', 'negative') AND value <> 0")
    assert told[0][0] >= 4
    with open_console(lake) as console:
        story = " ".join(explain(console, "tiny/r2").lines)
    assert "with oreal, kept near tiny/r0, its tokens scored by tiny/r2/token_outcome, on" in story


@pytest.mark.parametrize(
    ("stages", "why"),
    [
        ([PRIME], "'prime' has tokens scored by a reward model: put a stage before it that trains an implicit one"),
        ([TOKENS, PRIME], "put a stage before it that trains an implicit one, `train_reward: implicit_reward`"),
        ([PRM, OREAL], "trains one that gives a number a token, `train_reward: token_outcome`"),
        (
            [PRM, {"train_reward": "implicit_reward"}, PRIME],
            "and there are prm, implicit_reward: write `reward_model: prm`",
        ),
        ([PRM, {"train": PRIME["train"] | {"reward_model": "prn"}}], r"stage called 'prn'.*did you mean 'prm'"),
        ([PRM, TOKENS, {"train": OREAL["train"] | {"reward_model": "prm"}}], "'prm' trains with 'implicit_reward'"),
    ],
)
def test_a_recipe_says_which_reward_model_is_missing(tmp_path, stages, why):
    with pytest.raises(RecipeError, match=why):
        made(tmp_path, [*STAGES[:3], GROUPS, *stages])


def test_a_recipe_names_one_of_several(tmp_path):
    named = {"train": PRIME["train"] | {"reward_model": "implicit_reward"}}
    recipe = made(tmp_path, [*STAGES[:3], GROUPS, PRM, {"train_reward": "implicit_reward"}, TOKENS, named])
    assert recipe.round[-1].config.reward_model == "implicit_reward"
    plain = made(tmp_path / "plain", [*STAGES[:3], GROUPS, {"train": "grpo"}])
    assert "reward_model" not in plain.round[-1].settings()


@pytest.mark.parametrize("method", ["prime", "oreal"])
def test_the_shipped_recipe_runs(real, own_cache, method, tmp_path):
    base = yaml.safe_load((RECIPES / "smoke.yaml").read_text())["base"]
    overrides = [f"base.{key}={json.dumps(value)}" for key, value in base.items() if key != "use"]
    overrides += [f"task.{key}={json.dumps(value)}" for key, value in base["task"].items()]
    overrides += ["select.problems=24", "generate.max_tokens=24", "heldout.max_tokens=24"]
    overrides += ["task.heldout_per_category=8", "task.train=96"]
    recipe = load(method, overrides=overrides)
    summary = run_loop(recipe, lake=tmp_path / "lake", run_id=method, rounds=1)
    assert summary.champion == f"{method}/r1"
    ((before, after),) = rows(
        tmp_path / "lake",
        "SELECT min(value) FILTER (round = 0), min(value) FILTER (round = 1) FROM metrics WHERE name = 'pass@1'",
    )
    assert 0 < before < 1
    assert after > before / 2, "it has not broken the policy"
