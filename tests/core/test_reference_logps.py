"""What a reference makes of a rollout's tokens is computed once, kept in the lake, and found by the next training."""

import pytest
import tiny_run
import torch
import trainer_tiny
from rerun_tools import query, rerun, rows
from transformers import AutoTokenizer, LlamaForCausalLM

from strop.core import training
from strop.core.trainer import reference
from strop.core.trainer.train import train
from strop.storage.tables import Policy, TokenLogps

PLUGINS = """
from strop.storage.tables import Score


@stage("verify")
def even(config: Nothing, *, rollouts):
    return [
        Score(subject_id=r.rollout_id, verdict="pass", value=float(len(r.completion) % 2)) for r in rollouts
    ]
"""
DPO = {"objective": {"use": "dpo"}, "reference": "base", "data_window": 2, "lr": 1e-2, "init_from": "previous"}
ROUND = [
    {"select": {"use": "uniform", "problems": 6}},
    {"generate": {"use": "sample", "n": 4, "max_tokens": 8}},
    {"verify": "./mine.py:even"},
    {"build": "best_worst"},
    {"train": DPO},
]
SIDES = """
SELECT DISTINCT r.rollout_id, r.prompt, r.token_ids FROM examples e
JOIN rollouts r ON r.rollout_id IN (e.rollout_id, e.rejected_rollout_id) ORDER BY 1"""


@pytest.fixture
def computed(monkeypatch):
    """The items that a reference was asked about, training by training."""
    found = []
    original = reference.reference_logps
    tiny_run.inline(monkeypatch)
    monkeypatch.setattr(training, "_in_own_process", lambda session, job, at, step: train(job))

    def counted(items, *arguments, **named):
        found.append(len(items))
        return original(items, *arguments, **named)

    monkeypatch.setattr(reference, "reference_logps", counted)
    return found


def looped(tmp_path, stages=ROUND, **top):
    base = trainer_tiny.make_policy(tmp_path / "policy", seed=3)
    recipe = tiny_run.write(
        tmp_path, stages, PLUGINS, base={"use": "huggingface", "model": str(base)}, engine="hf", **top
    )
    return recipe, tiny_run.run(recipe, tmp_path)


def test_a_rollouts_log_probabilities_under_the_reference_are_computed_once_and_kept(tmp_path, monkeypatch, computed):
    monkeypatch.chdir(tmp_path)
    looped(tmp_path)
    kept = rows(tmp_path, TokenLogps)
    sides = query(tmp_path, SIDES)
    assert sorted(row.rollout_id for row in kept) == [rollout for rollout, _, _ in sides]
    base = next(policy for policy in rows(tmp_path, Policy) if policy.kind == "base")
    assert {(row.policy_id, row.policy_hash) for row in kept} == {(base.policy_id, base.content_hash)}
    texts = {rollout: (prompt, ids) for rollout, prompt, ids in sides}
    model = LlamaForCausalLM.from_pretrained(tmp_path / "policy").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    for row in kept:
        prompt, ids = texts[row.rollout_id]
        before = tokenizer(prompt)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([before + ids])).logits[0, len(before) - 1 : -1]
        expected = logits.log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)]
        assert row.logps == pytest.approx(expected.tolist(), abs=1e-5)
    counts = dict(query(tmp_path, "SELECT round, count(*) FROM examples GROUP BY round"))
    assert computed == [counts[1], counts[2]], "round 2 trains on both rounds' pairs"
    assert counts[1] > 2
    trained = {policy.round: policy.content_hash for policy in rows(tmp_path, Policy)}
    again = rerun(tmp_path, "tiny@1", start="train")
    assert len(computed) == 2, "the rerun found all it needs"
    assert query(tmp_path, "SELECT content_hash FROM policies WHERE run_id = ? AND round = 1", again) == [(trained[1],)]


def test_where_the_prompt_was_changed_a_reference_is_asked_afresh_and_nothing_is_kept(tmp_path, computed):
    hinted = """

@stage("build")
def hinted(config: Nothing, *, rollouts):
    from strop.storage.tables import Example

    return [
        Example(
            kind="pair", prompt="7" + a.prompt, chosen=a.completion, rejected=b.completion, rollout_id=a.rollout_id,
            rejected_rollout_id=b.rollout_id, problem_id=a.problem_id,
        )
        for a, b in zip(rollouts[::2], rollouts[1::2])
        if a.completion and b.completion
    ]
"""
    stages = [*ROUND[:3], {"build": "./mine.py:hinted"}, {"train": DPO}]
    base = trainer_tiny.make_policy(tmp_path / "policy", seed=3)
    recipe = tiny_run.write(
        tmp_path, stages, PLUGINS + hinted, base={"use": "huggingface", "model": str(base)}, engine="hf", rounds=1
    )
    tiny_run.run(recipe, tmp_path)
    assert computed[0] > 2
    assert rows(tmp_path, TokenLogps) == []
