"""Preference objectives against numbers worked by hand (F3) and against TRL 1.16, in value and gradient."""

from __future__ import annotations

import dataclasses
import importlib
import math
from functools import partial

import pytest
import torch
import trl_pairs
from objective_tools import check_cuts, gradient, random_step, sequences
from pair_tools import check_pair_cuts, gradients, pairs, random_pairs, turned

from strop.core.registry import find


def method(name: str, **config):
    """The objective under this config, of a batch."""
    plugin = find("objective", name)
    return lambda batch: plugin.call(plugin.configure(config), {"batch": batch})


EXTRA = {"margins": (0.5,), "old": ((-4.2,), (-5.5,))}
"""What some methods read besides F3; the log-ratios to the old policy are .2 and -.5."""

F3 = [
    ("dpo", {}, 0.649159),
    ("dpo", {"nll": 1.0}, 1.449159),
    ("dpo", {"label_smoothing": 0.1}, 0.658159),  # .9 * .649159 + .1 * .739159
    ("slic", {"beta": 0.1}, 0.91),
    ("slic", {}, 0.955),
    ("slic", {"norm": False}, 0.9),
    ("slic", {"norm": False, "nll": 0.5}, 1.3),
    ("ipo", {}, 23.5225),
    ("robust_dpo", {}, 0.637909),
    ("exo_pair", {"smoothing": 0.1}, 0.462433),
    ("nca_pair", {}, 1.364363),
    ("bco_pair", {}, 1.341807),
    ("sppo_hard", {"beta": 0.1}, 41.41),
    ("apo_zero", {}, 0.977504),
    ("apo_down", {}, 0.990013),
    ("discopop", {}, 0.876373),
    ("dpo_norm", {"beta": 0.1}, 0.685675),
    ("f_dpo", {"divergence": "forward_kl"}, 0.649862),
    ("f_dpo", {"divergence": "js"}, 0.671441),
    ("f_dpo", {"divergence": "alpha"}, 0.649866),
    ("simpo", {"beta": 0.1, "gamma": 0.5}, 0.977192),
    ("simpo", {}, 1.387335),
    ("cpo", {}, 1.398139),
    ("cpo", {"nll": 0.0}, 0.598139),
    ("orpo", {}, 0.874059),
    # -log sigmoid(.1 * .9 - .01 * 3)
    ("rdpo", {}, 0.663597),
    # the last 3 tokens of the rejected count half: D_rejected = -.4 * (5 + .5 * 3) / 8 = -.325; -log sigmoid(.0825)
    ("ld_dpo", {}, 0.652747),
    ("ld_dpo", {"alpha": 1.0}, 0.649159),
    # r = 1 - 1 / p at alpha 1: 1 - e^.8 and 1 - e^.75; -log sigmoid(2 * -.108541 - 1)
    ("alpha_po", {"alpha": 1.0}, 1.476436),
    ("step_apo", {}, 0.814745),
    ("dno", {}, 0.683138),
    ("refuel", {}, 0.04),  # (.7 - .5)^2
    ("refuel", {"eta": 2.0}, 0.09),  # (.7 - 2 * .5)^2
]


@pytest.mark.parametrize(("name", "config", "value"), F3)
def test_the_loss_of_f3(name, config, value):
    assert method(name, **config)(pairs(**EXTRA)).value.item() == pytest.approx(value, abs=1.1e-6)


def test_refuel_of_the_specs_returns():
    # returns .8 and .2, eta 1: (.9 - .6)^2
    assert method("refuel")(pairs(margins=(0.6,), old=((-4.5,), (-5.6,)))).value.item() == pytest.approx(0.09, abs=1e-9)


PAIRED = sorted({name for name, _, _ in F3})
OF_ITS_SIDES = [name for name in PAIRED if name not in {"refuel", "apo_down", "discopop"}]


@pytest.mark.parametrize("name", OF_ITS_SIDES)
def test_the_gradient_raises_the_chosen_and_lowers_the_rejected(name):
    chosen, rejected = gradients(method(name), pairs(**EXTRA))
    assert (chosen < 0).all()
    assert (rejected > 0).all()


