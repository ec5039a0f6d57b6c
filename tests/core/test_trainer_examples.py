"""From the examples file to tokens and steps: nothing lost, nothing re-tokenised, bad rows named."""

from __future__ import annotations

import numpy as np
import pytest
import trainer_tiny

from strop.core.trainer.batches import inputs, plan
from strop.core.trainer.encode import Encoded, Item, encode
from strop.core.trainer.job import TrainJob, check_examples, read_examples, write_examples
from strop.core.trainer.train import train
from strop.storage.errors import StageError

SFT = {"example_id": 7, "kind": "sft", "prompt": "1+2=", "completion": "3"}
PAIR = {"example_id": 7, "kind": "pair", "prompt": "1+2=", "chosen": "3", "rejected": "4"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return trainer_tiny.make_policy(tmp_path_factory.mktemp("policy") / "base")


@pytest.fixture(scope="module")
def tokenizer(base):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


def encoded(tmp_path, tokenizer, *rows, max_length=48):
    table = read_examples(write_examples(tmp_path / "examples.parquet", rows))
    return encode(table, tokenizer, max_length=max_length, longest="the policy's context")


def item(i, length, targets, *, group=-1):
    sequence = Encoded(np.ones(length, dtype=np.int64), length - targets, np.ones(targets, dtype=np.float32))
    return Item(i, (sequence,), 1.0, float("nan"), float("nan"), group, None, (None,))


def test_examples_come_back_as_written_with_null_for_what_was_not_given(tmp_path):
    rows = [SFT | {"weight": 2, "completion_token_ids": [6, 2], "loss_spans": [0, 1]}, PAIR | {"example_id": 8}]
    table = read_examples(write_examples(tmp_path / "examples.parquet", rows))
    assert table.column("weight").to_pylist() == [2.0, None]
    assert table.column("completion_token_ids").to_pylist() == [[6, 2], None]
    assert table.column("rejected").to_pylist() == [None, "4"]


def test_the_same_examples_make_the_same_job_wherever_they_are_written_to(tmp_path):
    def key(name, rows, **more):
        path = write_examples(tmp_path / name / "e.parquet", rows)
        return TrainJob(
            init=tmp_path, examples=path, output=tmp_path / name, work=tmp_path, objective="sft", seed=0, **more
        ).key()

    assert key("a", [SFT]) == key("b", [SFT])
    assert len({key("a", [SFT]), key("a", [PAIR]), key("a", [SFT], threads=2), key("a", [SFT], train={"lr": 1})}) == 4


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no examples to train on"),
        ([SFT | {"kind": "sftt"}], "kind of an example is one of sft, pair, group .example ids 7"),
        ([SFT | {"completion": None}], "have no 'completion' .example ids 7"),
        ([PAIR, PAIR | {"example_id": 9, "rejected": None}], "have no 'rejected' .example ids 9"),
        ([PAIR | {"loss_spans": [0, 1]}], "loss_spans are for 'sft' and 'group' only .example ids 7"),
        ([SFT | {"kind": "group", "reward": 1.0}], "needs a group_id .example ids 7"),
        ([SFT | {"weight": float("nan")}], "weight is not a number .example ids 7"),
        ([SFT | {"behaviour_logps": [-1.0], "completion_token_ids": [6, 2]}], "one entry for each of .*example ids 7"),
        ([SFT | {"prompt": None}], "needs a prompt .example ids 7"),
        ([SFT | {"example_id": i, "completion": None} for i in range(8)], "example ids 0, 1, 2, 3, 4 and 3 more"),
        ([SFT | {"completions": "3"}], "no column 'completions'; did you mean 'completion'"),
    ],
)
def test_bad_rows_are_refused_by_name_and_leave_no_file(tmp_path, rows, message):
    with pytest.raises(StageError, match=message):
        write_examples(tmp_path / "examples.parquet", rows)
    assert list(tmp_path.iterdir()) == []


def test_an_objective_refuses_examples_it_cannot_learn_from(tmp_path):
    table = read_examples(write_examples(tmp_path / "examples.parquet", [SFT, PAIR | {"example_id": 9}]))
    with pytest.raises(StageError, match=r"'sft' learns from 'sft' examples.*example ids 9\)"):
        check_examples(table, kind="sft", who="sft")
    with pytest.raises(StageError, match=r"needs the column 'margin', which is null.*example ids 7, 9\)"):
        check_examples(table, needs=["margin"], who="mine")


def test_training_refuses_a_missing_reference_and_the_wrong_kind(tmp_path, base):
    def job(rows, objective):
        return trainer_tiny.job(tmp_path / objective, base, rows, objective, reference=None)

    with pytest.raises(StageError, match="'dpo' requires a reference policy"):
        train(job([PAIR], "dpo"))
    with pytest.raises(StageError, match="'sft' learns from 'sft' examples"):
        train(job([PAIR], "sft"))


def test_text_is_tokenised_apart_from_its_prompt_and_ended(tmp_path, tokenizer):
    (one,) = encoded(tmp_path, tokenizer, SFT)
    ids = tokenizer.convert_tokens_to_ids(["1", "+", "2", "=", "3", "</s>"])
    assert one.sequences[0].ids.tolist() == ids
    assert (one.sequences[0].prompt_length, one.sequences[0].mask.tolist()) == (4, [1.0, 1.0])


