"""Objectives of reward models: values worked by hand, edges, gradients, and TRL's RewardTrainer."""

import math
from unittest.mock import MagicMock

import pytest
import torch
from objective_tools import check_cuts, gradient, random_step, sequences, tensor
from trl_oracle import trl

from strop.core.registry import find
from strop.core.trainer.objective import Loss, ScoredPairs, ScoredSequences

CHOSEN, REJECTED, MARGINS = (1.0, 0.2, -0.5), (0.5, 0.7, -0.5), (1.0, 2.0, 0.5)


def loss(name: str, batch, **settings) -> Loss:
    plugin = find("objective", name)
    return plugin.call(plugin.configure(settings), {"batch": batch})


def pairs(chosen=CHOSEN, rejected=REJECTED, margins=MARGINS, rewards=None, weights=None) -> ScoredPairs:
    n = len(chosen)
    return ScoredPairs(
        chosen=tensor(chosen).clone().requires_grad_(),
        rejected=tensor(rejected).clone().requires_grad_(),
        weights=tensor(weights or (1.0,) * n),
        margins=tensor(margins),
        rewards=tensor(rewards or (math.nan,) * n),
        step_pairs=float(n),
    )


def slopes(name: str, batch: ScoredPairs, **settings):
    return torch.autograd.grad(loss(name, batch, **settings).value, (batch.chosen, batch.rejected))


def part(batch: ScoredPairs, rows: slice) -> ScoredPairs:
    cut = {name: getattr(batch, name)[rows] for name in ("chosen", "rejected", "weights", "margins", "rewards")}
    return ScoredPairs(**cut, step_pairs=batch.step_pairs)


def trl_reward(batch: ScoredPairs, *, margin: bool = False, center: float | None = None):
    """Value and gradients of TRL's loss on given scores."""
    chosen, rejected = (side.detach().clone().requires_grad_() for side in (batch.chosen, batch.rejected))
    this = MagicMock()
    this.args.center_rewards_coefficient = center
    this._tp_size, this._total_train_tokens = 1, 0
    this.accelerator.gather = this.accelerator.gather_for_metrics = lambda values: values
    model = MagicMock(return_value=MagicMock(logits=torch.cat([chosen, rejected])[:, None]))
    inputs = {"attention_mask": torch.ones(2, 2)} | ({"margin": batch.margins} if margin else {})
    value = trl("RewardTrainer").compute_loss(this, model, inputs)
    return value.item(), torch.autograd.grad(value, (chosen, rejected))


def test_bradley_terry_by_hand():
    # -log sigmoid of .5, -.5 and 0
    expected = (0.474077 + 0.974077 + 0.693147) / 3
    found = loss("bradley_terry", pairs())
    assert found.value.item() == pytest.approx(expected, abs=1e-6)
    assert found.metrics == {
        "accuracy": pytest.approx(1 / 3),
        "difference": pytest.approx(0.0),
        "level": pytest.approx(1.4 / 6),
    }


def test_margins_by_hand():
    # -log sigmoid of .5 - 1, -.5 - 2 and 0 - .5; scaled: 1, 2 and .5 times the plain ones
    assert loss("margin_bradley_terry", pairs()).value.item() == pytest.approx(
        (0.974077 + 2.578889 + 0.974077) / 3, abs=1e-6
    )
    assert loss("scaled_bradley_terry", pairs()).value.item() == pytest.approx(
        (0.474077 + 2 * 0.974077 + 0.5 * 0.693147) / 3, abs=1e-6
    )


def test_a_pair_without_a_margin_is_a_plain_one():
    plain, unknown = loss("bradley_terry", pairs()).value, pairs(margins=(math.nan,) * 3)
    for name in ("margin_bradley_terry", "scaled_bradley_terry"):
        torch.testing.assert_close(loss(name, unknown).value, plain)


def test_a_pair_that_an_ensemble_takes_for_mislabelled():
    against = pairs((0.0,), (0.0,), (-3.0,))
    assert loss("scaled_bradley_terry", against).value.item() == 0
    chosen, rejected = slopes("margin_bradley_terry", against)
    # sigma(-3): hardly pulled apart
    assert chosen.item() == pytest.approx(-0.047426, abs=1e-6)
    assert rejected.item() == pytest.approx(0.047426, abs=1e-6)


def test_regression_by_hand():
    batch = ScoredSequences(tensor((0.5, -1.0)), tensor((1.0, 0.0)), tensor((1.0, 2.0)), 2.0)
    assert loss("reward_regression", batch).value.item() == pytest.approx((0.25 + 2 * 1.0) / 2)