def test_apo_down_lowers_both_the_rejected_more():
    # D .5 and -1: sigmoid'(.5) - sigmoid'(1.5) and sigmoid'(1.5)
    chosen, rejected = gradients(method("apo_down", beta=1.0), pairs(reference=((-4.5,), (-5.0,))))
    assert chosen.tolist()[0] == pytest.approx([0.085857] * 5, abs=1e-6)
    assert rejected.tolist()[0] == pytest.approx([0.149146] * 8, abs=1e-6)


def test_discopop_rests_below_zero():
    found = [gradients(method("discopop"), pairs(reference=((-4.0,), (-6.0 - d,))))[0].sum() for d in (-10.0, 0, 10.0)]
    signs = [math.copysign(1, -g) for g in found]
    assert signs == [1.0, -1.0, 1.0]  # dragged back at m = 0, driven apart on either side


def test_refuel_pulls_towards_the_returns_from_both_sides():
    for margin, sign in ((0.5, 1), (1.5, -1)):
        chosen, rejected = gradients(method("refuel"), pairs(margins=(margin,), old=EXTRA["old"]))
        assert (sign * chosen > 0).all()
        assert (sign * rejected < 0).all()


def test_refuel_does_not_care_which_side_is_called_chosen():
    there = method("refuel")(pairs(margins=(0.5,), old=EXTRA["old"])).value
    back = pairs((-6.0,), (-4.0,), old=((-5.5,), (-4.2,)), margins=(-0.5,))
    assert method("refuel")(back).value.item() == pytest.approx(there.item())


@pytest.mark.parametrize("name", [name for name in PAIRED if name not in {"refuel", "discopop", "dno", "step_apo"}])
def test_the_pair_turned_round_costs_more(name):
    objective = method(name)
    right, wrong = objective(pairs()), objective(turned())
    assert wrong.value > right.value
    assert wrong.metrics["accuracy"] <= right.metrics["accuracy"]
    assert wrong.metrics["margin"] < right.metrics["margin"]


@pytest.mark.parametrize(("name", "config"), [(name, config) for name, config, _ in F3])
def test_the_cut_into_micro_batches_changes_nothing(name, config):
    check_pair_cuts(method(name, **config))


