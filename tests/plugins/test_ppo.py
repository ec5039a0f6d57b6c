"""PPO with a critic: advantages, returns and both losses by hand, and what a missing value or score does."""

import dataclasses
import math

import pytest
import torch
from objective_tools import F2_LOGPS, F2_MASK, F2_OLD, F2_REFERENCE, check_cuts, gradient, micro_batches, random_step
from objective_tools import sequences as batch_of

from strop.core.algebra.values import clipped_squares, explained
from strop.core.plugin import Config, stage
from strop.core.registry import find
from strop.storage.errors import PluginError

ONES = [[1.0, 1.0, 1.0]]
OLD_VALUES = [[0.2, 0.5, 0.6]]
"""With a reward of 1 at the last token: the specification's example of generalised advantages."""


def ppo(**settings):
    """The plugin as the trainer calls it, without a reference unless `beta` is given."""
    plugin = find("objective", "ppo")
    config = plugin.configure({"beta": 0.0} | settings)
    return lambda batch: plugin.call(config, {"batch": batch})


def example(**more):
    """The specification's sequence, at ratio 1 and with the values unmoved."""
    given = {"rewards": [1.0], "groups": [0], "behaviour": [[-1.0] * 3]}
    return batch_of([[-1.0] * 3], ONES, **given | {"values": OLD_VALUES, "old_values": OLD_VALUES} | more)


def by_values(loss, batch):
    (found,) = torch.autograd.grad(loss(batch).value, batch.head_values, allow_unused=True)
    return found


def test_advantages_of_the_example_are_whitened():
    advantages = -3 * gradient(ppo(), example())[0]
    assert advantages.tolist() == pytest.approx([1.127910, -0.349795, -0.778115], abs=1e-6)


def test_the_critic_is_pulled_to_the_returns_of_the_example():
    batch = example()
    pulled = by_values(ppo(value=1.0), batch)
    returns = batch.values.detach() - 3 * pulled
    assert returns[0].tolist() == pytest.approx([0.956, 0.98, 1.0], abs=1e-6)
    loss = ppo(value=2.0)(batch)
    assert loss.metrics["value_loss"] == pytest.approx(0.160323, abs=1e-6)  # (.756^2 + .48^2 + .4^2) / 6
    assert loss.value.item() == pytest.approx(2 * 0.160323, abs=1e-6)  # whitened advantages add up to 0


def test_every_token_pays_for_its_distance_from_the_reference():
    """ReFT's token rewards of F2's first completion, log pi as old: -.005, -.005, .985."""
    first = {"old": F2_LOGPS[:1], "reference": F2_REFERENCE[:1], "values": [[0.0] * 3], "old_values": [[0.0] * 3]}
    batch = batch_of(F2_LOGPS[:1], ONES, rewards=[1.0], groups=[0], behaviour=F2_OLD[:1], **first)
    returns = -3 * by_values(ppo(beta=0.05, lam=1.0, value=1.0), batch)[0]
    assert returns.tolist() == pytest.approx([0.975, 0.98, 0.985], abs=1e-6)


def test_a_discount_makes_early_tokens_worth_less():
    batch = example(values=[[0.0] * 3], old_values=[[0.0] * 3])
    returns = -3 * by_values(ppo(gamma=0.5, lam=1.0, value=1.0), batch)[0]
    assert returns.tolist() == pytest.approx([0.25, 0.5, 1.0])


def test_the_surrogate_is_clipped_where_the_ratio_went_too_far():
    behaviour = [[-1.0, -1.0, -1.0 - math.log(0.7)]]  # ratios 1, 1, .7: the last advantage is below 0
    found = gradient(ppo(), example(behaviour=behaviour))[0]
    assert found[2] == 0
    assert (gradient(ppo(low=0.4), example(behaviour=behaviour))[0] != 0).all()


@pytest.mark.parametrize(
    ("value", "target", "clip", "loss", "pull"),
    [
        (0.9, 0.0, 0.2, 0.405, 0.9),  # moved away from the return
        (0.9, 1.0, 0.2, 0.045, 0.0),  # moved towards it, further than the clip
        (0.6, 1.0, 0.2, 0.08, -0.4),
        (0.9, 1.0, None, 0.005, -0.1),
    ],
)
def test_a_value_that_was_0_5(value, target, clip, loss, pull):
    now = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
    found = clipped_squares(now, torch.full_like(now, 0.5).detach(), torch.full_like(now, target).detach(), clip)
    assert found.item() == pytest.approx(loss, abs=1e-12)
    assert torch.autograd.grad(found.sum(), now)[0].item() == pytest.approx(pull, abs=1e-12)


