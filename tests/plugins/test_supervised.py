"""Supervised objectives and their mixtures with reinforcement, against numbers worked by hand and against TRL."""

import dataclasses
import math
from unittest.mock import MagicMock

import pytest
import torch
from objective_tools import (
    F2_LOGPS,
    F2_MASK,
    F2_OLD,
    F2_REFERENCE,
    check_cuts,
    f2,
    gradient,
    random_step,
    sequences,
    tensor,
)
from trl_oracle import trl

from strop.core.algebra import advantages, divergences, entropies, likelihoods, ratios, subsets
from strop.core.registry import find
from strop.core.trainer.objective import PairBatch

SEQ1 = tensor(F2_LOGPS[0])
F2_ENTROPY = ((0.9, 0.3, 0.1), (1.5, 0.05, 0.0))


def loss_of(name, **settings):
    plugin = find("objective", name)
    config = plugin.configure(settings)
    return lambda batch: plugin.function(config, batch=batch)


def value(name, batch, **settings):
    return loss_of(name, **settings)(batch).value.item()


def with_demonstrations(batch=None):
    """The random step with the last member of each group its demonstration."""
    batch = random_step() if batch is None else batch
    rewards = batch.step.rewards.clone()
    rewards[3::4] = torch.nan
    return dataclasses.replace(batch, step=dataclasses.replace(batch.step, rewards=rewards))


PLAIN = [
    ("dft", {}),
    ("nft", {}),
    ("nft", {"prompt_weight": "linear", "negative": 0.5}),
    ("entropy_sft", {}),
    ("entropy_sft", {"share": 0.3}),
    ("reward_weighted_sft", {"tau": 0.5}),
    ("f_sft", {}),
    ("f_sft", {"divergence": "tv"}),
    ("f_sft", {"divergence": "squared_hellinger", "beta": 1.0}),
    ("a_lol", {}),
    ("a_lol", {"ratio": "token"}),
    ("a_lol", {"ratio": None}),
    ("kdrl", {"kd": 0.1}),
    ("kdrl", {"kd": 0.1, "wrong_only": True}),
    ("reverse_kl", {}),
    ("confidence_sft", {}),
    ("unlikelihood", {}),
]
MIXED = [
    ("hpt", {}), ("hpt", {"entropy": 0.1}), ("hpt", {"gate": 1, "sft": 0.3}), ("hpt", {"gate": None}), ("srft", {}),
    ("critique_grpo", {}),
]  # fmt: skip


def ids(cases):
    return ["-".join([name, *map(str, settings.values())]) for name, settings in cases]


@pytest.mark.parametrize(("name", "settings"), PLAIN, ids=ids(PLAIN))
def test_micro_batches_change_nothing(name, settings):
    check_cuts(loss_of(name, **settings))


@pytest.mark.parametrize(("name", "settings"), MIXED, ids=ids(MIXED))
def test_micro_batches_change_nothing_with_demonstrations(name, settings):
    found = check_cuts(loss_of(name, **settings), with_demonstrations())
    assert found.value.item() != 0


@pytest.mark.parametrize(("name", "settings"), PLAIN + MIXED, ids=ids(PLAIN + MIXED))
def test_a_weight_multiplies_what_its_sequence_adds_to_the_gradient(name, settings):
    batch = with_demonstrations() if (name, settings) in MIXED else random_step()
    weights = torch.linspace(0.0, 2.0, 12, dtype=torch.float64)
    step = dataclasses.replace(batch.step, weights=weights)
    weighed = dataclasses.replace(batch, weights=weights, step=step)
    plain = gradient(loss_of(name, **settings), batch)
    torch.testing.assert_close(gradient(loss_of(name, **settings), weighed), plain * weights[:, None])


@pytest.mark.parametrize(("name", "settings"), PLAIN + MIXED, ids=ids(PLAIN + MIXED))
def test_what_cannot_be_judged_gives_no_number_that_is_none(name, settings):
    batch = random_step()
    rewards = torch.full_like(batch.step.rewards, torch.nan)
    blind = dataclasses.replace(batch, step=dataclasses.replace(batch.step, rewards=rewards))
    found = loss_of(name, **settings)(blind)
    assert found.value.isfinite()
    assert gradient(loss_of(name, **settings), blind).isfinite().all()
    if name in ("nft", "reward_weighted_sft", "a_lol", "unlikelihood"):
        assert found.value.item() == 0