@pytest.mark.parametrize("name", PAIRED)
def test_a_pair_of_weight_zero_teaches_nothing_and_counts_in_the_mean(name):
    batch = dataclasses.replace(random_pairs(n=2), weights=torch.tensor([2.0, 0.0], dtype=torch.float64))
    chosen, rejected = gradients(method(name), batch)
    assert chosen[0].abs().sum() > 0
    assert (chosen[1] == 0).all()
    assert (rejected[1] == 0).all()
    single = dataclasses.replace(batch, weights=torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert method(name)(batch).value.item() == pytest.approx(2 * method(name)(single).value.item())


REFERRING = [name for name in PAIRED if find("objective", name).mark.required(find("objective", name).mark.config())]


@pytest.mark.parametrize("name", REFERRING)
def test_without_its_policy_a_method_says_which_mark_asks_for_it(name):
    wanted = "old" if name == "refuel" else "reference"
    with pytest.raises(ValueError, match=rf"no {wanted}_logps: .* requires=\('{wanted}',\)"):
        method(name)(pairs(reference=None, margins=(0.5,)))


def test_what_needs_a_reference_is_marked_so():
    assert set(PAIRED) - set(REFERRING) == {"simpo", "alpha_po", "cpo", "orpo"}
    slic = find("objective", "slic")
    assert slic.mark.required(slic.configure({"norm": False})) == frozenset()
    assert all(find("objective", name).mark.examples == "pair" for name in PAIRED)
    with_margin = {name for name in PAIRED if "margin" in find("objective", name).mark.needs}
    assert with_margin == {"step_apo", "dno", "refuel"}
    assert find("objective", "refuel").mark.requires == {"old"}


@pytest.mark.parametrize("name", PAIRED)
def test_sides_without_a_covered_token_give_no_nan(name):
    batch = random_pairs(n=2)
    bare = dataclasses.replace(batch, chosen_mask=batch.chosen_mask * 0, rejected_mask=batch.rejected_mask * 0)
    chosen, rejected = gradients(method(name), dataclasses.replace(bare, step_chosen_tokens=1.0))
    assert (chosen == 0).all()
    assert (rejected == 0).all()


FAR = [(name, {}) for name in PAIRED if name not in {"sppo_hard", "ipo", "refuel"}]
FAR += [("f_dpo", {"divergence": "forward_kl"}), ("f_dpo", {"divergence": "alpha", "beta": 1.0})]
FAR += [("discopop", {"beta": 1.0}), ("alpha_po", {"alpha": 2.0})]


@pytest.mark.parametrize(("name", "config"), FAR)
@pytest.mark.parametrize("side", ["chosen_logps", "rejected_logps"])
def test_pairs_far_apart_stay_finite_in_float32(name, config, side):
    low = torch.full((1, 6), -60.0).requires_grad_()
    batch = dataclasses.replace(random_pairs(n=1, dtype=torch.float32), **{side: low})
    found = (method(name, **config)(batch).value, *gradients(method(name, **config), batch))
    assert all(torch.isfinite(x).all() for x in found)


def test_orpo_bears_a_certain_completion():
    batch = pairs(chosen=(0.0,))
    chosen, _ = gradients(method("orpo"), batch)
    assert torch.isfinite(method("orpo")(batch).value)
    assert torch.isfinite(chosen).all()


def test_ipo_pulls_back_a_pair_that_is_won_by_more_than_its_target():
    # beta 5: target .1 nats a token; F3 has .15
    chosen, rejected = gradients(method("ipo", beta=5.0), pairs())
    assert (chosen > 0).all()
    assert (rejected < 0).all()


def test_slic_leaves_a_pair_beyond_its_margin_alone():
    assert all((g == 0).all() for g in gradients(method("slic", beta=2.0), pairs()))


def test_robust_dpo_is_dpo_in_the_mean_over_flipped_labels():
    robust = method("robust_dpo", flipped=0.3)
    mean = 0.7 * robust(pairs()).value + 0.3 * robust(turned()).value
    assert mean.item() == pytest.approx(0.649159, abs=1e-6)


def test_exo_rests_where_the_pair_is_won_as_often_as_the_target_says():
    # m = log(.9 / .1) with beta 1
    chosen, _ = gradients(
        method("exo_pair", beta=1.0, smoothing=0.1), pairs(reference=((-4.0 - math.log(9),), (-6.0,)))
    )
    assert chosen.abs().max() < 1e-9


def test_dno_rests_where_the_odds_are_those_of_the_win_rates():
    chosen, _ = gradients(method("dno", eta=1.0), pairs(margins=(0.9,)))
    assert chosen.abs().max() < 1e-9


def test_rdpo_learns_less_from_a_pair_that_the_longer_side_won():
    short, long = (gradients(method("rdpo", alpha=0.5), pairs())[0], gradients(method("rdpo", alpha=0.5), turned())[0])
    plain = [gradients(method("dpo"), batch)[0] for batch in (pairs(), turned())]
    assert short.abs().sum() > plain[0].abs().sum()  # 5 tokens won over 8
    assert (method("rdpo", alpha=0.5)(pairs()).value > method("dpo")(pairs()).value).item()
    assert long.abs().sum() > plain[1].abs().sum()


def test_alpha_po_near_zero_is_simpo_and_zero_is_refused():
    batch = random_pairs()
    assert method("alpha_po", alpha=1e-7)(batch).value.item() == pytest.approx(
        method("simpo")(batch).value.item(), abs=1e-6
    )
    with pytest.raises(ValueError, match="objective: simpo"):
        method("alpha_po", alpha=0.0)(batch)


TRL_DPO = [
    ("dpo", {"beta": 0.3}, {"beta": 0.3}),
    ("dpo", {"nll": 0.7}, {"types": ("sigmoid", "sft"), "loss_weights": (1.0, 0.7)}),
    ("slic", {"beta": 0.1}, {"types": ("hinge",)}),
    ("ipo", {"beta": 0.3}, {"types": ("ipo",), "beta": 0.3}),
    ("robust_dpo", {"flipped": 0.2}, {"types": ("robust",), "label_smoothing": 0.2}),
    ("exo_pair", {"smoothing": 0.2}, {"types": ("exo_pair",), "label_smoothing": 0.2}),
    ("nca_pair", {}, {"types": ("nca_pair",)}),
    ("bco_pair", {}, {"types": ("bco_pair",)}),
    ("sppo_hard", {"beta": 0.1}, {"types": ("sppo_hard",)}),
    ("apo_zero", {}, {"types": ("apo_zero",)}),
    ("apo_down", {}, {"types": ("apo_down",)}),
    ("discopop", {"tau": 0.2}, {"types": ("discopop",), "discopop_tau": 0.2}),
    ("dpo_norm", {"beta": 2.0}, {"types": ("sigmoid_norm",), "beta": 2.0}),
    ("f_dpo", {"divergence": "forward_kl"}, {"f_divergence_type": "forward_kl"}),
    ("f_dpo", {"divergence": "js"}, {"f_divergence_type": "js_divergence"}),
    (
        "f_dpo",
        {"divergence": "alpha", "alpha": 0.3},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3},
    ),
    ("ld_dpo", {"alpha": 0.3}, {"ld_alpha": 0.3}),
]
SIMPO = partial(trl_pairs.cpo, loss_type="simpo", beta=2.0, cpo_alpha=0.0, averaged=True)