def test_combined_by_hand_and_at_its_ends():
    batch = pairs((1.0,), (0.5,), (2.0,), (3.0,))
    # 2 * .474077 + 1/2 ((1 - 3)^2 + (.5 - 1)^2)
    assert loss("combined_reward", batch).value.item() == pytest.approx(0.948154 + 2.125, abs=1e-6)
    assert loss("combined_reward", batch, scaled=False).value.item() == pytest.approx(0.474077 + 2.125, abs=1e-6)
    torch.testing.assert_close(
        loss("combined_reward", batch, regression=0).value, loss("scaled_bradley_terry", batch).value
    )
    perfect = pairs((3.0,), (1.0,), (2.0,), (3.0,))
    assert loss("combined_reward", perfect).value.item() == pytest.approx(2 * math.log1p(math.exp(-2)))


@pytest.mark.parametrize("name", ["bradley_terry", "margin_bradley_terry", "scaled_bradley_terry", "combined_reward"])
def test_the_chosen_score_is_raised_and_the_rejected_lowered(name):
    chosen, rejected = slopes(name, pairs(margins=(5.0, 5.0, 5.0), rewards=(2.0, 2.0, 2.0)))
    assert (chosen < 0).all()
    assert (rejected > 0).all()


@pytest.mark.parametrize("name", ["bradley_terry", "margin_bradley_terry", "scaled_bradley_terry", "combined_reward"])
def test_cut_into_micro_batches_it_is_the_same_and_weights_count(name):
    batch = pairs(rewards=(2.0, 2.0, 2.0), weights=(1.0, 0.5, 2.0))
    whole = loss(name, batch)
    parts = [loss(name, part(batch, rows)) for rows in (slice(0, 1), slice(1, 3))]
    torch.testing.assert_close(sum(p.value for p in parts), whole.value)
    for metric, value in whole.metrics.items():
        assert sum(p.metrics[metric] for p in parts) == pytest.approx(value)
    assert whole.value.item() != pytest.approx(loss(name, pairs(rewards=(2.0, 2.0, 2.0))).value.item())


@pytest.mark.parametrize(
    ("name", "settings", "oracle"),
    [
        ("bradley_terry", {}, {}),
        ("bradley_terry", {"center": 0.01}, {"center": 0.01}),
        ("margin_bradley_terry", {}, {"margin": True}),
    ],
)
def test_value_and_gradient_are_trls(name, settings, oracle):
    rng = torch.Generator().manual_seed(4)
    chosen, rejected, margins = torch.randn(3, 7, generator=rng, dtype=torch.float64).tolist()
    batch = pairs(chosen, rejected, margins)
    value, (of_chosen, of_rejected) = trl_reward(batch, **oracle)
    assert loss(name, batch, **settings).value.item() == pytest.approx(value, abs=1e-12)
    ours = slopes(name, batch, **settings)
    torch.testing.assert_close(ours[0], of_chosen)
    torch.testing.assert_close(ours[1], of_rejected)


PRIME = {
    "logps": ((-0.3, -0.1), (-0.6, -0.2), (-0.5, -1.1)),
    "mask": ((1.0, 1.0), (1.0, 1.0), (1.0, 1.0)),
    "reference": ((-0.5, -0.5), (-0.5, -0.5), (-0.5, -0.5)),
    "rewards": (1.0, 1.0, 0.0),
    "groups": (0, 0, 0),
}
"""q = [.2, .4], [-.1, .3], [0, -.6] with outcomes 1, 1, 0: sigma(.05 sum q) = .507499, .502500, .492501."""


def test_implicit_reward_by_hand():
    expected = -(math.log(0.507499) + math.log(0.502500) + math.log(1 - 0.492501)) / 3
    found = loss("implicit_reward", sequences(**PRIME))
    assert found.value.item() == pytest.approx(expected, abs=2e-6)
    assert found.metrics == {"accuracy": pytest.approx(1.0)}


def test_implicit_reward_raises_what_was_right_and_lowers_what_was_wrong():
    slope = gradient(lambda batch: loss("implicit_reward", batch), sequences(**PRIME))
    # -beta (outcome - sigma) / 3 at every token
    assert slope[0].tolist() == pytest.approx([-0.05 * (1 - 0.507499) / 3] * 2, abs=1e-7)
    assert slope[2].tolist() == pytest.approx([0.05 * 0.492501 / 3] * 2, abs=1e-7)


def test_implicit_reward_cut_into_micro_batches_is_the_same():
    check_cuts(lambda batch: loss("implicit_reward", batch, beta=0.5), random_step())


def test_implicit_reward_needs_outcomes_and_a_reference():
    with pytest.raises(ValueError, match=r"needs rewards 0 and 1, got 0\.5"):
        loss("implicit_reward", sequences(**PRIME | {"rewards": (0.5, 1.0, 0.0)}))
    with pytest.raises(ValueError, match="reference_logps"):
        loss("implicit_reward", sequences(**PRIME | {"reference": None}))