def test_sampled_token_ids_are_used_exactly_and_nothing_is_appended(tmp_path, tokenizer):
    row = SFT | {"completion": "3", "completion_token_ids": [9, 9, 4]}
    assert encoded(tmp_path, tokenizer, row)[0].sequences[0].ids[4:].tolist() == [9, 9, 4]


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize(
    ("spans", "mask"), [([0, 2], [1, 1, 0, 0, 0, 0]), ([3, 5], [0, 0, 0, 1, 1, 1]), ([0, 1, 2, 3], [1, 0, 1, 0, 0, 0])]
)
def test_the_loss_covers_the_spans_and_the_end_only_where_a_span_reaches_it(tmp_path, tokenizer, spans, mask, sampled):
    row = SFT | {"completion": "12=34", "loss_spans": spans}
    if sampled:
        row["completion_token_ids"] = [*tokenizer("12=34")["input_ids"], tokenizer.eos_token_id]
    assert encoded(tmp_path, tokenizer, row)[0].sequences[0].mask.tolist() == mask


def test_a_prompt_that_is_empty_leaves_the_first_token_unpredicted(tmp_path, tokenizer):
    sequence = encoded(tmp_path, tokenizer, SFT | {"prompt": ""})[0].sequences[0]
    assert sequence.mask.tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"loss_spans": [5, 9]}, "covers no token"),
        ({"completion_token_ids": []}, "covers no token"),
        ({"completion": "3" * 60}, r"longer than the policy's context, 48 tokens \(the longest has 65\)"),
        ({"completion_token_ids": [3, 4000]}, "outside the policy's vocabulary"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_by_name(tmp_path, tokenizer, row, message):
    with pytest.raises(StageError, match=rf"{message}.*\(example ids 8\)"):
        encoded(tmp_path, tokenizer, SFT, SFT | {"example_id": 8} | row)


def test_a_smaller_max_length_is_named_as_the_limit(tmp_path, base):
    job = trainer_tiny.job(tmp_path, base, [SFT], train={"max_length": 5})
    with pytest.raises(StageError, match=r"longer than train\.max_length, 5 tokens \(the longest has 6\)"):
        train(job)


def test_every_epoch_has_every_example_once_in_an_order_of_its_own():
    items = [item(i, 5 + i % 7, 2 + i % 3) for i in range(100)]
    steps = plan(items, epochs=2, batch_tokens=30, micro_batch_tokens=10**6, seed=3)
    orders = [[i for step in half for micro in step.micro for i in micro] for half in (steps[:10], steps[10:])]
    assert [sorted(order) for order in orders] == [list(range(100))] * 2
    assert orders[0] != orders[1]
    assert plan(items, epochs=2, batch_tokens=30, micro_batch_tokens=10**6, seed=3) == steps
    assert plan(items, epochs=2, batch_tokens=30, micro_batch_tokens=10**6, seed=4) != steps


def test_steps_are_even_and_micro_batches_bounded_with_hardly_any_padding():
    rng = np.random.default_rng(0)
    items = [item(i, int(n), int(n) - 3) for i, n in enumerate(rng.integers(6, 60, 2000))]
    steps = plan(items, epochs=1, batch_tokens=1000, micro_batch_tokens=500, seed=0)
    total = sum(i.targets for i in items)
    assert len(steps) == round(total / 1000)
    assert all(900 < step.targets < 1100 for step in steps)
    sizes = [len(micro) * max(items[i].length for i in micro) for step in steps for micro in step.micro]
    assert max(sizes) <= 500
    assert sum(sizes) < 1.05 * sum(i.length for i in items)


def test_sums_over_the_step_do_not_depend_on_the_micro_batches():
    items = [item(i, 4 + i, 2 + i % 2) for i in range(12)]
    whole, cut = (plan(items, epochs=1, batch_tokens=10**6, micro_batch_tokens=size, seed=0)[0] for size in (10**6, 20))
    assert len(whole.micro) == 1 < len(cut.micro)
    assert (whole.tokens, whole.sequences) == (cut.tokens, cut.sequences) == (30.0, 12.0)


def test_a_group_stays_within_one_step():
    items = [item(i, 10, 5, group=i % 6) for i in range(48)]
    for step in plan(items, epochs=1, batch_tokens=40, micro_batch_tokens=10, seed=0):
        members = [i for micro in step.micro for i in micro]
        for group in {items[i].group_id for i in members}:
            assert sum(items[i].group_id == group for i in members) == 8


def test_a_target_is_predicted_from_the_position_before_it():
    sequences = [
        Encoded(np.array([11, 12, 13, 14]), 2, np.array([1.0, 1.0], dtype=np.float32)),
        Encoded(np.array([21, 22, 23]), 1, np.array([0.0, 1.0], dtype=np.float32)),
    ]
    for ids, positions in (([[11, 12, 13], [21, 22, 0]], None), ([[11, 12, 13, 21, 22]], [[0, 1, 2, 0, 1]])):
        batch = inputs(sequences, "cpu", packed=positions is not None)
        assert batch.ids.tolist() == ids
        assert (batch.row.tolist(), batch.slot.tolist()) == ([0, 0, 1], [0, 1, 1])
        assert (batch.at.tolist(), batch.target.tolist()) == ([1, 2, 4], [13, 14, 23])
        assert batch.mask.tolist() == [[1.0, 1.0], [0.0, 1.0]]
        assert positions == (None if batch.positions is None else batch.positions.tolist())
