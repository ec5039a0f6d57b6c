"""Trainings with a reward model's word on each token, and of such a model: against plain PyTorch, killed, refused."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
import trainer_tiny
import two_ranks
from plain_training import assert_same, load, plain_logps, plain_steps, weights

from strop.core.trainer import known, reference
from strop.core.trainer.job import TokenScorer, TrainJob, write_examples
from strop.core.trainer.scorer import HeadScorer
from strop.core.trainer.token_head import TokenHead, load_head, save_head
from strop.core.trainer.train import train
from strop.storage.errors import StageError

ONE_STEP = {"epochs": 1, "batch_tokens": 10**6, "lr": 1e-3, "warmup": 0.0, "schedule": "constant"}
WAYS = {
    "whole": {"micro_batch_tokens": 10**6},
    "four packed micro-batches": {"micro_batch_tokens": 90, "packing": True},
}
BETA = 0.5


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """By name: the policy, another one as reference, an implicit reward model, and one with a head."""
    folder = tmp_path_factory.mktemp("policies")
    found = {
        name: trainer_tiny.make_policy(folder / name, seed=seed)
        for seed, name in enumerate(("base", "reference", "implicit", "token"))
    }
    head = TokenHead(32)
    torch.manual_seed(7)
    torch.nn.init.normal_(head.weight, std=0.5)
    save_head(head, found["token"], "outcome")
    return found


@pytest.fixture(scope="module")
def rows(policies):
    """Three groups of four with outcomes; behaviour log-probabilities are the policy's own, shaken."""
    from transformers import AutoTokenizer

    model, tokenizer = load(policies["base"]), AutoTokenizer.from_pretrained(policies["base"])
    rng = random.Random(1)
    found = []
    for i, row in enumerate(trainer_tiny.sft_rows(12)):
        with torch.no_grad():
            own = plain_logps(model, tokenizer, row["prompt"], row["completion"]).tolist()
        more = {
            "kind": "group",
            "group_id": i // 4,
            "reward": float(i in (0, 1, 4, 6, 8)),
            "completion_token_ids": [*tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id],
            "behaviour_logps": [min(-1e-3, logp + rng.gauss(0, 0.2)) for logp in own],
        }
        found.append({**row, **more})
    return found


@pytest.fixture(scope="module")
def make(policies, rows, tmp_path_factory):
    """make(objective, **train): a job in a folder of its own."""

    def job(objective, examples=rows, **values):
        where = tmp_path_factory.mktemp("job")
        implicit = TokenScorer(policies["implicit"], policies["reference"], BETA)
        return TrainJob(
            init=policies["base"],
            reference=policies["reference"],
            scorer={"prime": implicit, "oreal": TokenScorer(policies["token"])}.get(objective),
            examples=write_examples(where / "examples.parquet", examples),
            output=where / "policy",
            work=where / "work",
            objective=objective,
            objective_config={"pair": False, "kl": 0.1} if objective == "oreal" else {},
            train=ONE_STEP | values,
            seed=0,
        )

    return job


def _logps(model, tokenizer, rows):
    return [plain_logps(model, tokenizer, row["prompt"], row["completion"]) for row in rows]


def _scores(model, head, tokenizer, row):
    """[T] the head's numbers, where each token is predicted from."""
    before = tokenizer(row["prompt"])["input_ids"]
    ids = torch.tensor([before + row["completion_token_ids"]])
    hidden = model(ids, output_hidden_states=True).hidden_states[-1]
    return head(hidden)[0, len(before) - 1 : -1]


def _others(row, rows, value):
    """`value` of the row less its mean over the rest of the group."""
    rest = [value(r) for r in rows if r["group_id"] == row["group_id"] and r is not row]
    return value(row) - sum(rest) / len(rest)


def plain_prime(model, tokenizer, rows, policies):
    with torch.no_grad():
        own, theirs = (_logps(load(policies[name]), tokenizer, rows) for name in ("implicit", "reference"))
    paid = {id(row): BETA * (a - b) for row, a, b in zip(rows, own, theirs, strict=True)}
    advantages = []
    for row in rows:
        means = [paid[id(r)].mean() for r in rows if r["group_id"] == row["group_id"]]
        each = paid[id(row)] * len(means) / (len(means) - 1) - sum(means) / (len(means) - 1)
        advantages.append(each.flip(0).cumsum(0).flip(0) + _others(row, rows, lambda r: r["reward"]))
    flat = torch.cat(advantages)
    terms = []
    for row, now, advantage in zip(rows, _logps(model, tokenizer, rows), advantages, strict=True):
        ratio = (now - torch.tensor(row["behaviour_logps"])).exp()
        advantage = (advantage - flat.mean()) / flat.std()
        terms.append(-torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage))
    return torch.cat(terms).mean()


