"""A training's steps in TensorBoard, as it goes on and after a kill."""

from __future__ import annotations

import dataclasses

import pytest
import trainer_tiny

from strop.core.trainer.config import Train
from strop.core.trainer.train import train


def shown(folder):
    """Name -> the steps and their values, of all event files together."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    return {name: {e.step: e.value for e in found.Scalars(name)} for name in found.Tags()["scalars"]}


def test_every_step_is_in_tensorboard_also_after_a_kill(tmp_path):
    job = trainer_tiny.job(
        tmp_path,
        trainer_tiny.make_policy(tmp_path / "base"),
        trainer_tiny.sft_rows(24),
        train={"epochs": 3, "batch_tokens": 60, "lr": 1e-3, "save_every_steps": 1},
        track=("tensorboard",),
        title="mine/r2",
        logs=tmp_path / "logs",
    )

    def stop(told):
        if told["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(job, stop)
    assert list(shown(tmp_path / "logs" / "tensorboard" / "r2")["loss"]) == [1, 2]
    result = train(job)
    found = shown(tmp_path / "logs" / "tensorboard" / "r2")
    assert set(found) == {"loss", "lr", "grad_norm", "tokens"}
    for name, values in found.items():
        assert values == pytest.approx({m["step"]: m[name] for m in result.metrics}, rel=1e-6)
    assert job.key() == dataclasses.replace(job, track=(), title="other/r1").key()


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("strop.core.trainer.config.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="mlflow is not installed: pip install mlflow"):
        Train(track=["mlflow"])
    assert "track" not in Train().decisive()
