"""Slopes of what an objective reports along the held-back loss: against plain PyTorch, and after a kill."""

import pytest
import torch
import trainer_tiny
from plain_training import load, plain_logps
from transformers import AutoTokenizer

from strop.core.trainer.job import TrainJob, write_examples
from strop.core.trainer.train import train
from strop.storage.errors import StageError

ROWS = [
    row | {"kind": "group", "group_id": i // 3, "reward": None if i % 3 == 2 else float(i % 2)}
    for i, row in enumerate(trainer_tiny.sft_rows(12))
]


@pytest.fixture
def make(tmp_path):
    base = trainer_tiny.make_policy(tmp_path / "base")

    def job(name, **values):
        where = tmp_path / name
        return TrainJob(
            init=base,
            examples=write_examples(where / "examples.parquet", ROWS),
            output=where / "policy",
            work=where / "work",
            objective="amft",
            objective_config={"rate": 5.0},
            train={"epochs": 4, "batch_tokens": 10**6, "lr": 1e-2, "warmup": 0.0, "schedule": "constant", **values},
            seed=0,
        )

    return job


def plain_losses(model, tokenizer, rows):
    """Reinforcement and imitation where the policy is as training found it."""
    rl, sft, counts = 0.0, 0.0, [0, 0]
    for row in rows:
        logps = plain_logps(model, tokenizer, row["prompt"], row["completion"])
        rewards = [r["reward"] for r in rows if r["group_id"] == row["group_id"] and r["reward"] is not None]
        if row["reward"] is None:
            sft, counts[1] = sft - logps.sum(), counts[1] + len(logps)
        else:
            ratio = (logps - logps.detach()).exp()
            rl = rl - (row["reward"] - sum(rewards) / len(rewards)) * ratio.sum()
            counts[0] += len(logps)
    return rl / counts[0], sft / counts[1]


@pytest.mark.parametrize("way", [{}, {"micro_batch_tokens": 60}])
def test_slopes_are_products_of_gradients(make, way):
    job = make("job", validation={"share": 0.25, "patience": 9}, **way)
    result = train(job)
    model, tokenizer = load(job.init), AutoTokenizer.from_pretrained(job.init)
    parts = [[r for r in ROWS if (r["example_id"] in result.held_back) is held] for held in (False, True)]
    flat = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)])
        for loss in (*plain_losses(model, tokenizer, parts[0]), plain_losses(model, tokenizer, parts[1])[0])
    ]
    first, second = result.metrics[:2]
    assert first["rl_along"] == pytest.approx((flat[0] @ flat[2]).item(), rel=2e-2, abs=1e-4)
    assert first["sft_along"] == pytest.approx((flat[1] @ flat[2]).item(), rel=2e-2, abs=1e-4)
    assert second["mu"] == pytest.approx(0.5 + 5.0 * 1e-2 * (first["sft_along"] - first["rl_along"]), abs=1e-5)
    assert second["mu"] != pytest.approx(0.5, abs=1e-4)


def test_a_killed_training_steers_on_as_it_would_have(make):
    class Killed(BaseException):
        """In place of a kill."""

    def kill(told):
        if told["step"] == 2:
            raise Killed

    settings = {"validation": {"share": 0.25, "patience": 9}, "save_every_steps": 1}
    whole, broken = make("whole", **settings), make("broken", **settings)
    metrics = train(whole).metrics
    with pytest.raises(Killed):
        train(broken, kill)
    assert train(broken).metrics == metrics


def test_without_examples_held_back_there_is_nothing_to_steer_by(make):
    with pytest.raises(StageError, match="goes by examples held back, and there are none: write validation"):
        train(make("job"))