def plain_oreal(model, tokenizer, rows, policies):
    scorer = load(policies["token"])
    head = load_head(policies["token"], "outcome", scorer)
    parts, near = {0.0: [], 1.0: []}, []
    for row, now in zip(rows, _logps(model, tokenizer, rows), strict=True):
        with torch.no_grad():
            z = _scores(scorer, head, tokenizer, row)
            other = plain_logps(load(policies["reference"]), tokenizer, row["prompt"], row["completion"])
        chance = torch.sigmoid(z.cumsum(0) / torch.arange(1, len(z) + 1))
        weight = (((chance if row["reward"] else 1 - chance) - 0.5) / 0.5).clamp(0, 1)
        term = -now if row["reward"] else -torch.exp(now - now.detach())
        parts[row["reward"]].append(weight * term * _others(row, rows, lambda r: 2 * r["reward"] - 1))
        near.append(torch.exp(other - now) - (other - now) - 1)
    wrong, right = (torch.cat(parts[reward]).mean() for reward in (0.0, 1.0))
    return right + 0.5 * wrong + 0.1 * torch.cat(near).mean()


PLAIN = {"prime": plain_prime, "oreal": plain_oreal}


@pytest.fixture(scope="module")
def expected(policies, rows):
    """By objective: parameters after the step, loss before it."""
    base = policies["base"]
    return {
        name: plain_steps(base, lambda model, tokenizer, n=name: PLAIN[n](model, tokenizer, rows, policies))
        for name in PLAIN
    }


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("objective", list(PLAIN))
def test_one_step_equals_plain_pytorch(expected, make, objective, way):
    after, loss = expected[objective]
    result = train(make(objective, **WAYS[way]))
    assert result.loss == pytest.approx(loss, abs=1e-5)
    assert_same(weights(result.output), after, 1e-5)


def _trained_model(policies, rows):
    """One step of AdamW on the outcomes, head and layers together."""
    from transformers import AutoTokenizer

    model, tokenizer = load(policies["base"]), AutoTokenizer.from_pretrained(policies["base"])
    head = TokenHead(32)
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=1e-3, weight_decay=0.0)
    means = torch.stack([_scores(model, head, tokenizer, row).mean() for row in rows])
    outcomes = torch.tensor([r["reward"] for r in rows])
    evened = torch.where(outcomes == 1, 12 / (2 * 5), 12 / (2 * 7))
    loss = torch.nn.functional.binary_cross_entropy_with_logits(means, outcomes, weight=evened)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([*model.parameters(), *head.parameters()], 1.0)
    optimizer.step()
    return loss.item(), dict(model.named_parameters()), dict(head.named_parameters())


@pytest.fixture(scope="module")
def together(make, tmp_path_factory):
    """By objective: what two processes made that share micro-batches, and layers."""
    jobs = {name: make(name, micro_batch_tokens=110, shard=True) for name in (*PLAIN, "token_outcome")}
    assert two_ranks.together(list(jobs.values()), tmp_path_factory.mktemp("ranks") / "all") == 0
    return {name: job.output for name, job in jobs.items()}


@pytest.mark.parametrize("way", [*WAYS, "two processes"])
def test_a_token_reward_model_is_trained_like_plain_pytorch(policies, rows, make, together, way):
    loss, model, head = _trained_model(policies, rows)
    if way == "two processes":
        output = together["token_outcome"]
    else:
        result = train(make("token_outcome", **WAYS[way]))
        assert result.loss == pytest.approx(loss, abs=1e-5)
        output = result.output
    assert_same(weights(output), model, 1e-5)
    ours = dict(load_head(output, "outcome", load(output)).named_parameters())
    assert_same({"weight": ours["weight"]}, {"weight": head["weight"]}, 1e-5)  # the bias has a slope of 0, and noise


@pytest.mark.parametrize("objective", list(PLAIN))
def test_one_step_of_two_processes_equals_plain_pytorch(expected, together, objective):
    assert_same(weights(together[objective]), expected[objective][0], 1e-5)