def test_explained_variance_of_the_example():
    metrics = ppo()(example()).metrics
    returns, values = torch.tensor([0.956, 0.98, 1.0]), torch.tensor(OLD_VALUES[0])
    around = ((returns - returns.mean()) ** 2).sum()
    assert metrics["explained_variance"] == pytest.approx(float(1 - ((returns - values) ** 2).sum() / around), rel=1e-4)
    assert ppo()(example(values=[[0.956, 0.98, 1.0]])).metrics["explained_variance"] == pytest.approx(1.0)
    ones = torch.ones(1, 2)
    assert explained(ones, ones, ones, ones).item() == 0  # no return differs from another


@pytest.mark.parametrize("settings", [{}, {"beta": 0.1}, {"value_clip": None, "lam": 1.0}])
def test_micro_batches_add_up_to_the_step(settings):
    batch = random_step()
    check_cuts(ppo(**settings), batch)
    whole = by_values(ppo(**settings), batch)
    parts = sum(ppo(**settings)(part).value for part in micro_batches(batch, 3, 9))
    torch.testing.assert_close(torch.autograd.grad(parts, batch.head_values)[0], whole)
    assert ((whole != 0) <= (batch.mask > 0)).all()


def test_a_good_completion_becomes_more_likely_and_a_bad_one_less():
    zeros = torch.zeros(2, 3)
    batch = batch_of(
        F2_LOGPS, F2_MASK, rewards=[1.0, -1.0], groups=[0, 0], behaviour=F2_OLD, values=zeros, old_values=zeros
    )
    found = gradient(ppo(low=0.9, high=9.0), batch)
    assert (found[0] < 0).all()
    assert (found[1, :2] > 0).all()
    assert (by_values(ppo(), batch)[0] < 0).all()  # the critic learns to expect more
    assert (by_values(ppo(), batch)[1, :2] > 0).all()


def test_what_could_not_be_scored_has_no_part():
    batch = random_step()
    scored = torch.ones(12, dtype=torch.bool)
    scored[2] = False
    batch.step.rewards[2] = math.nan
    loss = ppo(beta=0.1)(batch)
    assert math.isfinite(loss.value.item())
    for of in (batch.logps, batch.head_values):
        found = torch.autograd.grad(loss.value, of, retain_graph=True)[0]
        assert (found[2] == 0).all()
        assert (found[scored] != 0).any()
    batch.step.old_values[2] += 7  # nor in what the others get
    assert ppo(beta=0.1)(batch).value.item() == loss.value.item()


def test_a_step_without_a_score_teaches_nothing():
    batch = random_step()
    batch.step.rewards[:] = math.nan
    assert (gradient(ppo(), batch) == 0).all()
    assert (by_values(ppo(), batch) == 0).all()


@pytest.mark.parametrize(
    ("lacking", "word"),
    [
        ({"values": None}, 'requires=\\("values",\\)'),
        ({"old_values": None}, 'old_values.*requires=\\("values",\\)'),
        ({"behaviour": None}, "behaviour_logps"),
        ({"old": None}, "old_logps"),
    ],
)
def test_nothing_is_made_up(lacking, word):
    given = {"old": [[-1.0] * 3], "reference": [[-1.0] * 3]}
    with pytest.raises(ValueError, match=word):
        ppo(beta=0.1)(example(**given | lacking))


def test_weights_multiply_a_completions_part():
    batch = random_step()
    doubled = dataclasses.replace(batch, weights=batch.weights * 2)
    assert ppo()(doubled).value.item() == pytest.approx(2 * ppo()(batch).value.item())


def test_what_it_asks_for():
    mark = find("objective", "ppo").mark
    plain, held = (mark.required(mark.config(beta=beta)) for beta in (0.0, 0.1))
    assert (mark.examples, plain) == ("group", {"values"})
    assert held == {"values", "reference", "old"}
    with pytest.raises(PluginError, match="values are of single completions"):
        stage("objective", examples="pair", requires=("values",))(_of_pairs)


def _of_pairs(config: Config, *, batch): ...
