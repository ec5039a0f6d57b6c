"""Examples of several kinds, through a loop with a real policy and trainer: in turns, as pairs, as a matrix."""

import json

import pytest
import real_training
import torch
import trainer_tiny
from plain_training import assert_same, plain_logps, plain_steps, weights
from rerun_tools import query

from strop.core.algebra.matrices import matching
from strop.core.trainer.job import TrainJob, write_examples
from strop.core.trainer.train import train


def test_relift_takes_a_turn_at_demonstrations_once_enough_wait(tmp_path, monkeypatch):
    first, second = real_training.loop(
        tmp_path,
        monkeypatch,
        {"build": {"use": "relift", "wait": 9}},
        {"train": {"objective": "relift", "lr": 1e-3, "epochs": 1, "batch_tokens": 40}},
        rounds=2,
    )
    shown = [[step["demonstrated"] for step in training.result.metrics] for training in (first, second)]
    assert set(shown[0]) == {0.0}
    assert shown[1] == sorted(shown[1])
    assert set(shown[1]) == {0.0, 1.0}
    demonstrations = [r for r in second.examples.to_pylist() if r["stratum"] == 1]
    assert {(r["completion"], r["reward"]) for r in demonstrations} == {("1", None)}
    assert len({r["prompt"] for r in demonstrations}) == len(demonstrations) >= 9
    assert query(
        tmp_path,
        "SELECT count(*) FILTER (stratum = 1) FROM policy_examples JOIN examples USING (example_id) WHERE stratum = 1",
    ) == [(len(demonstrations),)]
    waiting = query(tmp_path, "SELECT round, len(state_json) FROM plugin_state WHERE stage = 'build' ORDER BY round")
    assert waiting[0][1] > waiting[1][1]


def test_c3po_learns_from_pairs_of_three_scopes(tmp_path, monkeypatch):
    lines = [
        {"question": f"{i}+{i}=", "scope": ("in", "near", "out")[i % 3], "reference": f"{i}={2 * i}"} for i in range(12)
    ]
    (tmp_path / "feedback.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (training,) = real_training.loop(
        tmp_path,
        monkeypatch,
        {"build": "scoped"},
        {"train": {"objective": "c3po", "lr": 1e-3, "epochs": 1, "micro_batch_tokens": 60}},
        tasks=[{"use": "jsonl", "path": str(tmp_path / "feedback.jsonl"), "prompt": "question", "heldout": 0.2}],
    )
    rows = training.examples.to_pylist()
    assert {r["stratum"] for r in rows} == {0, 1, 2}
    for row in rows:
        same = row["chosen"] == row["rejected"] and row["chosen_token_ids"] == row["rejected_token_ids"]
        assert same == (row["stratum"] > 0)
    assert training.result.metrics[0]["margin"] == 0.0


@pytest.mark.parametrize("way", [{}, {"micro_batch_tokens": 20}, {"micro_batch_tokens": 30, "packing": True}])
def test_a_step_of_a_matrix_equals_plain_pytorch(tmp_path, way):
    prompts, completions = ["a1=", "bc1=", "1="], ["12", "2", "345"]
    rows = [
        {
            "example_id": 10 * i + j, "kind": "group", "group_id": 5, "stratum": 3 * i + j,
            "prompt": prompt, "completion": completion,
        }
        for i, prompt in enumerate(prompts)
        for j, completion in enumerate(completions)
    ]  # fmt: skip
    base = trainer_tiny.make_policy(tmp_path / "base")

    def loss_of(model, tokenizer):
        scores = [torch.stack([plain_logps(model, tokenizer, p, c).mean() for c in completions]) for p in prompts]
        return matching(torch.stack(scores))

    after, loss = plain_steps(base, loss_of)
    job = TrainJob(
        init=base,
        examples=write_examples(tmp_path / "examples.parquet", rows),
        output=tmp_path / "after",
        work=tmp_path / "work",
        objective="sami",
        train={"epochs": 1, "batch_tokens": 10**6, "lr": 1e-3, "warmup": 0.0, "schedule": "constant", **way},
        seed=0,
    )
    result = train(job)
    assert result.loss == pytest.approx(loss, abs=1e-5)
    assert_same(weights(job.output), after, 1e-5)


def test_sami_learns_from_a_loop_s_completions(tmp_path, monkeypatch):
    lines = [
        {"question": f"{principle}{i}=", "query": f"q{i}", "reference": "1"}
        for i in range(6)
        for principle in ("a", "b")
    ]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (training,) = real_training.loop(
        tmp_path,
        monkeypatch,
        {"build": "crossed"},
        {"train": {"objective": "sami", "lr": 1e-3, "epochs": 8, "batch_tokens": 200}},
        tasks=[{"use": "jsonl", "path": str(tmp_path / "queries.jsonl"), "prompt": "question", "heldout": 0.05}],
    )
    rows = training.examples.to_pylist()
    assert {r["stratum"] for r in rows} == {0, 1, 2, 3}
    assert len(rows) == 4 * len({r["group_id"] for r in rows})
    losses = [step["loss"] for step in training.result.metrics]
    assert losses[-1] < losses[0]
