"""A value head trained beside the policy: what it starts from, what it is saved as, and what its objective is told."""

import pytest
import torch
import trainer_tiny
from plain_training import assert_same, load, plain_values, weights
from safetensors.torch import load_file

from strop.core.plugin import Config, stage
from strop.core.trainer import logps
from strop.core.trainer.job import TrainJob, write_examples
from strop.core.trainer.objective import Loss
from strop.core.trainer.train import train

SETTINGS = {"lr": 1e-2, "epochs": 3, "batch_tokens": 60}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return trainer_tiny.make_policy(tmp_path_factory.mktemp("policy") / "base")


@pytest.fixture
def job(base, tmp_path):
    """job(init=, **train): PPO on sums in a folder of its own."""
    made = []

    def make(*, init=base, objective="ppo", origin="built-in", config=None, rows=24, **values):
        made.append(1)
        where = tmp_path / f"job{len(made)}"
        return TrainJob(
            init=init,
            reference=base,
            examples=write_examples(where / "examples.parquet", trainer_tiny.group_rows(rows)),
            output=where / "policy",
            work=where / "work",
            objective=objective,
            objective_origin=origin,
            objective_config=config or {},
            train=SETTINGS | values,
            seed=0,
        )

    return make


def head_of(directory):
    return load_file(directory / "heads" / "value.safetensors")


@pytest.fixture
def seen(monkeypatch):
    """What an objective that requires values was given, and the plugin that keeps it."""
    from strop.core.registry import Plugin

    kept = []

    class Nothing(Config):
        """No settings."""

    @stage("objective", examples="group", requires=("values",))
    def watching(config: Nothing, *, batch):
        kept.append(batch)
        return Loss(((batch.values - batch.rewards[:, None]) ** 2 * batch.mask).sum() / batch.step_tokens)

    plugin = Plugin("objective", "watching", watching, "here")
    monkeypatch.setattr("strop.core.trainer.train.find", lambda kind, name: plugin)
    return kept


def test_training_reports_the_critic_and_it_learns(job):
    result = train(job(epochs=30, lr=3e-3, batch_tokens=10**6, config={"beta": 0.0, "value_clip": None}))
    first, last = result.metrics[0], result.metrics[-1]
    assert {"value_loss", "explained_variance"} <= first.keys()
    assert last["value_loss"] < first["value_loss"] / 2
    assert last["explained_variance"] > max(0.2, first["explained_variance"])
    assert head_of(result.output)["weight"].abs().sum() > 0


def test_the_next_training_goes_on_with_the_head_and_another_objective_drops_it(job, seen, monkeypatch):
    first = job(objective="watching", epochs=1)
    train(first)
    begun = seen.copy()
    seen.clear()
    assert all((batch.old_values == 0).all() for batch in begun)
    assert (begun[0].values == 0).all()
    second = job(objective="watching", init=first.output, epochs=1)
    train(second)
    model = load(first.output)
    rows = {row["prompt"]: row for row in trainer_tiny.group_rows(24)}
    assert (seen[0].mask > 0).any()
    torch.testing.assert_close(seen[0].values.detach(), seen[0].old_values, atol=1e-5, rtol=0)  # not moved yet
    assert (seen[-1].values - seen[-1].old_values).abs().max() > 1e-3  # old ones are still those of the start
    found = sorted(x for batch in seen for x in batch.old_values[batch.mask > 0].tolist())
    expected = [plain_values(model, _tokenizer(first.output), r["prompt"], r["completion"]) for r in rows.values()]
    assert found == pytest.approx(sorted(torch.cat(expected).tolist()), abs=1e-5)
    monkeypatch.undo()
    third = job(objective="grpo", init=first.output)
    train(third)
    assert not (third.output / "heads").exists()


def _tokenizer(directory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


def test_a_model_whose_output_head_is_unknown_has_the_same_values(job, monkeypatch):
    first, second = job(epochs=1), job(epochs=1)
    train(first)
    monkeypatch.setattr(logps.TokenLogps, "_head_is_plain", lambda self: False)
    train(second)
    assert_same(weights(second.output), weights(first.output), 1e-5)


@pytest.mark.parametrize("merge", [True, False])
def test_adapters_and_head_are_trained_together(job, base, merge):
    made = job(lora={"r": 4, "merge": merge}, epochs=2)
    train(made)
    assert head_of(made.output)["weight"].abs().sum() > 0
    assert (made.output / "adapter_config.json").exists() is not merge
    again = job(lora={"r": 4, "merge": merge}, init=made.output, epochs=1, lr=1e-9)
    train(again)
    assert_same(head_of(again.output), head_of(made.output), 1e-6)


def test_the_best_look_gives_the_head_too(job):
    """Where training went wrong from the second epoch on, policy and head are those after the first."""
    watched = {"validation": {"share": 0.3, "every": 1.0, "patience": 1}, "schedule": "constant", "warmup": 0.0}
    long = train(job(**watched | {"epochs": 30, "lr": 3e-2}))
    looks = [(m["validation_loss"], int(m["step"])) for m in long.metrics if "validation_loss" in m]
    best = min(looks)[1]
    assert best < looks[-1][1]
    checkpoints = {}
    again = job(**watched | {"epochs": 30, "lr": 3e-2, "save_every_steps": 1})

    def keep(told):
        state = torch.load(again.work / "checkpoint.pt", weights_only=True)
        checkpoints[told["step"]] = state["parameters"]["value_head.weight"]

    train(again, keep)
    torch.testing.assert_close(head_of(again.output)["weight"], checkpoints[best])
    assert not torch.equal(checkpoints[best], checkpoints[looks[-1][1]])


def test_values_are_kept_and_read_once(job, monkeypatch):
    made = job(save_every_steps=1)

    def stop(told):
        if told["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(made, stop)
    assert (made.work / "values.parquet").is_file()
    whole = job()
    train(whole)
    monkeypatch.setattr("strop.core.trainer.train._frozen", None)  # it is not called again
    train(made)
    assert_same(weights(made.output), weights(whole.output), 0)
