"""Inputs replaced before the policy reads them, and what an objective knows of the course of its training."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
import trainer_tiny
import two_ranks
from plain_training import assert_same, weights

import strop.core.trainer.train as module
from strop.core.corruption import Corruption
from strop.core.plugin import Config, stage
from strop.core.registry import Plugin, find
from strop.core.trainer.batches import inputs, plan
from strop.core.trainer.corrupt import Corrupter, mask_token
from strop.core.trainer.encode import encode
from strop.core.trainer.job import read_examples, write_examples
from strop.core.trainer.logps import Reader, TokenLogps
from strop.core.trainer.look import likeliest, step_entropy
from strop.core.trainer.objective import Loss
from strop.core.trainer.train import train
from strop.storage.errors import StageError

FOUR_STEPS = {"epochs": 2, "batch_tokens": 90, "lr": 1e-2, "save_every_steps": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return trainer_tiny.make_policy(tmp_path_factory.mktemp("policy") / "base")


@pytest.fixture
def job(base, tmp_path):
    def make(rows, objective, *, config=None, seed=0, **values):
        where = tmp_path / f"job{len(list(tmp_path.iterdir()))}"
        settings = {"objective_config": config or {}, "train": FOUR_STEPS | values, "seed": seed}
        return trainer_tiny.job(where, base, rows, objective, **settings)

    return make


def tokenizer(directory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


def model(directory):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory).eval()


@pytest.fixture
def items(base, tmp_path):
    rows = [row | {"loss_spans": [0, 2] if i == 0 else None} for i, row in enumerate(trainer_tiny.sft_rows(40))]
    table = read_examples(write_examples(tmp_path / "examples.parquet", rows))
    return encode(table, tokenizer(base), max_length=48, longest="the context")


def corrupter(base, wanted, seed=3, packed=False):
    read = Reader(TokenLogps(model(base)), "cpu", packed=packed)
    return Corrupter(lambda progress: wanted, tokenizer(base), read, seed)


def one_step(items, micro=10**6):
    (step,) = plan(items, epochs=1, batch_tokens=10**6, micro_batch_tokens=micro, seed=0)
    return step


def test_a_share_of_the_tokens_that_the_loss_covers_reads_as_masked(base, items):
    found = corrupter(base, Corruption(0.4, "mask")).step(items, one_step(items), 0, 0.0)
    assert sorted(found) == list(range(40))
    hidden = covered = 0
    for i, item in found.items():
        before, after = items[i].sequences[0], item.sequences[0]
        assert (after.ids == before.ids).all()
        changed = after.read != after.ids
        assert (after.read[changed] == 0).all()
        assert not changed[: after.prompt_length].any()
        assert (changed[after.prompt_length :] <= (after.mask > 0)).all()
        hidden, covered = hidden + changed.sum(), covered + after.mask.sum()
    assert hidden / covered == pytest.approx(0.4, abs=0.06)
    assert items[0].sequences[0].mask.sum() < len(items[0].sequences[0].mask)


def test_targets_stay_what_they_were(base, items):
    found = corrupter(base, Corruption(0.9, "mask")).step(items, one_step(items), 0, 0.0)
    order = range(40)
    plain = inputs([items[i].sequences[0] for i in order], "cpu")
    masked = inputs([found[i].sequences[0] for i in order], "cpu")
    for name in ("row", "at", "slot", "target", "mask"):
        assert torch.equal(getattr(plain, name), getattr(masked, name)), name
    assert not torch.equal(plain.ids, masked.ids)


def reads(found):
    return {i: item.sequences[0].read.tolist() for i, item in found.items()}


@pytest.mark.parametrize("by", ["mask", "own"])
def test_what_is_replaced_goes_by_seed_step_and_example_alone(base, items, by):
    wanted = Corruption(0.5, by)
    whole = reads(corrupter(base, wanted).step(items, one_step(items), 4, 0.0))
    assert reads(corrupter(base, wanted).step(items, one_step(items, micro=60), 4, 0.9)) == whole
    assert reads(corrupter(base, wanted, packed=True).step(items, one_step(items, micro=90), 4, 0.0)) == whole
    assert reads(corrupter(base, wanted).step(items, one_step(items), 5, 0.0)) != whole
    assert reads(corrupter(base, wanted, seed=4).step(items, one_step(items), 4, 0.0)) != whole


def test_its_own_token_is_the_likeliest_after_the_true_ones(base, items):
    found = corrupter(base, Corruption(1.0, "own")).step(items, one_step(items), 0, 0.0)
    sequence = found[7].sequences[0]
    with torch.no_grad():
        logits = model(base)(torch.tensor(sequence.ids)[None]).logits[0]
    p = sequence.prompt_length
    assert sequence.read[p:].tolist() == logits[p - 1 : -1].argmax(-1).tolist()
    assert sequence.read[:p].tolist() == sequence.ids[:p].tolist()


def test_both_sides_of_a_pair_are_corrupted(base, tmp_path):
    table = read_examples(write_examples(tmp_path / "pairs.parquet", trainer_tiny.pair_rows(12)))
    items = encode(table, tokenizer(base), max_length=48, longest="the context")
    found = corrupter(base, Corruption(0.7, "mask")).step(items, one_step(items), 0, 0.0)
    for side in (0, 1):
        assert any((f.sequences[side].read != f.sequences[side].ids).any() for f in found.values())


def test_the_mask_is_a_token_that_says_nothing(base):
    found = tokenizer(base)
    assert mask_token(found, None) == 0  # its padding
    assert mask_token(found, "a") == found.convert_tokens_to_ids("a")
    with pytest.raises(StageError, match="no token '<nothing>'"):
        mask_token(found, "<nothing>")
    found.pad_token = found.eos_token
    with pytest.raises(StageError, match="neither a mask token nor a padding"):
        mask_token(found, None)
    found.mask_token = "b"
    assert mask_token(found, None) == found.convert_tokens_to_ids("b")


def test_the_loss_is_that_of_the_true_tokens_after_the_hidden_ones(base, job):
    """One step over all, everything hidden from the start: the policy reads the prompt and masks alone."""
    rows = trainer_tiny.sft_rows(6)
    config = {"share": 0.999999, "warmup": 0.0}
    found = train(job(rows, "masked_thought", config=config, epochs=1, batch_tokens=10**6)).metrics[0]["loss"]
    policy, words = model(base), tokenizer(base)
    total = count = 0
    for row in rows:
        prompt = words(row["prompt"])["input_ids"]
        target = [*words(row["completion"], add_special_tokens=False)["input_ids"], words.eos_token_id]
        with torch.no_grad():
            logits = policy(torch.tensor([[*prompt, *[0] * len(target)]])).logits[0, len(prompt) - 1 : -1]
        total -= logits.log_softmax(-1)[range(len(target)), target].sum().item()
        count += len(target)
    assert found == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("objective", ["masked_thought", "scheduled_sampling"])
def test_it_starts_as_plain_supervision_and_departs_from_it(job, objective):
    rows = trainer_tiny.sft_rows(24)
    plain, other = train(job(rows, "sft")).metrics, train(job(rows, objective)).metrics
    assert len(plain) == 4
    assert other[0]["loss"] == plain[0]["loss"]
    assert all(a["loss"] != b["loss"] for a, b in zip(plain[1:], other[1:], strict=True))


def content(directory):
    return hashlib.sha256(b"".join(p.read_bytes() for p in sorted(directory.glob("*.safetensors")))).hexdigest()


class Stopped(Exception):
    """Stands for a kill."""


def stop_after(step):
    def progress(report):
        if report["step"] == step:
            raise Stopped

    return progress


@pytest.mark.parametrize("objective", ["masked_thought", "scheduled_sampling"])
def test_a_training_that_was_stopped_ends_with_the_same_weights(job, objective):
    rows = trainer_tiny.sft_rows(24)
    config = {"warmup": 0.1} if objective == "masked_thought" else {"start": 0.3, "end": 0.6}
    lora = {"r": 2, "dropout": 0.3} if objective == "scheduled_sampling" else None
    whole, cut = (job(rows, objective, config=config, lora=lora) for _ in range(2))
    result = train(whole)
    with pytest.raises(Stopped):
        train(cut, stop_after(3))
    again = train(cut)
    assert again.metrics == result.metrics
    assert content(cut.output) == content(whole.output)


@pytest.mark.parametrize("objective", ["masked_thought", "scheduled_sampling"])
def test_neither_micro_batches_nor_packing_change_anything(job, objective):
    rows = trainer_tiny.sft_rows(24)
    config = {"warmup": 0.0} if objective == "masked_thought" else {"start": 0.5}
    found = [
        [m["loss"] for m in train(job(rows, objective, config=config, micro_batch_tokens=n, packing=p)).metrics]
        for n, p in ((10**6, False), (40, False), (100, True))
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[0] == pytest.approx(found[2], rel=1e-4)


class Watch(Config):
    """Nothing to set."""


def watching(monkeypatch, seen, **mark):
    """An objective that notes every batch; it stands for one of the user's."""

    @stage("objective", **mark)
    def look(config: Watch, *, batch) -> Loss:
        """Reports how often it was called."""
        seen.append(batch)
        logps = batch.chosen_logps if mark["examples"] == "pair" else batch.logps
        return Loss(-logps.mean(), {"called": 1.0, "history": float(len(getattr(batch, "history", ())))})

    monkeypatch.setattr(module, "find", lambda *_: Plugin("objective", "look", look, "here"))


