"""The trainer on a tiny real model: against plain PyTorch, across micro-batches, with adapters, on bad values."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import trainer_tiny
from plain_training import assert_same, load, plain_logps, plain_steps, weights

from strop.core.plugin import Config, stage
from strop.core.trainer.config import Lora, Train
from strop.core.trainer.encode import Encoded, Item
from strop.core.trainer.loop import learning_rate
from strop.core.trainer.objective import Loss, SequenceBatch
from strop.core.trainer.policy import quiet
from strop.core.trainer.train import train
from strop.storage.errors import StageError

ONE_STEP = {"epochs": 1, "batch_tokens": 10**6, "lr": 1e-3, "warmup": 0.0, "schedule": "constant"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return trainer_tiny.make_policy(tmp_path_factory.mktemp("policy") / "base")


@pytest.fixture
def job(base, tmp_path):
    """job(rows, objective, **train): a job in the test's folder; the n-th call has the n-th output."""
    made = []

    def make(rows, objective="sft", *, config=None, seed=0, origin="built-in", init=base, reference=base, **values):
        made.append(1)
        where = tmp_path / f"job{len(made)}"
        settings = {"objective_origin": origin, "objective_config": config or {}, "train": values, "seed": seed}
        return trainer_tiny.job(where, init, rows, objective, reference=reference, **settings)

    return make


def test_one_sft_step_equals_plain_pytorch(base, job):
    rows = [row | {"weight": 1.0 + i % 3} for i, row in enumerate(trainer_tiny.sft_rows(9))]

    def loss_of(model, tokenizer):
        logps = [plain_logps(model, tokenizer, r["prompt"], r["completion"]) for r in rows]
        weighed = sum(r["weight"] * x.sum() for r, x in zip(rows, logps, strict=True))
        return -weighed / sum(len(x) for x in logps)

    expected, loss = plain_steps(base, loss_of)
    result = train(job(rows, **ONE_STEP))
    assert result.loss == pytest.approx(loss, abs=1e-5)
    assert_same(weights(result.output), expected, 1e-5)


def test_three_steps_follow_the_schedule_of_the_learning_rate(base, job):
    rows = trainer_tiny.sft_rows(9)

    def loss_of(model, tokenizer):
        logps = [plain_logps(model, tokenizer, r["prompt"], r["completion"]) for r in rows]
        return -sum(x.sum() for x in logps) / sum(len(x) for x in logps)

    expected, loss = plain_steps(base, loss_of, (3e-3, 2e-3, 1e-3))
    result = train(job(rows, epochs=3, batch_tokens=10**6, lr=3e-3, warmup=0.0))
    assert result.loss == pytest.approx(loss, abs=1e-5)
    assert [m["lr"] for m in result.metrics] == pytest.approx([3e-3, 2e-3, 1e-3])
    assert_same(weights(result.output), expected, 1e-4)


def test_one_dpo_step_equals_plain_pytorch(base, job, tmp_path):
    rows = trainer_tiny.pair_rows(7)
    other = trainer_tiny.make_policy(tmp_path / "other", seed=1)
    reference = load(other)

    def loss_of(model, tokenizer):
        terms = []
        for row in rows:
            chosen, rejected = (
                plain_logps(model, tokenizer, row["prompt"], row[side]).sum()
                - plain_logps(reference, tokenizer, row["prompt"], row[side]).sum().detach()
                for side in ("chosen", "rejected")
            )
            terms.append(-torch.nn.functional.logsigmoid(0.3 * (chosen - rejected)))
        return sum(terms) / len(terms)

    expected, loss = plain_steps(base, loss_of)
    result = train(job(rows, "dpo", config={"beta": 0.3}, reference=other, **ONE_STEP))
    assert result.loss == pytest.approx(loss, abs=1e-5)
    assert_same(weights(result.output), expected, 1e-5)


def test_dpo_with_the_start_as_reference_begins_at_log_two(job):
    result = train(job(trainer_tiny.pair_rows(6), "dpo", **ONE_STEP))
    assert result.loss == pytest.approx(0.693147, abs=1e-5)