@pytest.mark.parametrize(("name", "settings"), PLAIN + MIXED, ids=ids(PLAIN + MIXED))
def test_a_step_that_covers_nothing_is_zero(name, settings):
    batch = random_step()
    dark = dataclasses.replace(
        batch, mask=batch.mask * 0, step_tokens=1.0, step=dataclasses.replace(batch.step, mask=batch.mask * 0)
    )
    assert loss_of(name, **settings)(dark).value.item() == pytest.approx(0, abs=1e-12)


MISSING = {
    "behaviour_logps": ("nft", "kdrl"),
    "reference_logps": ("a_lol", "f_sft", "reverse_kl", "kdrl"),
    "old_logps": ("hpt", "critique_grpo"),
    "entropy": ("entropy_sft", "confidence_sft", "srft"),
}


@pytest.mark.parametrize(("name", "missing"), [(name, column) for column, names in MISSING.items() for name in names])
def test_a_column_that_is_missing_is_named(name, missing):
    batch = random_step()
    where = batch if missing == "entropy" else batch.step
    bare = dataclasses.replace(where, **{missing: None})
    batch = bare if missing == "entropy" else dataclasses.replace(batch, step=bare)
    with pytest.raises(ValueError, match=missing):
        loss_of(name)(batch)


def test_marks_say_what_each_learns_from_and_requires():
    said = {
        name: (m.examples, m.needs, m.required(find("objective", name).configure({})))
        for name in {name for name, _ in PLAIN + MIXED} | {"redi"}
        for m in [find("objective", name).mark]
    }
    logps, none = frozenset({"logps"}), frozenset()
    assert said == {
        "dft": ("sft", none, none),
        "entropy_sft": ("sft", none, {"entropy"}),
        "confidence_sft": ("sft", none, {"entropy"}),
        "f_sft": ("sft", none, {"reference"}),
        "redi": ("pair", none, none),
        "nft": ("group", logps, none),
        "kdrl": ("group", logps, {"reference"}),
        "reverse_kl": ("group", none, {"reference"}),
        "a_lol": ("group", none, {"reference"}),
        "reward_weighted_sft": ("group", none, none),
        "unlikelihood": ("group", none, none),
        "hpt": ("group", none, {"old"}),
        "critique_grpo": ("group", none, {"old"}),
        "srft": ("group", none, {"entropy"}),
    }
    a_lol = find("objective", "a_lol")
    assert a_lol.mark.required(a_lol.configure({"ratio": None})) == frozenset()


# dft


def test_dft_of_f2():
    assert value("dft", sequences()) == pytest.approx(0.292890, abs=5e-7)


def test_dft_pushes_each_token_by_its_own_probability():
    found = gradient(loss_of("dft"), sequences())
    torch.testing.assert_close(found, -tensor(F2_LOGPS).exp() / 5 * tensor(F2_MASK))


def test_dft_equals_trl():
    batch = random_step(3)
    theirs = batch.logps.detach().clone().requires_grad_()
    this, model = MagicMock(), MagicMock()
    this.args.loss_type, this.aux_loss_enabled, this.compute_loss_func, this.label_smoother = "dft", False, None, None
    this.accelerator.parallelism_config = None
    this.accelerator.gather_for_metrics = lambda x: x
    zeros = torch.zeros_like(theirs)
    model.return_value = MagicMock(log_probs=theirs, label_mask=batch.mask, entropy=zeros, is_top1=zeros)
    this.args.average_tokens_across_devices = False
    inputs = {"attention_mask": batch.mask, "labels": batch.mask}
    loss = trl("SFTTrainer").compute_loss(this, model, inputs, num_items_in_batch=batch.mask.sum())
    (slope,) = torch.autograd.grad(loss, theirs)
    assert value("dft", batch) == pytest.approx(loss.item(), abs=1e-12)
    torch.testing.assert_close(gradient(loss_of("dft"), batch), slope * batch.mask)


