"""One optimiser step of five objectives against plain PyTorch, however the step is cut, packed and shared out."""

from __future__ import annotations

import random

import pytest
import torch
import trainer_tiny
import two_ranks
from plain_training import assert_same, load, plain_logps, plain_steps, plain_values, weights

from strop.core.trainer.token_head import TokenHead, save_head
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
def with_critic(tmp_path_factory):
    """The base with a head that has learnt something."""
    policy, head = trainer_tiny.make_policy(tmp_path_factory.mktemp("policy") / "critic"), TokenHead(32)
    torch.manual_seed(2)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_head(head, policy, "value")
    return policy


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


def plain_ppo(model, tokenizer, rows, reference):
    """With the defaults; values and policy are still those that training found."""
    paid, values = [], []
    for row in rows:
        now = plain_logps(model, tokenizer, row["prompt"], row["completion"]).detach()
        token = -0.05 * (now - plain_logps(reference, tokenizer, row["prompt"], row["completion"]).detach())
        token[-1] += row["reward"]
        paid.append(token.tolist())
        values.append(plain_values(model, tokenizer, row["prompt"], row["completion"]))
    advantages, returns = [], []
    for token, value in zip(paid, values, strict=True):
        made, after, expected = [], 0.0, 0.0
        for r, v in zip(reversed(token), reversed(value.tolist()), strict=True):
            after = r + expected - v + 0.95 * after
            expected = v
            made.insert(0, after)
        advantages.append(torch.tensor(made))
        returns.append(advantages[-1] + value.detach())
    spread = torch.cat(advantages)
    terms = []
    for row, made, value, target in zip(rows, advantages, values, returns, strict=True):
        advantage = (made - spread.mean()) / spread.std()
        ratio = _ratio(model, tokenizer, row)
        actor = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        terms.append((actor + 5 * (value - target) ** 2 / 2).mean())
    return sum(terms) / len(terms)


def _ratio(model, tokenizer, row):
    now = plain_logps(model, tokenizer, row["prompt"], row["completion"])
    return (now - torch.tensor(row["behaviour_logps"])).exp()


PLAIN = {"sft": plain_sft, "dpo": plain_dpo, "grpo": plain_grpo, "nft": plain_nft, "ppo": plain_ppo}


TOGETHER = {
    "two processes": {"micro_batch_tokens": 110},
    "two processes that share the layers": {"micro_batch_tokens": 110, "shard": True},
}


@pytest.fixture(scope="module")
def rows(groups):
    """The examples of every objective."""
    alone = {"sft": trainer_tiny.sft_rows(12), "dpo": trainer_tiny.pair_rows(8)}
    return alone | dict.fromkeys(("grpo", "nft", "ppo"), groups)


@pytest.fixture(scope="module")
def make(base, with_critic, reference, rows, tmp_path_factory):
    """make(objective, **train): a job in a folder of its own."""

    def job(objective, **values):
        where, settings = tmp_path_factory.mktemp("job"), ONE_STEP | values
        init = with_critic if objective == "ppo" else base
        return trainer_tiny.job(where, init, rows[objective], objective, reference=reference, train=settings)

    return job


@pytest.fixture(scope="module")
def expected(base, with_critic, reference, rows):
    """By objective: parameters after the step, loss before it."""
    other = load(reference)
    return {
        name: plain_steps(
            with_critic if name == "ppo" else base,
            lambda model, tokenizer, n=name: PLAIN[n](model, tokenizer, rows[n], other),
        )
        for name in PLAIN
    }


@pytest.fixture(scope="module")
def together(make, tmp_path_factory):
    """Objective and way -> the policy that two processes trained; and an adapter of theirs."""
    jobs = {(name, way): make(name, **TOGETHER[way]) for name in PLAIN for way in TOGETHER}
    jobs["adapter", "one process"] = make("dpo", lora={"r": 4}, lr=1e-2)
    jobs["adapter", "two"] = make("dpo", lora={"r": 4}, shard=True, micro_batch_tokens=110, lr=1e-2)
    shared = [job for (_, way), job in jobs.items() if way != "one process"]
    assert two_ranks.together(shared, tmp_path_factory.mktemp("ranks") / "all") == 0
    train(jobs["adapter", "one process"])
    return {key: job.output for key, job in jobs.items()}


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("objective", list(PLAIN))
def test_one_step_equals_plain_pytorch(expected, make, objective, way):
    after, loss = expected[objective]
    result = train(make(objective, **WAYS[way]))
    assert result.steps == 1
    assert result.loss == pytest.approx(loss, abs=1e-5)
    assert_same(weights(result.output), after, 1e-5)


@pytest.mark.parametrize("way", list(TOGETHER))
@pytest.mark.parametrize("objective", list(PLAIN))
def test_one_step_of_two_processes_equals_plain_pytorch(expected, together, objective, way):
    assert_same(weights(together[objective, way]), expected[objective][0], 1e-5)


def test_adapters_of_sharded_layers_end_like_those_of_one_process(together):
    alone, shared = weights(together["adapter", "one process"]), weights(together["adapter", "two"])
    assert_same(shared, alone, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_two_processes_that_were_killed_go_on_where_they_were(make, tmp_path, shard):
    settings = {"epochs": 4, "lr": 1e-2, "save_every_steps": 1, "micro_batch_tokens": 110, "shard": shard}
    whole, broken = make("sft", **settings), make("sft", **settings)
    assert two_ranks.together([whole], tmp_path / "whole") == 0
    assert two_ranks.together([broken], tmp_path / "broken", stop_after=2) == 3
    assert not broken.output.exists()
    kept = torch.load(broken.work / "checkpoint.pt", weights_only=True)["metrics"]
    assert [m["step"] for m in kept] == [1, 2]
    assert two_ranks.together([broken], tmp_path / "again") == 0
    assert_same(weights(broken.output), weights(whole.output), 1e-6)
