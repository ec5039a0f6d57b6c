"""T-REG: rewards of tokens from two prompts, the term they make by hand, and a real training."""

import dataclasses
import math

import pytest
import torch
from objective_tools import tensor
from pair_tools import check_pair_cuts, gradients, pairs, random_pairs
from pydantic import ValidationError

from strop.core.algebra.pairs import contrasted
from strop.core.registry import find

PROMPTS = {"better": "Well: {prompt}", "worse": "Badly: {prompt}"}


def t_reg(**settings):
    plugin = find("objective", "t_reg")
    config = plugin.configure(PROMPTS | settings)
    return lambda batch: plugin.call(config, {"batch": batch})


def told(chosen, rejected, **more):
    """F3 with sigmoid(better - worse) - 1/2 of each token as given."""
    sides = [tensor([[math.log((0.5 + r) / (0.5 - r)) for r in side]]) for side in (chosen, rejected)]
    worse = tuple(torch.full_like(side, -3.0) for side in sides)
    better = tuple(low + side for low, side in zip(worse, sides, strict=True))
    return pairs(behind={"better": better, "worse": worse}, **more)


def test_a_token_twice_as_likely_behind_the_better_prompt():
    found = contrasted(tensor([math.log(0.6), math.log(0.3)]), tensor([math.log(0.3), math.log(0.6)]))
    assert found.tolist() == pytest.approx([0.166667, -0.166667], abs=1e-6)


def test_the_term_of_two_tokens_by_hand():
    batch = dataclasses.replace(
        told([0.2, 0.1], [0.0, 0.0]),
        chosen_logps=tensor([[-1.0, -2.0]]), chosen_mask=tensor([[1.0, 1.0]]),
        rejected_logps=tensor([[-1.0, -2.0]]), rejected_mask=tensor([[1.0, 1.0]]),
        reference_logps=(tensor([[-1.0, -2.0]]), tensor([[-1.0, -2.0]])),
    )  # fmt: skip
    # the sides are alike, so w = 1/2 and DPO's part is log 2
    assert (t_reg(alpha=1.0)(batch).value.item() - math.log(2)) / 0.5 == pytest.approx(0.040000, abs=1e-9)


def test_it_is_dpo_and_the_two_terms_weighed_by_what_is_not_told_apart():
    batch = told([0.2] * 5, [-0.1] * 8)
    # tokens of -.8 and -.75; w = sigmoid(-.09)
    regular = 1 / (1 + math.exp(0.09)) * (0.1 * 0.2 * 4 - 0.1 * 0.1 * 6)
    loss = t_reg(alpha=0.5)(batch)
    assert loss.value.item() == pytest.approx(0.649159 + 0.5 * regular, abs=1e-6)
    assert loss.metrics == {"accuracy": 1.0, "margin": pytest.approx(0.09)}
    assert t_reg(alpha=0.0)(batch).value.item() == pytest.approx(0.649159, abs=1e-6)


def test_tokens_asked_for_go_up_on_both_sides_and_the_weight_has_no_gradient():
    chosen, rejected = gradients(t_reg(alpha=0.5), told([0.2, 0.0, -0.2, 0.0, 0.0], [0.3] + [0.0] * 7))
    plain_w, plain_l = gradients(t_reg(alpha=0.0), told([0.0] * 5, [0.0] * 8))
    w = 0.5 * 0.1 / (1 + math.exp(0.09))
    assert (chosen - plain_w)[0].tolist() == pytest.approx([-0.2 * w, 0, 0.2 * w, 0, 0], abs=1e-12)
    assert (rejected - plain_l)[0].tolist() == pytest.approx([-0.3 * w] + [0] * 7, abs=1e-12)
    assert (plain_w < 0).all()


def test_micro_batches_change_nothing():
    check_pair_cuts(t_reg())


def test_weights_weigh_both_terms():
    whole, none = random_pairs(), random_pairs()
    none.weights.zero_()
    assert t_reg()(none).value.item() == 0
    assert t_reg()(whole).value.item() != 0


def test_nothing_is_made_up_where_the_prompts_were_not_read():
    with pytest.raises(ValueError, match="no log-probabilities behind the prompts"):
        t_reg()(pairs())


def test_a_prompt_without_a_place_for_the_examples_own_is_refused():
    with pytest.raises(ValidationError, match="better"):
        t_reg(better="Answer well.")
    assert t_reg(better="Answer well.\n{prompt}\n")