def test_one_token_rollouts_have_dfts_gradient_in_expectation():
    logits = tensor([0.5, 0.3, 0.2]).log().requires_grad_()
    logps, other = logits.log_softmax(0), -0.1
    rewards = tensor([1.0, other, other])
    (expected,) = torch.autograd.grad(-(logps.exp().detach() * rewards * logps).sum(), logits, retain_graph=True)
    assert expected.tolist() == pytest.approx([-0.275, 0.165, 0.11])
    (found,) = torch.autograd.grad(-likelihoods.by_own_probability(logps[0]), logits)
    torch.testing.assert_close((1 - other) * found, expected)


# nft


def test_nft_terms_of_f2():
    up = torch.tensor([[0.2]], dtype=torch.float64, requires_grad=True)  # ratio 1.221403, beyond the floor
    term = -likelihoods.complement(up, tensor([[0.25]]))
    assert term.item() == 0
    (slope,) = torch.autograd.grad(term, up)
    assert slope.item() == pytest.approx(0.333333 * 1.221403, abs=1e-6)  # by the ratio: .333333
    down = tensor([[math.log(0.670320)]])
    assert -likelihoods.complement(down, tensor([[0.25]])).item() == pytest.approx(-0.104264, abs=5e-7)
    assert -ratios.log_ratio(SEQ1, tensor(F2_OLD[0]), torch.ones(3))[0].item() == pytest.approx(-0.2)


def one_of_four(**more):
    """A group solved once in four, each completion of one token; the wrong ones at ratios .67032, 1.221403 and 1."""
    logps = ((-0.5,), (-1.2,), (-0.5,), (-0.5,))
    behaviour = ((-0.7,), (-0.8,), (-0.7,), (-0.5,))
    return sequences(logps, [[1.0]] * 4, rewards=(1, 0, 0, 0), groups=[0] * 4, **{"behaviour": behaviour} | more)


@pytest.mark.parametrize(("weight", "omega"), [("linear", 0.75), ("root", 1.732051)])
def test_nft_of_a_group_by_hand(weight, omega):
    found = value("nft", one_of_four(), prompt_weight=weight)
    assert found == pytest.approx(omega * (-0.2 - 0.104264 + 0 + 0) / 4 / 1000, abs=1e-9)
    alone = value("nft", one_of_four(), prompt_weight=weight, negative=0)
    assert alone == pytest.approx(omega * -0.2 / 4 / 1000, abs=1e-9)


@pytest.mark.parametrize(
    ("weight", "advantage"),
    [("linear", advantages.centred), ("root", lambda r, g: advantages.standardised(r, g, ddof=0, eps=0))],
)
def test_nft_on_policy_has_the_gradient_of_dr_grpo_or_grpo(weight, advantage):
    batch = random_step(5)
    on = dataclasses.replace(batch, step=dataclasses.replace(batch.step, behaviour_logps=batch.logps.detach()))
    expected = -advantage(on.step.rewards, on.step.group_ids)[:, None] * on.mask / 12 / 1000
    torch.testing.assert_close(gradient(loss_of("nft", prompt_weight=weight), on), expected)


def test_nft_drops_groups_without_contrast_and_bounds_solve_rates():
    flat = f2(rewards=(1.0, 1.0))
    assert value("nft", flat) == 0
    assert gradient(loss_of("nft"), flat).abs().max() == 0
    both = sequences([[-0.5]] * 4, [[1.0]] * 4, rewards=(1, 1, 1, 0), groups=(0, 0, 1, 1), behaviour=[[-0.7]] * 4)
    # the group without contrast is not in the divisor: q = 1/2, weight 1, right -.2, wrong 0 by the floor
    assert value("nft", both) == pytest.approx(-0.2 / 2 / 1000)
    n = 100
    rare = sequences([[-0.5]] * n, [[1.0]] * n, rewards=[1] + [0] * 99, groups=[0] * n, behaviour=[[-0.5]] * n)
    assert gradient(loss_of("nft", prompt_weight="linear", length=1.0), rare)[0].item() == pytest.approx(-0.98 / n)


def test_nft_stays_finite_where_the_policy_has_left_the_sampler():
    far = one_of_four(behaviour=[[-90.0]] * 4)
    assert math.isfinite(value("nft", far))
    assert gradient(loss_of("nft"), far).isfinite().all()


