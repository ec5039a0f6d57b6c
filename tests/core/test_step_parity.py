"""One optimiser step of four objectives against plain PyTorch, however the step is cut, packed and shared out."""

from __future__ import annotations

import random

import pytest
import torch
import trainer_tiny
from plain_training import assert_same, load, plain_logps, plain_steps, weights

from strop.core.trainer.job import TrainJob, write_examples
from strop.core.trainer.train import train

ONE_STEP = {"epochs": 1, "batch_tokens": 10**6, "lr": 1e-3, "warmup": 0.0, "schedule": "constant"}
WAYS = {
    "whole": {"micro_batch_tokens": 10**6},
    "packed": {"micro_batch_tokens": 10**6, "packing": True},
    "four micro-batches": {"micro_batch_tokens": 110},
    "four packed micro-batches": {"micro_batch_tokens": 90, "packing": True},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return trainer_tiny.make_policy(tmp_path_factory.mktemp("policy") / "base")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return trainer_tiny.make_policy(tmp_path_factory.mktemp("policy") / "reference", seed=1)


@pytest.fixture(scope="module")
def groups(base):
    """Three groups of four; behaviour log-probabilities are the policy's own, shaken."""
    from transformers import AutoTokenizer

    model, tokenizer, rng = load(base), AutoTokenizer.from_pretrained(base), random.Random(1)
    rows = []
    for i, row in enumerate(trainer_tiny.sft_rows(12)):
        with torch.no_grad():
            own = plain_logps(model, tokenizer, row["prompt"], row["completion"]).tolist()
        rows.append(
            {
                **row,
                "kind": "group",
                "group_id": i // 4,
                "reward": float(i % 4 in (0, 1 + i // 4)),
                "completion_token_ids": [*tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id],
                "behaviour_logps": [min(-1e-3, logp + rng.gauss(0, 0.2)) for logp in own],
            }
        )
    return rows


def plain_sft(model, tokenizer, rows, reference):
    logps = [plain_logps(model, tokenizer, r["prompt"], r["completion"]) for r in rows]
    return -sum(x.sum() for x in logps) / sum(len(x) for x in logps)


def plain_dpo(model, tokenizer, rows, reference):
    def moved(row, side):
        now = plain_logps(model, tokenizer, row["prompt"], row[side]).sum()
        return now - plain_logps(reference, tokenizer, row["prompt"], row[side]).sum().detach()

    terms = [-torch.nn.functional.logsigmoid(0.1 * (moved(r, "chosen") - moved(r, "rejected"))) for r in rows]
    return sum(terms) / len(terms)


def plain_grpo(model, tokenizer, rows, reference):
    terms = []
    for row in rows:
        rewards = torch.tensor([r["reward"] for r in rows if r["group_id"] == row["group_id"]])
        advantage = (row["reward"] - rewards.mean()) / (rewards.std() + 1e-4)
        ratio = _ratio(model, tokenizer, row)
        terms.append(-torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean())
    return sum(terms) / len(terms)


def plain_nft(model, tokenizer, rows, reference):
    terms = []
    for row in rows:
        rewards = [r["reward"] for r in rows if r["group_id"] == row["group_id"]]
        rate = sum(rewards) / len(rewards)
        ratio = _ratio(model, tokenizer, row)
        implied = (1 - rate * ratio) / (1 - rate)
        implied = implied + (implied.clamp(min=1.0) - implied).detach()
        gain = ratio.log() if row["reward"] else implied.log()
        terms.append(-(((1 - rate) / rate) ** 0.5) * gain.sum() / 1000.0)
    return sum(terms) / len(terms)


def _ratio(model, tokenizer, row):
    now = plain_logps(model, tokenizer, row["prompt"], row["completion"])
    return (now - torch.tensor(row["behaviour_logps"])).exp()


PLAIN = {"sft": plain_sft, "dpo": plain_dpo, "grpo": plain_grpo, "nft": plain_nft}


@pytest.fixture(scope="module", params=list(PLAIN))
def expected(request, base, reference, groups):
    """Objective, rows, parameters after the step, loss before it."""
    rows = {"sft": trainer_tiny.sft_rows(12), "dpo": trainer_tiny.pair_rows(8)}.get(request.param, groups)
    other = load(reference)
    after, loss = plain_steps(base, lambda model, tokenizer: PLAIN[request.param](model, tokenizer, rows, other))
    return request.param, rows, after, loss


@pytest.mark.parametrize("way", list(WAYS))
def test_one_step_equals_plain_pytorch(expected, way, base, reference, tmp_path):
    objective, rows, after, loss = expected
    job = TrainJob(
        init=base,
        reference=reference,
        examples=write_examples(tmp_path / "examples.parquet", rows),
        output=tmp_path / "policy",
        work=tmp_path / "work",
        objective=objective,
        train=ONE_STEP | WAYS[way],
        seed=0,
    )
    result = train(job)
    assert result.steps == 1
    assert result.loss == pytest.approx(loss, abs=1e-5)
    assert_same(weights(result.output), after, 1e-5)