TRL_OTHER = [
    ("cpo", {}, trl_pairs.cpo),
    ("cpo", {"nll": 0.0, "beta": 0.3}, partial(trl_pairs.cpo, cpo_alpha=0.0, beta=0.3)),
    ("slic", {"norm": False, "nll": 0.5}, partial(trl_pairs.cpo, loss_type="hinge", beta=0.05, cpo_alpha=0.5)),
    ("simpo", {"gamma": 0.7}, partial(SIMPO, simpo_gamma=0.7)),
    ("alpha_po", {"alpha": 0.4}, partial(SIMPO, simpo_gamma=1.0, alpha=0.4)),
    ("orpo", {"beta": 0.3}, partial(trl_pairs.orpo, beta=0.3)),
]


@pytest.mark.parametrize(
    ("name", "config", "theirs"),
    [(name, config, partial(trl_pairs.dpo, **settings)) for name, config, settings in TRL_DPO] + TRL_OTHER,
)
@pytest.mark.parametrize("seed", [0, 1])
def test_value_and_gradient_are_trls(name, config, theirs, seed):
    batch = random_pairs(seed, dtype=torch.float32)  # TRL's alpha divergence knows no float64
    batch = dataclasses.replace(batch, weights=torch.ones(7))
    value, slopes = theirs(batch)
    assert method(name, **config)(batch).value.item() == pytest.approx(value, rel=1e-5)
    torch.testing.assert_close(gradients(method(name, **config), batch), slopes, rtol=1e-4, atol=1e-6)


def kto_step(mismatched=(0.2, 0.2), rewards=(1.0, 0.0), **more):
    """F3's two sides as two completions: D = .5 and -.4."""
    batch = sequences(
        [[-0.8] * 5 + [0.0] * 3, [-0.75] * 8], [[1.0] * 5 + [0.0] * 3, [1.0] * 8], rewards=rewards, groups=(0, 0),
        reference=[[-0.9] * 5 + [0.0] * 3, [-0.7] * 8], **more,
    )  # fmt: skip
    known = None if mismatched is None else torch.tensor(mismatched, dtype=torch.float64)
    return dataclasses.replace(batch, step=dataclasses.replace(batch.step, mismatched=known))


