"""Elastic weight consolidation: held against plain PyTorch, with adapters, killed, and by two processes."""

from __future__ import annotations

import json

import pytest
import real_training
import tiny_run
import torch
import trainer_tiny
import two_ranks
from plain_training import assert_same, load, plain_logps, plain_steps, weights
from pydantic import ValidationError

from strop.core.keeping import read_sample
from strop.core.trainer import elastic
from strop.core.trainer.config import Train
from strop.core.trainer.job import TrainJob, write_examples
from strop.core.trainer.train import train
from strop.storage.errors import DataError, RecipeError, StageError

STEPS = {"epochs": 3, "batch_tokens": 10**6, "lr": 1e-2, "warmup": 0.0, "schedule": "constant"}
EWC = {"weight": 5.0, "sample": "trained"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return trainer_tiny.make_policy(tmp_path_factory.mktemp("policy") / "base")


@pytest.fixture(scope="module")
def make(base, tmp_path_factory):
    """make(rows, kept, **train): a job in a folder of its own."""

    def job(rows, kept, objective="sft", **values):
        where = tmp_path_factory.mktemp("job")
        return TrainJob(
            init=values.pop("init", base),
            reference=base,
            examples=write_examples(where / "examples.parquet", rows),
            kept=None if kept is None else write_examples(where / "kept.parquet", kept),
            output=where / "policy",
            work=where / "work",
            objective=objective,
            train=STEPS | {"ewc": EWC} | values,
            seed=0,
        )

    return job


ROWS, KEPT = trainer_tiny.sft_rows(16)[:12], trainer_tiny.sft_rows(16)[12:]


def plain_fisher(model, tokenizer, rows, names):
    found = dict.fromkeys(names, 0.0)
    for row in rows:
        model.zero_grad()
        plain_logps(model, tokenizer, row["prompt"], row.get("chosen", row.get("completion"))).sum().backward()
        found = {name: found[name] + p.grad**2 / len(rows) for name, p in model.named_parameters() if name in names}
    model.zero_grad()
    return found


def plain_elastic(kept, weight):
    """SFT on `ROWS` with the penalty, from the formula."""
    known = {}

    def loss_of(model, tokenizer):
        if not known:
            start = {name: p.detach().clone() for name, p in model.named_parameters()}
            known.update(start=start, fisher=plain_fisher(model, tokenizer, kept, start))
        logps = [plain_logps(model, tokenizer, r["prompt"], r["completion"]) for r in ROWS]
        moved = {name: (p - known["start"][name]) ** 2 for name, p in model.named_parameters()}
        penalty = weight / 2 * sum((known["fisher"][name] * moved[name]).sum() for name in moved)
        return -sum(x.sum() for x in logps) / sum(len(x) for x in logps) + penalty

    return loss_of


@pytest.fixture(scope="module")
def expected(base):
    return plain_steps(base, plain_elastic(KEPT, 5.0), (1e-2,) * 3)


@pytest.mark.parametrize("way", [{}, {"micro_batch_tokens": 110}, {"micro_batch_tokens": 90, "packing": True}])
def test_three_steps_equal_plain_pytorch(expected, make, way):
    result = train(make(ROWS, KEPT, **way))
    after, loss = expected
    assert result.metrics[-1]["loss"] == pytest.approx(loss, abs=1e-4)
    assert result.metrics[0]["ewc"] == 0.0
    assert result.metrics[2]["ewc"] > 1e-3
    assert_same(weights(result.output), after, 1e-4)


def test_what_is_to_be_kept_is_kept_better(base, make):
    def forgotten(job):
        from transformers import AutoTokenizer

        policy, tokenizer = load(train(job).output), AutoTokenizer.from_pretrained(base)
        with torch.no_grad():
            return [-plain_logps(policy, tokenizer, r["prompt"], r["completion"]).sum().item() for r in learned]

    learned = [row | {"example_id": i, "completion": "ab"[i // 4] * 4} for i, row in enumerate(KEPT * 2)]
    old = train(make(learned, None, epochs=30)).output
    free = forgotten(make(ROWS, learned, init=old, epochs=30, ewc=None))
    held = forgotten(make(ROWS, learned, init=old, epochs=30, ewc={"weight": 1000.0, "sample": "trained"}))
    assert sum(held) < 0.5 * sum(free)


def test_of_pairs_the_chosen_completion_is_kept(base, make):
    from transformers import AutoTokenizer

    job = make(trainer_tiny.pair_rows(8), trainer_tiny.pair_rows(4), objective="dpo", ewc={"weight": 1.0})
    assert train(job).metrics[-1]["ewc"] > 0
    model = load(base)
    names = [name for name, _ in model.named_parameters()]
    wanted = plain_fisher(model, AutoTokenizer.from_pretrained(base), trainer_tiny.pair_rows(4), names)
    found = read_fisher(job)
    assert_same(found, wanted, 1e-4)


def read_fisher(job):
    from safetensors.torch import load_file

    return load_file(job.work / "fisher.safetensors")


def test_adapters_are_held_by_what_they_add_to_the_weights(base, make):
    from transformers import AutoTokenizer

    lora = {"r": 4, "alpha": 8}
    job, free = (make(ROWS, KEPT, lora=lora, ewc=ewc) for ewc in (EWC, None))
    metrics = train(job).metrics
    model = load(base)
    linear = [n for n, p in model.named_parameters() if "proj" in n]
    wanted = plain_fisher(model, AutoTokenizer.from_pretrained(base), KEPT, linear)
    found = {f"{name}.weight": values for name, values in read_fisher(job).items()}
    assert_same(found, wanted, 1e-4)

    start = weights(base)
    train(free)

    def cost(policy):
        after = weights(policy)
        return 2.5 * sum((wanted[n] * (after[n] - start[n]) ** 2).sum().item() for n in linear)

    assert cost(job.output) < 0.9 * cost(free.output)
    assert metrics[0]["ewc"] == 0.0
    longer = train(make(ROWS, KEPT, lora=lora, epochs=4)).metrics  # the penalty before step 4: after step 3
    assert longer[3]["ewc"] == pytest.approx(cost(job.output), rel=1e-3)


def test_a_kept_adapter_is_held_where_it_was(make):
    lora = {"r": 4, "alpha": 8, "merge": False}
    first = train(make(ROWS, None, lora=lora, ewc=None)).output
    metrics = train(make(ROWS, KEPT, lora=lora, init=first)).metrics
    assert metrics[0]["ewc"] == 0.0
    assert metrics[2]["ewc"] > 0


class Killed(BaseException):
    """In place of a kill."""


@pytest.mark.parametrize("lora", [None, {"r": 2, "dropout": 0.3}])
def test_a_killed_training_goes_on_with_the_fisher_information_it_had(make, monkeypatch, lora):
    def kill(told):
        if told["step"] == 2:
            raise Killed

    settings = {"lora": lora, "save_every_steps": 1}
    whole, broken = make(ROWS, KEPT, **settings), make(ROWS, KEPT, **settings)
    metrics = train(whole).metrics
    with pytest.raises(Killed):
        train(broken, kill)
    monkeypatch.setattr(elastic, "_fisher", None)
    assert train(broken).metrics == metrics
    assert (whole.output / "model.safetensors").read_bytes() == (broken.output / "model.safetensors").read_bytes()


def test_a_sample_that_changed_is_another_job(make):
    one, other = make(ROWS, KEPT), make(ROWS, KEPT[:2])
    assert one.key() != other.key()


@pytest.mark.slow
def test_two_processes_hold_the_same_weights(expected, make, tmp_path):
    jobs = [make(ROWS, KEPT, micro_batch_tokens=110, shard=shard) for shard in (False, True)]
    adapter = make(ROWS, KEPT, micro_batch_tokens=110, lora={"r": 4})
    assert two_ranks.together([*jobs, adapter], tmp_path / "two") == 0
    for job in jobs:
        assert_same(weights(job.output), expected[0], 1e-4)
    assert_same(weights(adapter.output), weights(train(make(ROWS, KEPT, lora={"r": 4})).output), 1e-4)


def test_what_cannot_be_held_is_refused(make):
    with pytest.raises(ValidationError, match="write dora: false"):
        Train(ewc=EWC, lora={"dora": True})
    with pytest.raises(ValidationError, match="write shard: false"):
        Train(ewc=EWC, lora={}, shard=True)
    with pytest.raises(ValidationError, match=r"a file that ends in .jsonl is expected, got 'old'"):
        Train(ewc={"weight": 1, "sample": "old"})
    long = [KEPT[0] | {"completion": "1" * 60}]
    with pytest.raises(StageError, match=r"train.ewc, sample trained: these examples are longer .* 112"):
        train(make(ROWS, long))
    assert "ewc" not in Train().decisive()


def samples(folder, monkeypatch, ewc, rounds=1):
    """What the trainings of a loop were to keep."""
    train = {"objective": "reinforce", "lr": 1e-3, "ewc": ewc}
    found = real_training.loop(folder, monkeypatch, {"build": "grouped"}, {"train": train}, rounds=rounds)
    return [each.kept for each in found]


def test_a_round_holds_on_to_examples_of_earlier_ones(tmp_path, monkeypatch):
    first, second, third = samples(tmp_path, monkeypatch, {"weight": 1.0, "examples": 30}, rounds=3)
    assert first is None
    assert second.num_rows == 24
    assert third.num_rows == 30  # of 48
    assert set(second.column("example_id").to_pylist()) & set(third.column("example_id").to_pylist())


def test_a_file_says_what_to_keep(tmp_path, monkeypatch):
    lines = [{"prompt": f"{i}+1=", "completion": f"{i + 1}"} for i in range(9)]
    (tmp_path / "old.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (sample,) = samples(tmp_path, monkeypatch, {"weight": 1.0, "sample": "old.jsonl", "examples": 4})
    assert set(sample.column("prompt").to_pylist()) < {line["prompt"] for line in lines}
    assert sample.num_rows == 4


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"prompt": "1"}', "old.jsonl:1: an object with `prompt` and `completion` is expected"),
        ('{"prompt": "1", "completion": "2"}\nno', "old.jsonl:2: not JSON"),
        ("", "is empty: one JSON object a line"),
        (None, "there is no file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, content, says):
    if content is not None:
        (tmp_path / "old.jsonl").write_text(content)
    with pytest.raises(DataError, match=says):
        read_sample(tmp_path / "old.jsonl")


def test_a_model_with_scores_has_nothing_to_hold_it_by(tmp_path):
    stages = tiny_run.stages(build="best_worst")
    stages.insert(5, {"train_reward": {"objective": "bradley_terry", "ewc": {"weight": 1.0}}})
    with pytest.raises(RecipeError, match="ewc goes by log-probabilities, and 'bradley_terry' has none"):
        tiny_run.write(tmp_path, stages)