@pytest.mark.parametrize(("objective", "make"), [("sft", trainer_tiny.sft_rows), ("dpo", trainer_tiny.pair_rows)])
def test_the_cut_into_micro_batches_changes_nothing(job, base, objective, make, monkeypatch):
    """Loss, gradient norm and, before the optimiser sees it, every gradient."""
    gradients: list[list[torch.Tensor]] = []
    clip = torch.nn.utils.clip_grad_norm_

    def keep(parameters, norm):
        parameters = list(parameters)
        gradients.append([p.grad.clone() for p in parameters])
        return clip(parameters, norm)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", keep)
    rows = make(16)
    other = trainer_tiny.make_policy(base.parent / "other", seed=1)
    whole, cut, single = (
        train(job(rows, objective, reference=other, micro_batch_tokens=size, **ONE_STEP)) for size in (10**6, 150, 1)
    )
    for piecewise in (cut, single):
        assert piecewise.loss == pytest.approx(whole.loss, abs=1e-6)
        assert piecewise.metrics[0] == pytest.approx(whole.metrics[0], rel=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(gradients[2], gradients[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_a_sequence_is_told_the_same_alone_padded_and_packed(base, packed):
    from strop.core.trainer.logps import Reader, TokenLogps

    read = Reader(TokenLogps(load(base).eval()), "cpu", packed=packed)
    rng = torch.Generator().manual_seed(0)
    sequences = [
        Encoded(torch.randint(3, 20, (p + t,), generator=rng).numpy(), p, torch.ones(t).numpy())
        for p, t in ((3, 2), (9, 7), (1, 20))
    ]
    for row, sequence in zip(read(sequences).logps, sequences, strict=True):
        alone = replace(read, packed=False)([sequence]).logps[0]
        torch.testing.assert_close(row[: len(alone)], alone, atol=1e-5, rtol=0)
        assert row[len(alone) :].abs().sum() == 0


def test_a_model_that_mixes_packed_sequences_is_refused(base, job, tmp_path):
    from transformers import AutoTokenizer, BloomConfig, BloomForCausalLM

    torch.manual_seed(0)
    mixing = tmp_path / "mixing"
    with quiet():
        BloomForCausalLM(
            BloomConfig(vocab_size=36, hidden_size=16, n_layer=1, n_head=2, initializer_range=0.2)
        ).save_pretrained(mixing)
    AutoTokenizer.from_pretrained(base).save_pretrained(mixing)
    rows = trainer_tiny.sft_rows(4)
    with pytest.raises(StageError, match=r"does not keep packed sequences apart .* write packing: false"):
        train(job(rows, init=mixing, packing=True, **ONE_STEP))
    assert train(job(rows, init=mixing, **ONE_STEP)).steps == 1


def test_an_attention_that_is_not_there_is_named(job):
    with pytest.raises(StageError, match=r"train\.attention 'no_such' cannot be used here"):
        train(job(trainer_tiny.sft_rows(4), attention="no_such", **ONE_STEP))


def test_chunks_of_the_output_head_change_neither_value_nor_gradient(base, monkeypatch):
    from strop.core.trainer import logps
    from strop.core.trainer.batches import inputs

    sequence = Encoded(torch.arange(3, 23).numpy(), 4, torch.ones(16).numpy())
    batch = inputs([sequence], "cpu")
    found = []
    for elements in (logps.CHUNK_ELEMENTS, 5 * 32):
        monkeypatch.setattr(logps, "CHUNK_ELEMENTS", elements)
        policy = logps.TokenLogps(load(base), entropy=True)
        assert policy.split
        value = policy(batch)
        (value.logps.sum() + 0.5 * value.entropy.sum()).backward()
        found.append((value.logps.detach(), value.entropy.detach(), policy.model.get_output_embeddings().weight.grad))
    torch.testing.assert_close(found[0], found[1])


def test_entropy_is_that_of_the_whole_distribution(base):
    from strop.core.trainer.batches import inputs
    from strop.core.trainer.logps import TokenLogps

    batch = inputs([Encoded(torch.arange(3, 9).numpy(), 2, torch.ones(4).numpy())], "cpu")
    found = TokenLogps(load(base), entropy=True)(batch)
    logits = load(base)(batch.ids).logits[0, 1:]
    torch.testing.assert_close(found.entropy, torch.distributions.Categorical(logits=logits).entropy())
    assert TokenLogps(load(base))(batch).entropy is None


def test_a_model_whose_head_is_unknown_goes_through_its_own_forward(base):
    from strop.core.trainer.batches import inputs
    from strop.core.trainer.logps import TokenLogps

    model = load(base)
    own = model.forward
    model.forward = lambda *args, **kwargs: _doubled(own(*args, **kwargs))
    policy = TokenLogps(model)
    assert not policy.split
    batch = inputs([Encoded(torch.arange(3, 9).numpy(), 2, torch.ones(4).numpy())], "cpu")
    expected = (2 * load(base)(batch.ids).logits[0, 1:]).log_softmax(-1)[torch.arange(4), batch.target]
    torch.testing.assert_close(policy(batch).logps, expected)


def _doubled(output):
    output.logits = output.logits * 2
    return output


def test_training_learns_and_reports_every_step(job):
    seen = []
    rows = trainer_tiny.sft_rows(40)
    result = train(job(rows, epochs=6, batch_tokens=100, lr=1e-2), seen.append)
    assert [s["step"] for s in seen] == list(range(1, result.steps + 1))
    assert {s["steps"] for s in seen} == {result.steps}
    assert seen[-1]["tokens"] == result.tokens == 6 * sum(len(r["completion"]) + 1 for r in rows)
    assert result.loss < 0.6 * result.metrics[0]["loss"]
    assert (result.kind, result.examples) == ("full", 40)


def test_dpo_training_raises_accuracy_and_margin(job):
    result = train(job(trainer_tiny.pair_rows(30), "dpo", epochs=4, batch_tokens=100, lr=3e-3))
    first, last = result.metrics[0], result.metrics[-1]
    assert first["margin"] == pytest.approx(0, abs=1e-5)
    assert last["margin"] > 0.5
    assert last["accuracy"] > 0.9


def test_the_output_is_a_whole_policy_of_the_type_it_came_as(job, base, tmp_path):
    half = trainer_tiny.make_policy(tmp_path / "half", dtype="bfloat16")
    (half / "chat_template.jinja").write_text("{{ messages }}")
    output = train(job(trainer_tiny.sft_rows(5), init=half, **ONE_STEP)).output
    assert {p.name for p in half.iterdir()} == {p.name for p in output.iterdir()}
    assert (output / "tokenizer.json").read_bytes() == (half / "tokenizer.json").read_bytes()
    assert load(output).dtype == torch.bfloat16
    assert json.loads((output / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_seed_alone_decides_the_order(job):
    rows = trainer_tiny.sft_rows(20)
    outputs = [train(job(rows, batch_tokens=40, lr=1e-2, epochs=1, seed=seed)).output for seed in (1, 1, 2)]
    one, same, other = ((directory / "model.safetensors").read_bytes() for directory in outputs)
    assert one == same != other


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_adapters_alone_are_trained_and_merging_them_changes_no_logit(job, base, dora):
    from peft import PeftModel

    rows = trainer_tiny.sft_rows(20)
    lora = {"r": 4, "alpha": 8, "dora": dora}
    merged = train(job(rows, batch_tokens=60, lr=1e-2, lora=lora))
    kept = train(job(rows, batch_tokens=60, lr=1e-2, lora=lora | {"merge": False}))
    assert (merged.kind, kept.kind) == ("full", "lora")
    assert not (kept.output / "model.safetensors").exists()
    before, after = weights(base), weights(merged.output)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "_proj" in name}
    ids = torch.arange(3, 23)[None]
    with quiet():
        adapted = PeftModel.from_pretrained(load(base), kept.output)
    torch.testing.assert_close(load(merged.output)(ids).logits, adapted(ids).logits, atol=1e-5, rtol=1e-5)
    magnitudes = [name for name in adapted.state_dict() if "magnitude" in name]
    assert bool(magnitudes) == dora


def test_a_kept_adapter_is_trained_on_and_stands_on_the_same_base(job, base):
    rows = trainer_tiny.sft_rows(12)
    lora = {"r": 4, "alpha": 8, "merge": False}
    first = train(job(rows, lr=1e-2, lora=lora))
    second = train(job(rows, lr=1e-2, lora=lora, init=first.output))
    assert second.loss < first.loss
    assert json.loads((second.output / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    third = train(job(rows, lr=1e-2, init=second.output))
    assert third.kind == "full"
    assert third.loss < second.loss
    with pytest.raises(StageError, match=r"r 4.*r 8"):
        train(job(rows, lora=lora | {"r": 8}, init=first.output))
    with pytest.raises(StageError, match=r"dora False.*dora True"):
        train(job(rows, lora=lora | {"dora": True}, init=first.output))


def test_modules_that_do_not_exist_are_named(job):
    with pytest.raises(StageError, match=r"train\.lora does not fit.*no_such"):
        train(job(trainer_tiny.sft_rows(3), lora={"target_modules": ["no_such"]}))


def test_bfloat16_and_recomputed_activations_stay_near_float32(job):
    rows = trainer_tiny.sft_rows(12)
    exact = train(job(rows, **ONE_STEP)).loss
    assert train(job(rows, **ONE_STEP, gradient_checkpointing=True)).loss == pytest.approx(exact, abs=1e-6)
    assert train(job(rows, **ONE_STEP, precision="bfloat16")).loss == pytest.approx(exact, rel=2e-2)


class Spy(Config):
    pass


def test_a_loss_that_is_not_finite_names_step_and_examples_and_leaves_nothing(job, tmp_path):
    source = tmp_path / "nan_at.py"
    source.write_text(
        '"""Not a number once a weight is 7."""\n'
        "from strop.core.plugin import Config, stage\n"
        "from strop.core.trainer.objective import Loss\n"
        "class NanAt(Config):\n    pass\n"
        '@stage("objective", examples="sft")\n'
        "def nan_at(config: NanAt, *, batch):\n"
        "    bad = (batch.weights == 7).any()\n"
        "    return Loss(-batch.logps.sum() * (float('nan') if bad else 1.0))\n"
    )
    rows = trainer_tiny.sft_rows(12)
    rows[4]["weight"] = 7.0
    bad = job(rows, "nan_at", origin=str(source), batch_tokens=20, micro_batch_tokens=1, save_every_steps=1)
    with pytest.raises(StageError, match=r"loss is not finite at step \d+ .*example ids 104\)"):
        train(bad)
    assert not bad.output.exists()
    assert [p.name for p in bad.output.parent.iterdir() if "policy" in p.name] == []


def test_an_objective_sees_the_whole_group_and_what_was_sampled(job, tmp_path):
    """Members of a group lie in different micro-batches; each still sees the rewards of all."""
    rows = [
        {
            "example_id": i,
            "kind": "group",
            "prompt": "1+2=",
            "completion_token_ids": [5] * (i + 1),
            "behaviour_logps": [-0.25 * (i + 1)] * (i + 1),
            "reward": None if i == 1 else float(i),
            "group_id": 9 + i // 3,
        }
        for i in range(6)
    ]
    seen: list[SequenceBatch] = []

    @stage("objective", examples="group", requires=("reference", "old", "entropy"), needs=("logps",))
    def look(config: Spy, *, batch) -> Loss:
        seen.append(batch)
        return Loss(batch.logps.sum() * 0)

    import strop.core.trainer.train as module
    from strop.core.registry import Plugin

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "find", lambda *_: Plugin("objective", "look", look, "here"))
        train(job(rows, "look", micro_batch_tokens=1, **ONE_STEP))
    assert [b.mask.sum().item() for b in seen] == [1, 2, 3, 4, 5, 6]
    assert {b.step_tokens for b in seen} == {21.0}
    assert {b.step_sequences for b in seen} == {6.0}
    assert [b.of(b.step.group_ids).item() for b in seen] == [9, 9, 9, 10, 10, 10]
    assert all(b.step.group_ids.tolist() == [9, 9, 9, 10, 10, 10] for b in seen)
    assert str(seen[0].step.rewards.tolist()) == "[0.0, nan, 2.0, 3.0, 4.0, 5.0]"
    assert seen[0].step.mask.sum(1).tolist() == [1, 2, 3, 4, 5, 6]
    assert seen[2].behaviour_logps.tolist() == [[-0.75, -0.75, -0.75]]
    for batch in seen:
        torch.testing.assert_close(batch.reference_logps, batch.logps.detach(), atol=1e-5, rtol=0)
        torch.testing.assert_close(batch.old_logps, batch.logps.detach(), atol=1e-5, rtol=0)
        assert (batch.entropy > 0).all()


def test_an_output_of_another_job_is_not_touched(job):
    taken = job(trainer_tiny.sft_rows(3))
    taken.output.mkdir()
    with pytest.raises(StageError, match="exists and is not this job's"):
        train(taken)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [1 / 3, 2 / 3, 1.0, 0.875, 0.5, 0.125]),
        ("cosine", [1 / 3, 2 / 3, 1.0, 0.961940, 0.5, 0.038060]),
        ("constant", [1 / 3, 2 / 3, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_the_learning_rate_rises_over_the_warmup_and_falls_after(schedule, expected):
    config = Train(lr=1.0, schedule=schedule, warmup=0.2)
    assert [learning_rate(config, i, 10) for i in (0, 1, 2, 3, 6, 9)] == pytest.approx(expected, abs=1e-6)


def test_the_config_imports_no_torch_and_refuses_unknown_keys():
    import subprocess
    import sys

    code = "import sys, strop.core.trainer.config, strop.core.trainer.job; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    with pytest.raises(ValueError, match="learning_rate"):
        Train.model_validate({"learning_rate": 1.0})
    assert Train(lora=Lora()).lora.merge


def test_each_prompt_meets_the_completion_of_another_prompt(job, base):
    """What KTO's divergence is estimated on: before the first step it is 0 under the policy's own reference."""
    from strop.core.registry import Plugin
    from strop.core.trainer.mismatched import mismatched_items

    rows = [
        {"example_id": i, "kind": "group", "prompt": prompt, "completion_token_ids": ids, "reward": 1.0, "group_id": i}
        for i, (prompt, ids) in enumerate([("1+2=", [5, 6]), ("1+2=", [7]), ("3+4=", [8, 9, 10])])
    ]
    seen: list[SequenceBatch] = []

    @stage("objective", examples="group", requires=("reference", "mismatched"))
    def look(config: Spy, *, batch) -> Loss:
        seen.append(batch)
        return Loss(-batch.logps.sum())

    import strop.core.trainer.train as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "find", lambda *_: Plugin("objective", "look", look, "here"))
        train(job(rows, "look", lr=1e-2, epochs=3, batch_tokens=10**6))
    assert len(seen) == 3
    assert seen[0].step.mismatched.tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert (seen[2].step.mismatched.abs() > 1e-3).all()

    tokens = [Encoded(torch.tensor([1, 2, *tail]).numpy(), 2, torch.ones(len(tail)).numpy()) for tail in ([5], [6, 7])]
    items = [Item(i, (t,), 1.0, 1.0, 0.0, i, None, (None,)) for i, t in enumerate(tokens)]
    assert mismatched_items(items, 9) == [None, None]  # one prompt alone has no other
    other = Encoded(torch.tensor([3, 8, 9]).numpy(), 1, torch.ones(2).numpy())
    items.append(Item(2, (other,), 1.0, 1.0, 0.0, 2, None, (None,)))
    found = [i and i.sequences[0].ids.tolist() for i in mismatched_items(items, 9)]
    assert found == [[1, 2, 8, 9], [1, 2, 8, 9], [3, 5]]
    assert [i and i.sequences[0].ids.tolist() for i in mismatched_items(items, 3)] == [None, None, [3, 5]]


def test_pairs_are_held_against_the_policy_as_training_found_it(job, tmp_path):
    # refuel at its first step: the log-ratios to the old policy are 0, whatever the reference; the loss is (eta .5)^2
    rows = [row | {"margin": 0.5} for row in trainer_tiny.pair_rows(6)]
    other = trainer_tiny.make_policy(tmp_path / "other", seed=1)
    result = train(job(rows, "refuel", config={"eta": 3.0}, reference=other, **ONE_STEP))
    assert result.loss == pytest.approx(2.25, abs=1e-4)
    with pytest.raises(StageError, match="needs the column 'margin'"):
        train(job(trainer_tiny.pair_rows(6), "refuel", **ONE_STEP))