def test_an_objective_knows_how_far_the_training_is_and_what_came_before(job, monkeypatch):
    seen = []
    watching(monkeypatch, seen, examples="sft")
    one = job(trainer_tiny.sft_rows(24), "look", micro_batch_tokens=10**6)
    with pytest.raises(Stopped):
        train(one, stop_after(3))
    result = train(one)
    # the third step is taken twice: it was not saved
    assert [b.progress for b in seen] == [0.0, 0.25, 0.5, 0.5, 0.75]
    assert [len(b.history) for b in seen] == [0, 1, 2, 2, 3]
    assert [m["history"] for m in result.metrics] == [0, 1, 2, 3]
    assert {"loss", "lr", "grad_norm", "tokens", "called"} <= set(seen[-1].history[0])


def test_pairs_know_how_far_the_training_is(job, monkeypatch):
    seen = []
    watching(monkeypatch, seen, examples="pair")
    train(job(trainer_tiny.pair_rows(24), "look", micro_batch_tokens=10**6, batch_tokens=100))
    assert [b.progress for b in seen] == pytest.approx([i / len(seen) for i in range(len(seen))])
    assert len(seen) > 2


def group_rows(strata=True):
    return [
        {
            "example_id": i,
            "kind": "group",
            "prompt": "1+2=",
            "completion_token_ids": [5] * (i + 1),
            "behaviour_logps": [-1.0] * (i + 1),
            "reward": float(i % 2),
            "group_id": i // 3,
            "stratum": 7 + i if strata else None,
        }
        for i in range(6)
    ]