def test_a_token_reward_model_gives_a_completion_the_mean(policies, rows):
    from transformers import AutoTokenizer

    model, tokenizer = load(policies["token"]), AutoTokenizer.from_pretrained(policies["token"])
    head = load_head(policies["token"], "outcome", model)
    found = HeadScorer(policies["token"], 1).scores([(row["prompt"], row["completion"]) for row in rows])
    with torch.no_grad():
        by_hand = [_scores(model, head, tokenizer, row).mean().item() for row in rows]
    assert found == pytest.approx(by_hand, abs=1e-5)
    assert len({round(score, 4) for score in found}) > 6


def test_it_learns_outcomes_and_goes_on_from_its_own_head(make, rows):
    settings = {"epochs": 40, "lr": 5e-3, "batch_tokens": 60}
    job = make("token_outcome", **settings)
    result = train(job)
    assert result.metrics[-1]["loss"] < 0.3 < result.metrics[0]["loss"]
    again = replace(job, init=job.output, output=job.output.with_name("next"), work=job.output.with_name("work2"))
    train(replace(again, train={**job.train, "epochs": 1, "lr": 1e-12}))
    pairs = [(row["prompt"], row["completion"]) for row in rows]
    assert HeadScorer(again.output, 1).scores(pairs) == pytest.approx(HeadScorer(job.output, 1).scores(pairs), abs=1e-4)


def test_adapters_leave_the_head_trained_whole(make):
    job = make("token_outcome", lora={"r": 4}, lr=1e-2)
    train(job)
    assert load_head(job.output, "outcome", load(job.output)).weight.abs().max() > 1e-3


@pytest.mark.parametrize("objective", [*PLAIN, "token_outcome"])
def test_killed_it_ends_with_the_same_bytes_and_asks_no_reward_model_again(make, monkeypatch, objective):
    settings = {"epochs": 4, "lr": 1e-2, "batch_tokens": 40, "save_every_steps": 1}
    asked = []
    original = reference.reference_logps

    def counted(items, *arguments, **named):
        asked.append(len(items))
        return original(items, *arguments, **named)

    monkeypatch.setattr(reference, "reference_logps", counted)
    whole, broken = make(objective, **settings), make(objective, **settings)
    steps = train(whole).steps
    once = len(asked)
    assert once == {"prime": 2, "oreal": 2, "token_outcome": 0}[objective]

    class Killed(Exception):
        pass

    def stop(told):
        if told["step"] == steps // 2:
            raise Killed

    with pytest.raises(Killed):
        train(broken, stop)
    assert len(asked) == 2 * once
    train(broken)
    assert len(asked) == 2 * once
    files, others = ({p.name: p.read_bytes() for p in j.output.rglob("*.safetensors")} for j in (whole, broken))
    assert files == others
    assert len(files) == (2 if objective == "token_outcome" else 1)


def test_what_comes_along_with_the_examples_is_not_computed(make, rows, monkeypatch):
    from transformers import AutoTokenizer

    job = make("prime")
    first = train(job)
    tokenizer = AutoTokenizer.from_pretrained(job.init)
    scorer = job.scorer
    with torch.no_grad():
        given = [
            {
                **row,
                "completion_scorer_logps": own.tolist(),
                "completion_scorer_reference_logps": theirs.tolist(),
            }
            for row, own, theirs in zip(
                rows, *(_logps(load(path), tokenizer, rows) for path in (scorer.model, scorer.reference)), strict=True
            )
        ]
    monkeypatch.setattr(reference, "reference_logps", None)
    again = train(make("prime", given))
    assert again.loss == pytest.approx(first.loss, abs=1e-5)
    short = [{**given[0], "completion_scorer_logps": [-1.0]}]
    with pytest.raises(StageError, match=r"completion_scorer_logps must have one entry for each .*example ids 100"):
        make("prime", short)


def test_an_objective_without_its_reward_model_is_refused(make):
    with pytest.raises(StageError, match="'prime' has tokens scored by a reward model, and the job names none"):
        train(replace(make("prime"), scorer=None))


def test_the_reference_that_an_objective_has_itself_is_not_read_twice(make, policies, monkeypatch):
    loaded = []
    original = known.frozen_logps

    def counted(job, name, *arguments, **named):
        loaded.append(name)
        return original(job, name, *arguments, **named)

    monkeypatch.setattr(known, "frozen_logps", counted)
    train(replace(make("oreal"), scorer=TokenScorer(policies["implicit"], policies["reference"])))
    assert sorted(loaded) == ["reference", "scorer"]
