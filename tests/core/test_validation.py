"""Examples held back: which, when training stops by them, and what comes of it."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import trainer_tiny
from plain_training import load, plain_logps, weights

from strop.core.trainer.encode import encode
from strop.core.trainer.job import read_examples, write_examples
from strop.core.trainer.train import train
from strop.core.trainer.validation import held_back
from strop.storage.errors import StageError

OVERFITTING = {"epochs": 40, "batch_tokens": 60, "lr": 2e-2, "schedule": "constant", "warmup": 0.0}
VALIDATION = {"share": 0.25, "patience": 3}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return trainer_tiny.make_policy(tmp_path_factory.mktemp("policy") / "base")


@pytest.fixture
def tokenizer(base):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


@pytest.fixture
def job(base, tmp_path):
    def make(rows, objective="sft", name="job", **values):
        return trainer_tiny.job(tmp_path / name, base, rows, objective, train=values)

    return make


def test_whole_prompts_and_groups_are_held_back(tokenizer, tmp_path):
    made = trainer_tiny.sft_rows(14)
    rows = [row | {"kind": "group", "group_id": i // 3, "reward": 1.0} for i, row in enumerate(made[:9])]
    rows += [{**row, "example_id": 50 + i} for i, row in enumerate(made[9:] * 2)]
    table = read_examples(write_examples(tmp_path / "examples.parquet", rows))
    items = encode(table, tokenizer, max_length=48, longest="the context")
    splits, order = set(), [row["example_id"] for row in rows]
    for seed in range(8):
        kept, watched = held_back(items, 0.3, seed)
        assert len(kept) + len(watched) == len(items)
        assert 0.3 * len(items) <= len(watched) <= 0.3 * len(items) + 3
        assert [i.example_id for i in kept] == [i for i in order if i in {k.example_id for k in kept}]
        assert not {i.group_id for i in kept if i.group_id >= 0} & {i.group_id for i in watched}
        texts = [{bytes(i.sequences[0].ids[: i.sequences[0].prompt_length]) for i in part if i.group_id < 0}
                 for part in (kept, watched)]  # fmt: skip
        assert not texts[0] & texts[1]
        splits.add(tuple(i.example_id for i in watched))
    assert len(splits) > 1
    assert held_back(items, 0.3, 0) == held_back(items, 0.3, 0)


@pytest.mark.parametrize(("share", "left"), [(0.99, "train on"), (0.5, "train on")])
def test_a_share_that_leaves_nothing_is_refused(tokenizer, tmp_path, share, left):
    rows = [row | {"prompt": "1+1="} for row in trainer_tiny.sft_rows(6)]
    table = read_examples(write_examples(tmp_path / "examples.parquet", rows))
    items = encode(table, tokenizer, max_length=48, longest="the context")
    with pytest.raises(StageError, match=f"of 6 examples of 1 prompts leaves none to {left}"):
        held_back(items, share, 0)


@pytest.mark.parametrize(("objective", "make"), [("sft", trainer_tiny.sft_rows), ("dpo", trainer_tiny.pair_rows)])
def test_training_stops_when_the_loss_on_them_rises_and_keeps_the_best(job, objective, make):
    result = train(job(make(24), objective, validation=VALIDATION, **OVERFITTING))
    looks = {m["step"]: m["validation_loss"] for m in result.metrics if "validation_loss" in m}
    best = min(looks, key=looks.get)
    steps = list(looks)
    assert len({b - a for a, b in pairwise(steps)}) == 1
    assert result.steps == len(result.metrics) == steps[-1] == steps[steps.index(best) + 3]
    assert result.steps < 40 * steps[0]
    assert looks[best] < min(looks[s] for s in steps if s > best)
    assert len(result.held_back) + result.examples == 24


def test_the_policy_is_that_of_the_best_look(job, tokenizer):
    rows = trainer_tiny.sft_rows(24)
    result = train(job(rows, validation=VALIDATION, **OVERFITTING))
    model = load(result.output)
    seen = [r for r in rows if r["example_id"] in result.held_back]
    logps = [plain_logps(model, tokenizer, r["prompt"], r["completion"]) for r in seen]
    loss = -(sum(x.sum() for x in logps) / sum(len(x) for x in logps)).item()
    looks = [m["validation_loss"] for m in result.metrics if "validation_loss" in m]
    assert loss == pytest.approx(min(looks), abs=1e-5)
    assert loss < looks[-1] - 1e-3


def test_a_killed_training_goes_on_with_the_same_best(job):
    rows = trainer_tiny.sft_rows(24)
    settings = {"validation": VALIDATION, "save_every_steps": 1, **OVERFITTING}
    whole = train(job(rows, name="whole", **settings))
    for stop in (2, whole.steps - 1, whole.steps):
        broken = job(rows, name=f"broken{stop}", **settings)

        def kill(told, stop=stop):
            if told["step"] == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(broken, kill)
        again = train(broken)
        assert again.metrics == whole.metrics
        assert all((a == b).all() for a, b in zip(*(weights(r.output).values() for r in (again, whole)), strict=True))


def test_without_validation_every_epoch_is_trained(job):
    result = train(job(trainer_tiny.sft_rows(24), **OVERFITTING | {"epochs": 3}))
    assert result.held_back == []
    assert not any("validation_loss" in m for m in result.metrics)
    assert dataclasses.asdict(result)["examples"] == 24