@pytest.mark.parametrize("name", ["nft", "hpt", "srft", "unlikelihood"])
def test_rewards_between_0_and_1_are_refused_where_solved_ones_are_counted(name):
    batch = random_step()
    half = dataclasses.replace(batch, step=dataclasses.replace(batch.step, rewards=batch.step.rewards / 2))
    with pytest.raises(ValueError, match=r"rewards 0 and 1, got 0\.5"):
        loss_of(name)(half)


# redi


def f3(weights=(1.0,), step_pairs=1.0):
    sides = [torch.full((1, n), s / n, dtype=torch.float64, requires_grad=True) for s, n in ((-4.0, 5), (-6.0, 8))]
    return PairBatch(
        chosen_logps=sides[0], chosen_mask=torch.ones(1, 5).double(), rejected_logps=sides[1],
        rejected_mask=torch.ones(1, 8).double(), weights=tensor(weights), margins=tensor([math.nan]),
        step_pairs=step_pairs, step_chosen_tokens=5.0,
    )  # fmt: skip


def test_redi_of_f3():
    found = loss_of("redi")(f3())
    assert found.value.item() == pytest.approx(0.2)
    assert found.metrics == {"margin": pytest.approx(-0.8 + 0.75)}
    assert value("redi", f3(weights=(2.0,), step_pairs=4.0), alpha=0.5) == pytest.approx(2 * (0.8 - 0.375) / 4)


def test_redi_raises_the_chosen_and_lowers_the_rejected_less():
    batch = f3()
    loss_of("redi")(batch).value.backward()
    assert batch.chosen_logps.grad.tolist() == [[-0.2] * 5]
    assert batch.rejected_logps.grad.tolist() == [pytest.approx([0.1] * 8)]


# entropy_sft and confidence_sft


def five():
    return sequences([[-0.5, -1.0, -0.2, -2.0, -0.1]], [[1.0] * 5], entropy=[[0.9, 0.3, 0.1, 1.5, 0.05]])


def test_entropy_sft_keeps_tokens_two_to_five():
    assert value("entropy_sft", five()) == pytest.approx(0.825)
    assert gradient(loss_of("entropy_sft"), five()).tolist() == [[0.0, -0.25, -0.25, -0.25, -0.25]]


