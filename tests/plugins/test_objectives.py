"""Objectives against numbers worked by hand (fixtures F2 and F3)."""

from __future__ import annotations

import math

import pytest
from objective_tools import F2_LOGPS, check_cuts, gradient, sequences
from pair_tools import pairs

from strop.core.registry import find
from strop.plugins.objectives.dpo import Dpo, dpo
from strop.plugins.objectives.sft import Sft, sft


def test_sft_is_the_token_mean_of_f2():
    assert sft(Sft(), batch=sequences()).value.item() == pytest.approx(0.66, abs=1e-9)


def test_sft_gradient_raises_every_covered_token_alike_and_no_other():
    found = gradient(lambda batch: sft(Sft(), batch=batch), sequences())
    assert found.tolist() == [[-0.2, -0.2, -0.2], [-0.2, -0.2, 0.0]]


def test_sft_ignores_what_lies_under_the_mask():
    loud = [F2_LOGPS[0], [-1.2, -0.4, -99.0]]
    assert sft(Sft(), batch=sequences(loud)).value.item() == pytest.approx(0.66, abs=1e-9)


def test_sft_multiplies_each_sequence_by_its_weight():
    # (2 * 1.7 + 0.5 * 1.6) / 5
    assert sft(Sft(), batch=sequences(weights=(2.0, 0.5))).value.item() == pytest.approx(0.84, abs=1e-9)


def test_sft_of_micro_batches_adds_up_to_that_of_the_step():
    check_cuts(lambda batch: sft(Sft(), batch=batch))


def test_dpo_of_f3():
    loss = dpo(Dpo(), batch=pairs())
    assert loss.value.item() == pytest.approx(0.649159, abs=5e-7)
    assert loss.metrics == {"accuracy": 1.0, "margin": pytest.approx(0.09)}


def test_dpo_gradient_raises_the_chosen_and_lowers_the_rejected_by_beta_sigmoid():
    batch = pairs()
    dpo(Dpo(), batch=batch).value.backward()
    assert batch.chosen_logps.grad.tolist()[0] == pytest.approx([-0.0477515] * 5, abs=5e-8)
    assert batch.rejected_logps.grad.tolist()[0] == pytest.approx([0.0477515] * 8, abs=5e-8)


def test_dpo_of_the_pair_turned_round_is_higher_by_the_margin():
    turned = pairs(chosen=(-6.0,), rejected=(-4.0,), reference=((-5.6,), (-4.5,)))
    loss = dpo(Dpo(), batch=turned)
    assert loss.value.item() == pytest.approx(0.649159 + 0.09, abs=5e-7)
    assert loss.metrics["accuracy"] == 0.0


def test_dpo_at_the_reference_is_log_two_whatever_the_pair():
    assert dpo(Dpo(beta=3.0), batch=pairs(reference=((-4.0,), (-6.0,)))).value.item() == pytest.approx(math.log(2))


def test_dpo_anchor_adds_the_chosen_nll_per_token():
    # 4 nats over 5 tokens = .8; the rejected side has no part in it
    assert dpo(Dpo(nll=0.5), batch=pairs()).value.item() == pytest.approx(0.649159 + 0.4, abs=5e-7)


def test_dpo_beta_scales_the_margin():
    # -log sigmoid(.5 * .9)
    assert dpo(Dpo(beta=0.5), batch=pairs()).value.item() == pytest.approx(0.493249, abs=5e-7)


def test_dpo_weighs_pairs_and_divides_by_the_pairs_of_the_step():
    two = pairs((-4.0, -6.0), (-6.0, -4.0), ((-4.5, -5.6), (-5.6, -4.5)), weights=(2.0, 1.0), step=4.0)
    loss = dpo(Dpo(), batch=two)
    assert loss.value.item() == pytest.approx((2 * 0.649159 + 0.739159) / 4, abs=5e-7)
    assert loss.metrics == {"accuracy": 0.25, "margin": pytest.approx(0.0)}


def test_dpo_refuses_a_beta_of_zero():
    with pytest.raises(ValueError, match="greater than 0"):
        Dpo(beta=0.0)


def test_the_registry_finds_both_with_what_they_learn_from():
    assert find("objective", "sft").mark.examples == "sft"
    assert find("objective", "dpo").mark.examples == "pair"
    assert find("objective", "dpo").mark.requires == {"reference"}
