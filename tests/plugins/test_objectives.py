"""Objectives against numbers worked by hand (fixtures F2 and F3) and against TRL."""

from __future__ import annotations

import math
import warnings
from unittest.mock import MagicMock

import pytest
import torch
from objective_tools import F2_LOGPS, check_cuts, gradient, sequences

from strop.core.registry import find
from strop.core.trainer.objective import PairBatch
from strop.plugins.objectives.dpo import Dpo, dpo
from strop.plugins.objectives.sft import Sft, sft


def pairs(chosen=(-4.0,), rejected=(-6.0,), reference=((-4.5,), (-5.6,)), weights=None, step_pairs=1.0):
    """F3: sums over 5 and 8 tokens, spread evenly."""
    n = len(chosen)
    sides = [
        torch.tensor([[s / length] * length for s in sums], dtype=torch.float64, requires_grad=True)
        for sums, length in ((chosen, 5), (rejected, 8))
    ]
    return PairBatch(
        chosen_logps=sides[0],
        chosen_mask=torch.ones(n, 5, dtype=torch.float64),
        rejected_logps=sides[1],
        rejected_mask=torch.ones(n, 8, dtype=torch.float64),
        weights=torch.ones(n, dtype=torch.float64) if weights is None else torch.tensor(weights, dtype=torch.float64),
        margins=torch.full((n,), math.nan),
        step_pairs=step_pairs,
        step_chosen_tokens=5.0 * step_pairs,
        reference_chosen=torch.tensor(reference[0], dtype=torch.float64),
        reference_rejected=torch.tensor(reference[1], dtype=torch.float64),
    )


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
    two = pairs((-4.0, -6.0), (-6.0, -4.0), ((-4.5, -5.6), (-5.6, -4.5)), weights=(2.0, 1.0), step_pairs=4.0)
    loss = dpo(Dpo(), batch=two)
    assert loss.value.item() == pytest.approx((2 * 0.649159 + 0.739159) / 4, abs=5e-7)
    assert loss.metrics == {"accuracy": 0.25, "margin": pytest.approx(0.0)}


def test_dpo_without_reference_says_so():
    batch = pairs()
    with pytest.raises(ValueError, match="reference"):
        dpo(
            Dpo(),
            batch=PairBatch(
                **{n: getattr(batch, n) for n in PairBatch.__slots__ if not n.startswith("reference")},
            ),
        )


def test_dpo_refuses_a_beta_of_zero():
    with pytest.raises(ValueError, match="greater than 0"):
        Dpo(beta=0.0)


def test_the_registry_finds_both_with_what_they_learn_from():
    assert find("objective", "sft").mark.examples == "sft"
    assert find("objective", "dpo").mark.examples == "pair"
    assert find("objective", "dpo").mark.requires == {"reference"}


@pytest.mark.parametrize(
    ("nll", "types", "weights"), [(0.0, ["sigmoid"], [1.0]), (0.7, ["sigmoid", "sft"], [1.0, 0.7])]
)
def test_dpo_equals_trl(nll, types, weights):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl import DPOTrainer

    torch.manual_seed(0)
    lengths = [(5, 8), (3, 2), (7, 7), (1, 4)]
    logps = [[-torch.rand(n) for n in side] for side in zip(*lengths, strict=True)]
    reference = [-torch.rand(4) * 5 for _ in range(2)]

    def padded(rows, width):
        return torch.stack([torch.cat([row, torch.zeros(width - len(row))]) for row in rows])

    chosen, rejected = (padded(side, 8) for side in logps)
    mask = padded([torch.ones(len(row)) for side in logps for row in side], 8)
    batch = PairBatch(
        chosen_logps=chosen.requires_grad_(),
        chosen_mask=mask[:4],
        rejected_logps=rejected.requires_grad_(),
        rejected_mask=mask[4:],
        weights=torch.ones(4),
        margins=torch.zeros(4),
        step_pairs=4.0,
        step_chosen_tokens=16.0,
        reference_chosen=reference[0],
        reference_rejected=reference[1],
    )
    ours = dpo(Dpo(beta=0.3, nll=nll), batch=batch).value
    ours.backward()

    theirs = torch.cat([chosen, rejected]).detach().requires_grad_()
    trainer = trl_self(0.3, types, weights)
    zeros = torch.zeros(8, 8)
    outputs = MagicMock(log_probs=theirs, entropy=zeros, mean_logits=zeros, is_top1=zeros > 0)
    inputs = {
        "input_ids": torch.zeros(8, 9, dtype=torch.long),
        "attention_mask": torch.ones(8, 9),
        "completion_mask": torch.cat([torch.zeros(8, 1), mask], dim=1).long(),
        "ref_chosen_logps": reference[0],
        "ref_rejected_logps": reference[1],
    }
    loss = DPOTrainer._compute_loss(trainer, MagicMock(return_value=outputs), inputs, False)
    loss.backward()
    assert ours.item() == pytest.approx(loss.item(), abs=1e-6)
    torch.testing.assert_close(torch.cat([batch.chosen_logps.grad, batch.rejected_logps.grad]), theirs.grad * mask)


def trl_self(beta, types, weights):
    """A stand-in for TRL's trainer: what `_compute_loss` reads of it, and nothing behind it."""
    trainer = MagicMock()
    trainer.beta, trainer.loss_types, trainer.loss_weights = beta, types, weights
    trainer.f_divergence_type, trainer.ld_alpha, trainer.precompute_ref_logps = "reverse_kl", None, True
    trainer.label_smoothing, trainer.use_weighting, trainer.aux_loss_enabled = 0.0, False, False
    trainer.accelerator.device = "cpu"
    trainer.accelerator.gather = trainer.accelerator.gather_for_metrics = lambda x: x
    return trainer