def test_entropy_sft_of_all_tokens_is_sft_and_of_few_is_one_a_sequence():
    assert value("entropy_sft", f2(entropy=F2_ENTROPY), share=1.0) == pytest.approx(0.66)
    # d = [-.22, .76, .12] and [0, .36]: the second token of either
    assert value("entropy_sft", f2(entropy=F2_ENTROPY), share=0.1) == pytest.approx((1.0 + 0.4) / 2)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_the_share_of_a_sequence_is_rounded_down_whatever_the_float(kind):
    mask = (torch.arange(200) < torch.arange(1, 201)[:, None]).to(kind)
    expected = [max(1, 29 * n // 100) for n in range(1, 201)]  # .29 * 100 is 28.999999999999996
    assert entropies.share_of(mask, 0.29).tolist() == expected
    assert entropies.largest(torch.zeros(200, 200), mask, 0.29).sum(1).tolist() == expected


def test_confidence_sft_by_hand():
    batch = f2(entropy=F2_ENTROPY)
    assert value("confidence_sft", batch, confidence=0.25) == pytest.approx(0.75 * 0.66 + 0.25 * 2.85 / 5)
    (slope,) = torch.autograd.grad(loss_of("confidence_sft")(batch).value, batch.entropy)
    assert slope.tolist() == [[0.1] * 3, [0.1, 0.1, 0.0]], "it lowers the entropy"
    assert value("confidence_sft", batch, confidence=0) == pytest.approx(0.66)


# reward_weighted_sft, f_sft, a_lol


def test_reward_weighted_sft_of_f2():
    batch = f2(rewards=(1.0, 0.0))
    assert value("reward_weighted_sft", batch) == pytest.approx(3.110540, abs=5e-7)
    found = gradient(loss_of("reward_weighted_sft"), batch)
    torch.testing.assert_close(found, -tensor([[math.e / 2] * 3, [0.5, 0.5, 0.0]]))


def test_reward_weighted_sft_of_a_short_patience_is_the_best_alone():
    found = gradient(loss_of("reward_weighted_sft", tau=0.05), f2(rewards=(1.0, 0.0)))
    assert found[0, 0] / found[1, 0] > 1e8


@pytest.mark.parametrize(
    ("divergence", "gain", "slope"),
    [("tv", 0.5, 1.0), ("pearson", 0.4375, 0.75), ("squared_hellinger", 0.333333, 0.444444)],
)
def test_f_sft_at_one_half(divergence, gain, slope):
    """F2's first sequence lies .5 above its reference."""
    batch = sequences(F2_LOGPS[:1], F2_MASK[:1], reference=F2_REFERENCE[:1])
    found = loss_of("f_sft", divergence=divergence, beta=1.0)(batch)
    assert found.value.item() == pytest.approx(-gain, abs=5e-7)
    assert found.metrics == {"reward": pytest.approx(0.5)}
    slopes = gradient(loss_of("f_sft", divergence=divergence, beta=1.0), batch)
    assert slopes[0].tolist() == pytest.approx([-slope] * 3, abs=5e-7)


def at(x, divergence):
    batch = sequences([[-1.0]], [[1.0]], reference=[[-1.0 - x]])
    settings = {"divergence": divergence, "beta": 1.0}
    return value("f_sft", batch, **settings), gradient(loss_of("f_sft", **settings), batch).item()


def test_f_sft_ends_where_its_conjugates_do():
    assert at(3.0, "pearson") == (-1.0, 0.0)
    assert at(-0.5, "squared_hellinger") == (pytest.approx(1.0), pytest.approx(-4.0))
    assert at(-5.0, "squared_hellinger") == (pytest.approx(1.0 + 4 * 4.5), pytest.approx(-4.0))


def test_f_sft_of_total_variation_has_the_gradient_of_sft_per_sequence():
    batch = random_step(2)
    found = gradient(loss_of("f_sft", divergence="tv", beta=1.0), batch)
    torch.testing.assert_close(found, -batch.mask / 12)


def better_and_worse():
    """F2 with advantages .6 and .2, each beside a worse completion of its group."""
    rows = [*F2_LOGPS, *F2_LOGPS]
    return sequences(
        rows, [*F2_MASK, *F2_MASK], rewards=(0.8, 0.4, -0.4, 0.0), groups=(0, 1, 0, 1),
        reference=[*F2_REFERENCE, *F2_REFERENCE],
    )  # fmt: skip


def test_a_lol_of_f2():
    assert value("a_lol", better_and_worse()) == pytest.approx(1.000848, abs=5e-7)
    assert value("a_lol", better_and_worse(), ratio=None) == pytest.approx(0.67)
    ratio = tensor([0.1, 0.1, 0.3]).exp()
    by_token = (0.6 * (ratio * -SEQ1).sum() + 0.2 * (1.2 * math.exp(-0.2) + 0.4 * math.exp(0.2))) / 2
    assert value("a_lol", better_and_worse(), ratio="token") == pytest.approx(by_token.item())


def test_a_lol_learns_from_the_better_ones_alone_within_its_clip():
    found = gradient(loss_of("a_lol", clip=0.5), better_and_worse())
    torch.testing.assert_close(found[:2], -tensor([[0.3 * 1.5] * 3, [0.1, 0.1, 0.0]]))
    assert found[2:].abs().max() == 0
    assert value("a_lol", f2(rewards=(1.0, 1.0), reference=F2_REFERENCE)) == 0


# hpt, srft, critique_grpo: groups with a demonstration


def group(*rewards, groups=None, **more):
    """One-token completions at log-probability -.5, ratio 1; NaN is the demonstration."""
    n = len(rewards)
    same = [[-0.5]] * n
    return sequences(same, [[1.0]] * n, rewards=rewards, groups=groups or [0] * n, old=same, **more)


NONE = math.nan


def test_hpt_trains_an_unsolved_group_on_its_demonstration_alone():
    batch = group(0, 0, 0, NONE)
    assert gradient(loss_of("hpt"), batch)[:, 0].tolist() == [0, 0, 0, -1]
    found = loss_of("hpt", sft=0.3)(batch)
    assert found.value.item() == pytest.approx(0.3 * 0.5)
    assert found.metrics == {"demonstrated": 1.0}


def test_hpt_trains_a_solved_group_by_dr_grpo_without_its_demonstration():
    found = gradient(loss_of("hpt"), group(1, 0, 0, 0, NONE))
    torch.testing.assert_close(found[:, 0], -tensor([0.75, -0.25, -0.25, -0.25, 0]) / 4)
    gated = gradient(loss_of("hpt", gate=1), group(1, 0, 0, 0, NONE))
    assert gated[:, 0].tolist() == [0, 0, 0, 0, -1]


def test_hpt_decides_for_each_group_and_divides_by_all_that_takes_part():
    found = gradient(loss_of("hpt"), group(1, 0, NONE, 0, 0, NONE, groups=[4, 4, 4, 2, 2, 2]))
    torch.testing.assert_close(found[:, 0], -tensor([0.5, -0.5, 0, 0, 0, 1]) / 3)


def test_hpt_has_no_clip():
    batch = sequences([[-0.5]] * 2, [[1.0]] * 2, rewards=(1, 0), groups=(0, 0), old=[[-3.5], [-0.5]])
    assert gradient(loss_of("hpt"), batch)[0].item() == pytest.approx(-0.5 * math.exp(3) / 2)


@pytest.mark.parametrize(
    ("solved", "on", "off"),
    [(0, 0, 1), (1, 0.125, 0.5), (2, 0.25, 0.25), (3, 0.5, 0.125), (4, 1, 0), (5, 1, 0)],
)
def test_hpts_table(solved, on, off):
    found = gradient(loss_of("hpt", gate=None), group(*[1] * solved, *[0] * (6 - solved), NONE))[:, 0]
    tokens = 6 * (on > 0) + (off > 0)
    mean = solved / 6
    expected = [on * (mean - 1)] * solved + [on * mean] * (6 - solved) + [-off]
    assert found.tolist() == pytest.approx([x / tokens for x in expected])


def test_hpt_keeps_the_entropy_of_what_takes_part_up():
    batch = group(0, 0, NONE, 1, 0, NONE, groups=[4, 4, 4, 2, 2, 2], entropy=[[0.5]] * 6)
    plain, found = loss_of("hpt")(batch), loss_of("hpt", entropy=0.1)(batch)
    assert (found.value - plain.value).item() == pytest.approx(-0.1 * 0.5)
    (slope,) = torch.autograd.grad(found.value, batch.entropy)
    torch.testing.assert_close(slope[:, 0], -0.1 * tensor([0, 0, 1, 1, 1, 0]) / 3)
    plugin = find("objective", "hpt")
    assert [plugin.mark.required(plugin.configure({"entropy": c})) for c in (0.0, 0.1)] == [{"old"}, {"old", "entropy"}]


def test_a_group_that_nobody_solved_or_showed_teaches_hpt_nothing():
    assert value("hpt", group(0, 0, 0)) == 0


def test_srft_weights_at_half_a_nat():
    """Entropy .5: .5 e^-.5 = .303265 and .1 e^.5 = .164872."""
    batch = group(1, 0, NONE, entropy=[[0.5]] * 3)
    found = gradient(loss_of("srft"), batch)[:, 0]
    # the union's rewards are 1, 0, 1: (1 - 2/3) / (.577350 + 1e-4)
    shown = -0.303265 - (1 / 3) / (math.sqrt(1 / 3) + 1e-4) * math.exp(-0.5)
    assert found.tolist() == pytest.approx([-0.164872, 1.0, shown], abs=5e-7)
    (slope,) = torch.autograd.grad(loss_of("srft")(batch).value, batch.entropy, allow_unused=True)
    assert slope is None, "the entropy is a weight and is not trained"


def test_the_shaped_likelihood_of_f2_and_its_slope():
    logps = SEQ1.clone().requires_grad_()
    found = likelihoods.shaped(logps, 0.1)
    assert found.tolist() == pytest.approx([0.858463, 0.786270, 0.891154], abs=5e-7)
    (slope,) = torch.autograd.grad(found.sum(), logps)
    assert slope.tolist() == pytest.approx([0.121504, 0.168050, 0.096998], abs=5e-7)


def test_critique_grpo_by_hand():
    batch = group(1, 0, 0, NONE)  # the guided one counts as 1: advantages +-.5
    found = gradient(loss_of("critique_grpo", length=1.0), batch)[:, 0]
    p = math.exp(-0.5)
    assert found.tolist() == pytest.approx([-0.125, 0.125, 0.125, -0.125 * 0.1 * p / (p + 0.1) ** 2])
    worse = gradient(loss_of("critique_grpo", length=1.0, guided=0.0), batch)[3].item()
    assert worse > 0


def test_critique_grpo_without_a_guided_one_is_dr_grpo_without_a_clip():
    batch = random_step(4)
    expected = -advantages.centred(batch.step.rewards, batch.step.group_ids)[:, None] * (
        batch.logps - batch.step.old_logps
    ).exp() * batch.mask / 12 / 9  # fmt: skip
    torch.testing.assert_close(gradient(loss_of("critique_grpo", length=9.0), batch), expected.detach())


# kdrl, reverse_kl, unlikelihood


TEACHER = (tuple(math.log(p) for p in (0.7, 0.5, 0.9)), F2_LOGPS[1])


def test_the_pull_to_a_teacher_of_f2():
    gap = divergences.k2(SEQ1, tensor(TEACHER[0]))
    assert gap.mean().item() == pytest.approx(0.020610, abs=5e-7)
    batch = f2(reference=TEACHER)
    found = loss_of("reverse_kl")(batch)
    assert found.value.item() == pytest.approx(0.020610 * 3 / 5, abs=5e-7)
    assert found.metrics["k1"] == pytest.approx((-0.5 - 1 - 0.2 - math.log(0.7 * 0.5 * 0.9)) / 5)


def test_reverse_kl_moves_each_token_towards_the_teacher():
    found = gradient(loss_of("reverse_kl"), f2(reference=TEACHER))
    torch.testing.assert_close(found, (tensor(F2_LOGPS) - tensor(TEACHER)) / 5)
    assert (found[0] < 0).all(), "the teacher finds these likelier"


def test_kdrl_adds_the_pull_to_grpo_by_token():
    batch = f2(reference=TEACHER)
    # rewards 1 and -1: standardised to .707057; the clipped surrogate of F2 is -.279933 at advantages of 1
    scale = 1 / (math.sqrt(2) + 1e-4)
    found = loss_of("kdrl", kd=0.5)(batch)
    pull = 0.020610 * 3 / 5
    assert found.value.item() == pytest.approx(-0.279933 * scale + 0.5 * pull, abs=1e-6)
    assert found.metrics == {"teacher_k2": pytest.approx(pull, abs=5e-7)}


def test_kdrl_of_wrong_ones_only_leaves_the_right_ones_alone():
    batch = f2(reference=F2_REFERENCE)
    with_it, without = (gradient(loss_of("kdrl", kd=kd, wrong_only=True), batch) for kd in (0.5, 0.0))
    pulled = (with_it - without) * 5 / 0.5
    torch.testing.assert_close(pulled, tensor([[0.0] * 3, [-0.2, 0.2, 0.0]]))


def test_unlikelihood_by_hand():
    batch = f2(rewards=(1.0, 0.0))
    against = -math.log(1 - math.exp(-1.2)) - math.log(1 - math.exp(-0.4))
    assert value("unlikelihood", batch, alpha=0.5) == pytest.approx((1.7 + 0.5 * against) / 5)
    found = gradient(loss_of("unlikelihood"), batch)
    odds = [math.exp(x) / (1 - math.exp(x)) / 5 for x in (-1.2, -0.4)]
    torch.testing.assert_close(found, tensor([[-0.2] * 3, [*odds, 0.0]]))


def test_unlikelihood_of_certainty_is_finite():
    assert likelihoods.unlikelihood(tensor([0.0])).item() == pytest.approx(math.log(1e-5), abs=1e-4)


def test_a_demonstration_is_a_member_of_a_group_without_a_reward():
    batch = sequences([[-1.0]] * 3, [[1.0]] * 3, rewards=(1.0, math.nan, math.nan), groups=(0, 0, -1))
    assert subsets.demonstrations(batch.step).tolist() == [False, True, False]
