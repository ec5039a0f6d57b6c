"""Policy-gradient objectives against numbers worked by hand (F1, F2) and against TRL."""

import math

import pytest
import torch
from objective_tools import (
    F1_GROUPS,
    F1_LENGTHS,
    F1_REWARDS,
    F2_LOGPS,
    F2_OLD,
    F2_REFERENCE,
    check_cuts,
    f2,
    gradient,
    random_step,
    sequences,
)
from trl_oracle import grpo as trl_grpo
from trl_oracle import rloo as trl_rloo

from strop.core.algebra.advantages import centred, left_one_out, standardised
from strop.core.registry import find

NAMES = [
    "reinforce", "rloo", "grpo", "dr_grpo", "dapo", "reinforce_pp", "gspo", "cispo", "bnpo", "topr", "opmd", "asym_re",
    "rec", "w_reinforce", "opo", "stable_reinforce",
]  # fmt: skip


def objective(name: str, **settings):
    """The plugin as the trainer calls it."""
    plugin = find("objective", name)
    config = plugin.configure(settings)
    return lambda batch: plugin.call(config, {"batch": batch})


def f1(**more):
    """F1's rewards and lengths, all log-probabilities -1 as sampled."""
    mask = (torch.arange(5) < torch.tensor(F1_LENGTHS)[:, None]).double()
    logps = -mask
    return sequences(logps, mask, **{"rewards": F1_REWARDS, "groups": F1_GROUPS, "behaviour": logps} | more)