def test_an_objective_sees_strata_and_the_entropy_of_the_whole_step(job, monkeypatch):
    seen = []
    watching(monkeypatch, seen, examples="group", needs=("stratum",), requires=("step_entropy", "entropy"))
    train(job(group_rows(), "look", micro_batch_tokens=1, epochs=1, batch_tokens=10**6))
    assert len(seen) == 6
    for batch in seen:
        assert batch.step.strata.tolist() == [7, 8, 9, 10, 11, 12]
        assert not batch.step.entropy.requires_grad
        torch.testing.assert_close(batch.of(batch.step.entropy), batch.entropy.detach(), atol=1e-5, rtol=0)
    assert ((seen[0].step.entropy > 0) == (seen[0].step.mask > 0)).all()


def test_where_an_example_has_no_stratum_training_names_it(job):
    with pytest.raises(StageError, match="needs the column 'stratum', which is null in these examples"):
        train(job(group_rows(strata=False), "stratified_grpo"))


@pytest.mark.parametrize("objective", ["stratified_grpo", "copo", "d3s", "reinforce_ada", "dler", "epo_entropy"])
def test_the_objectives_run_in_the_trainer(job, objective):
    result = train(job(group_rows(), objective, epochs=2, batch_tokens=10))
    assert all(np.isfinite(m["loss"]) for m in result.metrics)
    assert find("objective", objective).mark.examples == "group"


def test_ditto_lowers_what_is_repeated_in_a_real_training(job):
    rows = [
        {"example_id": i, "kind": "sft", "prompt": f"{i}=", "completion": "7+7=" * 5, "stratum": 5} for i in range(8)
    ] + [row | {"example_id": 50 + i, "stratum": 0} for i, row in enumerate(trainer_tiny.sft_rows(8))]
    found = train(job(rows, "ditto", epochs=6, batch_tokens=400, lr=3e-3, schedule="constant")).metrics
    assert found[-1]["loss"] < found[0]["loss"]
    assert 0 < found[0]["copied"] < 1


def test_the_policy_is_looked_at_without_dropout_and_trained_on_with_it(base, items):
    policy = model(base)
    read = Reader(TokenLogps(policy, entropy=True), "cpu")
    modes = []
    policy.get_decoder().register_forward_hook(
        lambda module, *_: modes.append((module.training, torch.is_grad_enabled()))
    )
    read.policy.train()
    likeliest([items[0].sequences[0]], read)
    step_entropy(items, one_step(items), read)
    assert modes == [(False, False)] * 2
    assert policy.training


SHARED = {
    "masked_thought": ({"warmup": 0.0}, trainer_tiny.sft_rows(24)),
    "scheduled_sampling": ({"start": 0.5}, trainer_tiny.sft_rows(24)),
    "d3s": ({}, group_rows()),
    "epo_entropy": ({"begin": 0.0, "entropy": 0.1}, group_rows()),
}


@pytest.mark.slow  # starts two processes
def test_two_processes_that_share_layers_and_steps_end_like_one(job, tmp_path):
    def make(shard):
        how = {"micro_batch_tokens": 60, "shard": shard}
        return [
            job(rows, name, config=config, batch_tokens=90 if "completion" in rows[0] else 12, **how)
            for name, (config, rows) in SHARED.items()
        ]

    alone, shared = make(False), make(True)
    assert two_ranks.together(shared, tmp_path / "ranks") == 0
    for one, both in zip(alone, shared, strict=True):
        train(one)
        assert_same(weights(both.output), weights(one.output), 1e-4)