def random_kto_step(seed: int = 0):
    batch = random_step(seed)
    mismatched = torch.rand(len(batch.rows), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return dataclasses.replace(batch, step=dataclasses.replace(batch.step, mismatched=mismatched))


def test_kto_of_f3():
    loss = method("kto")(kto_step())
    assert loss.value.item() == pytest.approx(0.488753, abs=1e-6)
    assert loss.metrics == {"kl": pytest.approx(0.2), "margin": pytest.approx(0.09)}
    one = method("kto", undesirable=0.0)(kto_step())
    assert one.value.item() == pytest.approx(0.492501 / 2, abs=1e-6)
    assert method("kto", desirable=0.0)(kto_step()).value.item() == pytest.approx(0.485004 / 2, abs=1e-6)


def test_kto_raises_what_is_desirable_and_lowers_the_rest():
    for name in ("kto", "apo_zero_unpaired"):
        found = gradient(method(name), kto_step())
        assert (found[0, :5] < 0).all()
        assert (found[1] > 0).all()
        assert (found[0, 5:] == 0).all()


def test_kto_holds_a_negative_estimate_of_the_divergence_at_zero():
    below, zero = (method("kto")(kto_step(mismatched)).value.item() for mismatched in ((-3.0, 1.0), (0.0, 0.0)))
    assert below == zero


def test_kto_passes_over_prompts_that_met_no_completion_of_another():
    some, all_of = (method("kto")(kto_step(values)).value.item() for values in ((math.nan, 0.2), (0.2, 0.2)))
    assert some == all_of
    assert math.isfinite(method("kto")(kto_step((math.nan, math.nan))).value.item())


def test_kto_leaves_out_what_could_not_be_scored():
    loss = method("kto")(kto_step(rewards=(1.0, math.nan)))
    assert loss.value.item() == pytest.approx(0.492501, abs=1e-6)
    assert loss.metrics["margin"] == pytest.approx(0.05)
    found = gradient(method("kto"), kto_step(rewards=(1.0, math.nan)))
    assert (found[1] == 0).all()


def test_kto_of_a_step_without_any_score_is_zero():
    for name in ("kto", "apo_zero_unpaired"):
        assert method(name)(kto_step(rewards=(math.nan, math.nan))).value.item() == 0.0


@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired"])
def test_single_completions_count_with_their_weights(name):
    plain, weighted = (gradient(method(name), kto_step(weights=weights)) for weights in (None, (3.0, 0.5)))
    torch.testing.assert_close(weighted, plain * torch.tensor([[3.0], [0.5]], dtype=torch.float64))


def test_kto_tells_good_from_bad_by_its_threshold():
    strict = method("kto", threshold=1.0)(kto_step()).value.item()
    # both bad: 1 - sigmoid(.1 (.2 - .5)) and .485004
    assert strict == pytest.approx((0.507499 + 0.485004) / 2, abs=1e-6)


def test_kto_without_mismatched_completions_says_so():
    with pytest.raises(ValueError, match="no mismatched"):
        method("kto")(kto_step(None))


def test_apo_zero_unpaired_of_f3():
    # 1 - sigmoid(.05) = .487503, sigmoid(-.04) = .490001
    assert method("apo_zero_unpaired")(kto_step()).value.item() == pytest.approx(0.977504 / 2, abs=1e-6)


@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired"])
def test_the_cut_of_single_completions_changes_nothing(name):
    check_cuts(method(name), random_kto_step())


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("config", "settings"), [({"beta": 0.3}, {"beta": 0.3}), ({"desirable": 1.3}, {"desirable_weight": 1.3})]
)
def test_kto_is_trls(config, settings, seed):
    batch = random_kto_step(seed)
    value, slope = trl_pairs.kto(batch, batch.step.rewards > 0.5, **settings)
    assert method("kto", **config)(batch).value.item() == pytest.approx(value)
    torch.testing.assert_close(gradient(method("kto", **config), batch), slope)


def test_apo_zero_unpaired_is_trls():
    batch = random_kto_step()
    value, slope = trl_pairs.kto(batch, batch.step.rewards > 0.5, loss_type="apo_zero_unpaired")
    assert method("apo_zero_unpaired")(batch).value.item() == pytest.approx(value)
    torch.testing.assert_close(gradient(method("apo_zero_unpaired"), batch), slope)


def test_marks_of_single_completions():
    assert find("objective", "kto").mark.requires == {"reference", "mismatched"}
    assert find("objective", "kto").mark.examples == find("objective", "apo_zero_unpaired").mark.examples == "group"


def test_every_module_names_its_source():
    for name in (*PAIRED, "kto", "apo_zero_unpaired"):
        assert "Source: " in (importlib.import_module(f"strop.plugins.objectives.{name}").__doc__ or "")