@pytest.mark.parametrize("name", NAMES)
def test_micro_batches_add_up_to_the_step(name):
    check_cuts(objective(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_better_completion_becomes_more_likely_and_a_worse_one_less(name):
    settings = {"high": 0.9, "low": 0.9} if name == "gspo" else {}
    found = gradient(objective(name, **settings), f1())
    mask = f1().mask > 0
    best, worst = found[0][mask[0]], found[7][mask[7]]
    assert (best < 0).all()
    assert (worst > 0).all() if name != "reinforce" else (worst == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_what_could_not_be_scored_has_no_part(name):
    batch = f1()
    batch.step.rewards[1] = math.nan
    loss = objective(name)(batch)
    assert math.isfinite(loss.value.item())
    assert (torch.autograd.grad(loss.value, batch.logps)[0][1] == 0).all()


FLAT = {"reinforce", "reinforce_pp", "topr", "asym_re", "w_reinforce", "stable_reinforce"}
"""No group to compare within: equal rewards teach too."""


@pytest.mark.parametrize("name", sorted(set(NAMES) - FLAT))
def test_a_step_of_equal_rewards_teaches_nothing(name):
    assert (gradient(objective(name), f1(rewards=[1.0] * 8)) == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_weights_multiply_a_completions_part(name):
    one = gradient(objective(name), f1())
    weighed = gradient(objective(name), f1(weights=(2.0, *[1.0] * 7)))
    torch.testing.assert_close(weighed[0], 2 * one[0])
    torch.testing.assert_close(weighed[1:], one[1:])


@pytest.mark.parametrize("name", [n for n in NAMES if "logps" in find("objective", n).mark.needs])
def test_a_ratio_is_never_made_up(name):
    with pytest.raises(ValueError, match="behaviour_logps"):
        objective(name)(f1(behaviour=None))


def test_clipped_surrogates_of_f2():
    # by TRL, whose advantages +1 and -1 are those of `centred`; `standardised` divides by 1.414314
    scale = float(standardised(torch.tensor([1.0, -1.0]).double(), torch.tensor([0, 0]))[0])
    assert scale == pytest.approx(1 / (math.sqrt(2) + 1e-4))
    found = {
        "grpo": objective("grpo")(f2()).value.item() / scale,
        "dapo at .2": objective("dapo", high=0.2)(f2()).value.item() / scale,
        "dapo": objective("dapo")(f2()).value.item() / scale,
        "dr_grpo": objective("dr_grpo", length=4)(f2()).value.item(),
        "gspo": objective("gspo", low=0.2, high=0.2)(f2()).value.item() / scale,
        "cispo": objective("cispo")(f2()).value.item() / scale,
    }
    assert found == pytest.approx(
        {
            "grpo": -0.074514,
            "dapo at .2": -0.279933,
            "dapo": -0.300214,
            "dr_grpo": -0.174958,
            "gspo": -0.160326,
            "cispo": 0.105017,
        },
        abs=1e-6,
    )


def test_gradients_of_the_clip_on_f2():
    scale = float(standardised(torch.tensor([1.0, -1.0]).double(), torch.tensor([0, 0]))[0])
    found = gradient(objective("dapo", high=0.2), f2()) / scale
    assert found.flatten().tolist() == pytest.approx([0, -0.180967, 0, 0, 0.221034, 0], abs=1e-6)
    found = gradient(objective("dapo"), f2()) / scale
    assert found.flatten().tolist() == pytest.approx([-0.244281, -0.180967, 0, 0, 0.221034, 0], abs=1e-6)


def test_the_penalty_of_grpo_is_k3_to_the_reference():
    batch = f2(reference=F2_REFERENCE)
    more = objective("grpo", kl=0.1)(batch).value - objective("grpo")(batch).value
    d = torch.tensor(F2_LOGPS).double() - torch.tensor(F2_REFERENCE).double()
    k3 = ((-d).exp() + d - 1) * batch.mask
    assert more.item() == pytest.approx(0.1 * float((k3.sum(1) / batch.mask.sum(1)).mean()))
    assert find("objective", "grpo").mark.required(find("objective", "grpo").configure({})) == frozenset()
    assert find("objective", "grpo").mark.required(find("objective", "grpo").configure({"kl": 0.1})) == {"reference"}


def test_reinforce_and_its_off_policy_kin_on_f2():
    # REINFORCE with A = +1, -1: token-mean of -A log pi = .02
    assert objective("reinforce")(f2()).value.item() == pytest.approx(0.02)
    assert objective("opmd")(f2()).value.item() == pytest.approx(0.01)
    assert objective("asym_re", shift=0.0)(f2()).value.item() == pytest.approx(0.02)
    # one-side masks seq1's tokens 1 and 3 (ratio above 1.2) and seq2's first (below .8)
    assert objective("rec")(f2()).value.item() == pytest.approx((1.0 - 0.4) / 5)
    assert objective("rec", importance=True)(f2()).value.item() == pytest.approx(0.092554, abs=1e-6)


def test_one_side_keeps_a_token_that_two_side_drops():
    batch = f2(behaviour=[[0.193147, -0.9, -0.2], [-1.2, -0.4, 0.0]])  # ratio .5 where the advantage is positive
    kept, dropped = (gradient(objective("rec", mask=mask), batch)[0, 0] for mask in ("one_side", "two_side"))
    assert kept == pytest.approx(-0.2)
    assert dropped == 0


def test_topr_of_f2_tapers_the_wrong_completion_by_its_whole_ratio():
    # R = +1, -1: (1.7 + .740818 * -1.6) / 2
    assert objective("topr")(f2(rewards=(1.0, 0.0))).value.item() == pytest.approx(0.257345, abs=1e-6)
    unlikely = f2(rewards=(1.0, 0.0), behaviour=[F2_OLD[0], (-3.0, -3.0, 0.0)])
    assert objective("topr")(unlikely).value.item() == pytest.approx((1.7 - 1.6) / 2)


def test_w_reinforce_weighs_the_two_classes():
    mask = torch.ones(4, 1).double()
    batch = sequences(-mask, mask, rewards=(1.0, 0, 0, 0), groups=[0] * 4, behaviour=-mask)
    assert (-4 * gradient(objective("w_reinforce"), batch))[:, 0].tolist() == pytest.approx([0.1, -1, -1, -1])
    psr = objective("w_reinforce", positive=1, negative=0)
    assert (-4 * gradient(psr, batch))[:, 0].tolist() == pytest.approx([1, 0, 0, 0])
    with pytest.raises(ValueError, match="learns nothing"):
        objective("w_reinforce", positive=0, negative=0)


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("opo", {}, [0.75, *[-0.25] * 3, *[1 - 0.583333] * 3, -0.583333]),
        ("bnpo", {}, [0.716606, *[-0.238869] * 3, *[0.238869] * 3, -0.716606]),
        ("reinforce_pp", {}, [1.158303, *[-0.827360] * 3, *[1.158303] * 3, -0.827360]),
        ("reinforce_pp", {"baseline": True}, [1.730547, *[-0.346109] * 3, *[0.692219] * 3, -1.384437]),
        ("asym_re", {}, [0.85, *[-0.15] * 3, *[0.35] * 3, -0.65]),
        ("opmd", {"baseline": "softmax", "tau": 1.0}, [0.321313, *[-0.178687] * 3, *[None] * 4]),
    ],
    ids=["opo", "bnpo", "reinforce_pp", "reinforce_pp baseline", "asym_re", "opmd softmax"],
)
def test_advantages_of_f1_arrive_at_every_token(name, settings, expected):
    """On-policy a token's gradient is its advantage over what the loss divides by."""
    batch = f1()
    found = gradient(objective(name, **settings), batch)
    per_token = {"opo", "reinforce_pp"}
    lengths = batch.mask.sum(1)
    divisor = {"bnpo": torch.full_like(lengths, 8.0)}.get(
        name, 8 * lengths if name in per_token else torch.full_like(lengths, float(lengths.sum()))
    )
    advantage = -found * divisor[:, None]
    for row, value, mask in zip(advantage, expected, batch.mask, strict=True):
        if value is not None:
            assert row[mask > 0].tolist() == pytest.approx([value] * int(mask.sum()), abs=1.1e-6)


def test_far_out_advantages_are_dropped_and_log_ratios_bounded():
    mask = torch.ones(40, 1).double()
    rewards = [100.0] + [0.0] * 39
    batch = sequences(-mask, mask, rewards=rewards, groups=[0] * 40, behaviour=-mask)
    found = gradient(objective("stable_reinforce"), batch)
    assert found[0] == 0
    assert (found[1:] > 0).all()
    assert gradient(objective("stable_reinforce", sigmas=10), batch)[0] < 0
    far = sequences(-mask[:2], mask[:2], rewards=(0.0, 1.0), groups=(0, 0), behaviour=-50 * mask[:2])
    assert objective("stable_reinforce")(far).value.item() == pytest.approx((1000 - 1.2) / 2 * 0.707107, rel=1e-4)


def test_a_beta_needs_rewards_between_0_and_1():
    with pytest.raises(ValueError, match="between 0 and 1"):
        objective("bnpo")(f2())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "settings", "advantage", "theirs"),
    [
        ("grpo", {}, standardised, {}),
        ("grpo", {"kl": 0.3}, standardised, {"beta": 0.3}),
        ("grpo", {"low": 0.1, "high": 0.4}, standardised, {"epsilon_low": 0.1, "epsilon_high": 0.4}),
        ("dr_grpo", {"length": 9}, centred, {"loss_type": "dr_grpo", "max_completion_length": 9}),
        ("dapo", {"cap": None}, standardised, {"loss_type": "dapo", "epsilon_high": 0.28}),
        ("gspo", {"low": 0.2, "high": 0.2}, standardised, {"importance_sampling_level": "sequence"}),
        ("cispo", {}, standardised, {"loss_type": "cispo", "epsilon_high": 1.28}),
    ],
    ids=["grpo", "grpo kl", "grpo bounds", "dr_grpo", "dapo", "gspo", "cispo"],
)
def test_it_is_what_trl_computes(name, settings, advantage, theirs, seed):
    batch = random_step(seed)
    found = objective(name, **settings)(batch)
    value, slope = trl_grpo(batch, advantage(batch.step.rewards, batch.step.group_ids), **theirs)
    assert found.value.item() == pytest.approx(value, abs=1e-9)
    torch.testing.assert_close(torch.autograd.grad(found.value, batch.logps)[0], slope * batch.mask)


@pytest.mark.parametrize("seed", range(3))
def test_rloo_is_what_trl_computes(seed):
    batch = random_step(seed)
    found = objective("rloo")(batch)
    value, slope = trl_rloo(batch, left_one_out(batch.step.rewards, batch.step.group_ids))
    assert found.value.item() == pytest.approx(value, abs=1e-9)
    torch.testing.assert_close(torch.autograd.grad(found.value, batch.logps)[0], slope * batch.mask)


def test_rloo_of_f2_and_of_a_lonely_completion():
    assert objective("rloo")(f2()).value.item() / 2 == pytest.approx(-0.2)  # leave-one-out doubles +1 and -1
    assert (gradient(objective("rloo"), f2(groups=(0, 1))) == 0).all()
