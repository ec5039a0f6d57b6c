"""Completions read behind other prompts by the reference: against plain PyTorch, killed, and through a loop."""

import pytest
import real_training
import torch
import trainer_tiny
import two_ranks
from plain_training import assert_same, load, plain_logps, plain_steps, weights
from rerun_tools import query

from strop.core.plugin import Config, stage
from strop.core.trainer import train as trainer
from strop.core.trainer.job import TrainJob, write_examples
from strop.core.trainer.train import train
from strop.storage.errors import PluginError, StageError

ONE_STEP = {"epochs": 1, "batch_tokens": 10**6, "lr": 1e-3, "warmup": 0.0, "schedule": "constant"}
PROMPTS = {"better": "a{prompt}", "worse": "bb{prompt}"}
ROWS = trainer_tiny.pair_rows(8)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return trainer_tiny.make_policy(tmp_path_factory.mktemp("policy") / "base")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return trainer_tiny.make_policy(tmp_path_factory.mktemp("policy") / "reference", seed=1)


@pytest.fixture
def make(base, reference, tmp_path_factory):
    def job(prompts=PROMPTS, **values):
        where = tmp_path_factory.mktemp("job")
        return TrainJob(
            init=base,
            reference=reference,
            examples=write_examples(where / "examples.parquet", ROWS),
            output=where / "policy",
            work=where / "work",
            objective="t_reg",
            objective_config={"alpha": 0.5, **prompts},
            train=ONE_STEP | values,
            seed=0,
        )

    return job


@pytest.fixture(scope="module")
def expected(base, reference):
    other = load(reference)

    def loss_of(model, tokenizer):
        terms = []
        for row in ROWS:
            moved, regular = [], 0.0
            for side in ("chosen", "rejected"):
                now = plain_logps(model, tokenizer, row["prompt"], row[side])
                with torch.no_grad():
                    own, better, worse = (
                        plain_logps(other, tokenizer, text + row["prompt"], row[side]) for text in ("", "a", "bb")
                    )
                moved.append((now - own).sum())
                regular = regular - 0.1 * ((torch.sigmoid(better - worse) - 0.5) * now).sum()
            margin = 0.1 * (moved[0] - moved[1])
            terms.append(-torch.nn.functional.logsigmoid(margin) + 0.5 * torch.sigmoid(-margin).detach() * regular)
        return sum(terms) / len(terms)

    return plain_steps(base, loss_of)


@pytest.mark.parametrize("way", [{}, {"micro_batch_tokens": 110}, {"micro_batch_tokens": 90, "packing": True}])
def test_one_step_equals_plain_pytorch(expected, make, way):
    result = train(make(**way))
    assert result.loss == pytest.approx(expected[1], abs=1e-5)
    assert_same(weights(result.output), expected[0], 1e-5)


@pytest.mark.slow
def test_two_processes_read_behind_the_prompts_together(expected, make, tmp_path):
    job = make(micro_batch_tokens=110)
    assert two_ranks.together([job], tmp_path / "two") == 0
    assert_same(weights(job.output), expected[0], 1e-5)


def test_examples_held_back_keep_their_own_prompts(make):
    metrics = train(make(validation={"share": 0.3}, epochs=2)).metrics
    assert "validation_loss" in metrics[-1]


def test_a_killed_training_asks_the_reference_no_more(make, monkeypatch):
    class Killed(BaseException):
        """In place of a kill."""

    def kill(told):
        raise Killed

    whole, broken = make(epochs=3), make(epochs=3, save_every_steps=1)
    train(whole)
    with pytest.raises(Killed):
        train(broken, kill)
    monkeypatch.setattr(trainer, "_frozen", None)
    train(broken)
    assert_same(weights(broken.output), weights(whole.output), 0)


def test_the_reference_is_loaded_once(make, monkeypatch):
    asked, frozen = [], trainer._frozen
    monkeypatch.setattr(trainer, "_frozen", lambda policy, *rest: asked.append(policy) or frozen(policy, *rest))
    train(make())
    assert asked == ["reference"]


def test_a_prompt_that_leaves_no_room_is_named(make):
    with pytest.raises(StageError, match="behind the prompt of `worse`: these examples are longer than"):
        train(make({"better": "a{prompt}", "worse": "b" * 40 + "{prompt}"}))


def test_other_prompts_need_a_reference_that_reads_them():
    class Some(Config):
        """None."""

    with pytest.raises(PluginError, match="require it"):

        @stage("objective", examples="pair", behind=lambda config: {})
        def some(config: Some, *, batch):
            """None."""


def test_a_loop_trains_on_them(tmp_path, monkeypatch):
    objective = {"use": "t_reg", "better": "1{prompt}", "worse": "2{prompt}"}
    (training,) = real_training.loop(
        tmp_path, monkeypatch, {"build": "best_worst"}, {"train": {"objective": objective, "lr": 1e-3}}
    )
    assert training.result.steps >= 1
    # what the reference makes of a rollout behind another prompt is not what the lake keeps of the rollout
    kept = query(tmp_path, "SELECT count(*) FROM token_logps")[0][0]
    sides = query(
        tmp_path,
        "SELECT count(DISTINCT r) FROM (SELECT unnest([rollout_id, rejected_rollout_id]) AS r FROM examples)",
    )[0][0]
    assert kept == sides > 0
