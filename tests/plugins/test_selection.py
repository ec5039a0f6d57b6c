"""Objectives with strata, a choice of completions or tokens, entropy or a schedule: worked values, and TRL."""

import dataclasses
import math

import pytest
import torch
from objective_tools import (
    F1_GROUPS,
    F1_LENGTHS,
    F1_REWARDS,
    F2_LOGPS,
    F2_MASK,
    check_cuts,
    f2,
    gradient,
    random_step,
    sequences,
    tensor,
)
from trl_oracle import grpo as trl_grpo

from strop.core.algebra.advantages import centred, standardised
from strop.core.algebra.entropies import by_covariance, outside
from strop.core.algebra.selectors import balanced, top_tokens, widest
from strop.core.algebra.shaping import cut_off
from strop.core.algebra.spread import whitened
from strop.core.algebra.strata import standardised_means, strata_entropy
from strop.core.registry import find

NAMES = ["stratified_grpo", "copo", "d3s", "reinforce_ada", "dler", "tea_rl", "epo_entropy", "weighted_grpo"]
F2_ENTROPY = ((0.9, 0.3, 0.1), (1.5, 0.05, 0.0))
SCALE = 1 / (math.sqrt(2) + 1e-4)
"""What GRPO makes of the advantages +1 and -1 of F2."""


def objective(name, **settings):
    """The plugin as the trainer calls it."""
    plugin = find("objective", name)
    config = plugin.configure(settings)
    return lambda batch: plugin.call(config, {"batch": batch})


def f1(**more):
    """F1's rewards and lengths, all log-probabilities -1 as sampled, entropy 1; two strata in each group."""
    mask = (torch.arange(5) < torch.tensor(F1_LENGTHS)[:, None]).double()
    given = {
        "rewards": F1_REWARDS, "groups": F1_GROUPS, "behaviour": -mask, "reference": -mask, "entropy": mask,
        "step_entropy": mask, "strata": (0, 0, 1, 1, 0, 0, 1, 1),
    }  # fmt: skip
    return sequences(-mask, mask, **given | more)


@pytest.mark.parametrize("progress", [0.0, 0.9])
@pytest.mark.parametrize("name", NAMES)
def test_micro_batches_add_up_to_the_step(name, progress):
    earlier = ({"entropy": 0.9}, {"entropy": 0.7})
    check_cuts(objective(name), dataclasses.replace(random_step(), progress=progress, history=earlier))


@pytest.mark.parametrize("name", NAMES)
def test_a_better_completion_becomes_more_likely_and_a_worse_one_less(name):
    settings = {"d3s": {"completions": 1.0, "tokens": 1.0}, "copo": {"threshold": 0.0}}.get(name, {})
    found = gradient(objective(name, **settings), f1())
    mask = f1().mask > 0
    assert (found[0][mask[0]] < 0).all()
    assert (found[7][mask[7]] > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_what_could_not_be_scored_has_no_part(name):
    batch = f1()
    batch.step.rewards[1] = math.nan
    loss = objective(name)(batch)
    assert math.isfinite(loss.value.item())
    assert (torch.autograd.grad(loss.value, batch.logps)[0][1] == 0).all()


@pytest.mark.parametrize("name", [n for n in NAMES if n != "copo"])
def test_a_step_of_equal_rewards_teaches_nothing(name):
    assert (gradient(objective(name), f1(rewards=[1.0] * 8)) == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_ratio_is_never_made_up(name):
    with pytest.raises(ValueError, match="behaviour_logps"):
        objective(name)(f1(behaviour=None))


@pytest.mark.parametrize("name", ["stratified_grpo", "copo"])
@pytest.mark.parametrize("strata", [None, [-1] * 8])
def test_strata_are_never_made_up(name, strata):
    with pytest.raises(ValueError, match='needs=\\("stratum",\\)'):
        objective(name)(f1(strata=strata))


def by_hand(name, rewards, strata, **settings):
    """The advantage of each completion, read off the gradient at ratio 1."""
    n = len(rewards)
    batch = sequences([[-1.0]] * n, [[1.0]] * n, rewards=rewards, groups=[3] * n, strata=strata, behaviour=[[-1.0]] * n)
    return (-n * gradient(objective(name, **settings), batch))[:, 0].tolist()


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (1.0, [0.707105, -1.414211, 0.707105, 1.414211, -0.707105, -0.707105]),
        (0.0, [0.999998, -0.999998, 0.999998, 0.999998, -0.999998, -0.999998]),
        (0.5, [0.853552, -1.207104, 0.853552, 1.207104, -0.853552, -0.853552]),
    ],
)
def test_advantages_within_strata(alpha, expected):
    found = by_hand("stratified_grpo", [1, 0, 1, 1, 0, 0], [1, 1, 1, 2, 2, 2], alpha=alpha)
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_stratum_of_one_gives_nothing_of_its_own():
    assert by_hand("stratified_grpo", [1, 0, 1], [0, 1, 1], alpha=1.0)[0] == 0


def test_the_weight_of_copo_goes_by_the_entropy_of_the_answers():
    four = tensor([0.0] * 4), torch.tensor([5] * 4), torch.arange(4)
    assert strata_entropy(*four).tolist() == pytest.approx([math.log(4)] * 4)
    for n, expected in ((4, 0.093290), (8, 0.999991)):
        batch = sequences(
            [[-1.0]] * n, [[1.0]] * n, rewards=[1] + [0] * (n - 1), groups=[0] * n, strata=range(n),
            behaviour=[[-1.0]] * n,
        )  # fmt: skip
        assert objective("copo")(batch).metrics["local"] == pytest.approx(expected, abs=1e-6)


def test_answers_of_two_groups_stay_apart_and_the_unscored_count_for_nothing():
    rewards = tensor([0.0, 1.0, math.nan, 1.0, 1.0])
    found = strata_entropy(rewards, torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 1, 2, 0, 0]))
    assert found.tolist() == pytest.approx([math.log(2)] * 3 + [0, 0])


def test_prompts_are_held_against_prompts():
    found = standardised_means(tensor(F1_REWARDS), torch.tensor(F1_GROUPS))
    assert found.tolist() == pytest.approx([-0.707105] * 4 + [0.707105] * 4, abs=2e-6)
    assert (standardised_means(tensor(F1_REWARDS), torch.zeros(8).long()) == 0).all()


def test_where_all_agree_copo_learns_from_the_prompt_alone():
    batch = f1(rewards=[0.0] * 4 + [1.0] * 4, strata=[0] * 8)
    found = gradient(objective("copo"), batch)
    mask = batch.mask > 0
    assert (found[:4][mask[:4]] > 0).all()
    assert (found[4:][mask[4:]] < 0).all()
    wide = gradient(objective("copo", threshold=0.0, gamma=1e3), f1(strata=[0, 1, 2, 3] * 2))
    torch.testing.assert_close(wide, gradient(objective("grpo"), f1()), atol=1e-6, rtol=0)


def test_the_widest_part_takes_from_both_ends():
    values = tensor([1.5, -0.5, -0.5, -0.5, 0.5, 0.5, 0.5, -1.5])
    chosen = widest(values, 4)
    assert torch.nonzero(chosen)[:, 0].tolist() == [0, 3, 4, 7]
    assert float(values[chosen].var(unbiased=False)) == pytest.approx(1.25)
    rng = torch.Generator().manual_seed(1)
    for n in (1, 2, 3, 5):
        some = torch.rand(7, generator=rng, dtype=torch.float64) ** 2
        best = max(float(some[list(part)].var(unbiased=False)) for part in parts(7, n))
        assert float(some[widest(some, n)].var(unbiased=False)) == pytest.approx(best)
        assert int(widest(some, n).sum()) == n


def parts(count, n):
    from itertools import combinations

    return combinations(range(count), n)


def test_tokens_are_chosen_over_the_whole_step():
    values = tensor([[3.0, 1.0, 9.0], [2.0, 4.0, 0.5]])
    mask = tensor([[1, 1, 0], [1, 1, 1]])
    assert top_tokens(values, mask, 0.4).tolist() == [[1, 0, 0], [0, 1, 0]]
    assert top_tokens(values, mask, 0.01).tolist() == [[0, 0, 0], [0, 1, 0]]
    assert top_tokens(values, mask, 1.0).tolist() == mask.tolist()


def test_d3s_trains_on_little_at_first_and_on_all_at_the_end():
    entropy = tensor([[0.1, 0.9, 0.2, 0.3, 0.1]] * 8) * f1().mask
    first = objective("d3s", completions=0.5, tokens=0.2)
    found = gradient(first, f1(step_entropy=entropy))
    # of F1 both completions of |A| 1.5, one of -.5 and one of +.5, 3 + 5 + 3 + 2 tokens: a fifth is 2
    assert torch.nonzero(found).tolist() == [[0, 1], [7, 1]]
    last = gradient(first, f1(step_entropy=entropy, progress=1.0))
    torch.testing.assert_close(last, gradient(objective("dapo", high=0.2, cap=None), f1()))
    assert first(f1()).metrics["kept"] == pytest.approx(2 / 24)


def test_reinforce_ada_has_the_baseline_of_all_draws():
    rewards = [1.0] * 3 + [0.0] * 13
    batch = sequences([[-1.0]] * 16, [[1.0]] * 16, rewards=rewards, groups=[0] * 16, behaviour=[[-1.0]] * 16)
    found = -4 * gradient(objective("reinforce_ada", entropy=0.0), batch)[:, 0]
    kept = found[found != 0]
    assert kept.tolist() == pytest.approx([0.8125] * 2 + [-0.1875] * 2)


@pytest.mark.parametrize(("solved", "expected"), [(3, (2, 2)), (1, (1, 3)), (16, (4, 0)), (0, (0, 4)), (15, (3, 1))])
def test_what_is_kept_is_balanced_or_filled_up(solved, expected):
    right = torch.arange(16) < solved
    kept = balanced(right, torch.ones(16, dtype=torch.bool), torch.zeros(16).long(), 4)
    assert (int((kept & right).sum()), int((kept & ~right).sum())) == expected


def test_of_each_kind_neither_the_short_nor_the_long_are_kept():
    kept = balanced(torch.zeros(16, dtype=torch.bool), torch.ones(16, dtype=torch.bool), torch.zeros(16).long(), 4)
    assert torch.nonzero(kept)[:, 0].tolist() == [2, 6, 10, 14]


def test_a_pair_of_one_success_and_one_failure_is_kept():
    rewards = [1.0] + [0.0] * 7
    batch = sequences([[-1.0]] * 8, [[1.0]] * 8, rewards=rewards, groups=[0] * 8, behaviour=[[-1.0]] * 8)
    found = gradient(objective("reinforce_ada", entropy=0.0, keep=2), batch)
    assert (int((found < 0).sum()), int((found > 0).sum())) == (1, 1)


def test_the_entropy_bonus_pulls_entropy_up():
    batch = f1()
    (found,) = torch.autograd.grad(objective("reinforce_ada", entropy=0.5)(batch).value, batch.entropy)
    torch.testing.assert_close(found, -0.5 * batch.mask / batch.step_tokens)
    assert find("objective", "reinforce_ada").mark.required(
        find("objective", "reinforce_ada").configure({"entropy": 0.0})
    ) == frozenset()  # fmt: skip


def test_what_is_cut_off_earns_nothing():
    rewards = tensor([1.0, 1.0, -1.0, math.nan])
    found = cut_off(rewards, tensor([4, 5, 5, 9]), 4)
    assert str(found.tolist()) == "[1.0, 0.0, 0.0, nan]"


def test_dler_is_the_whitened_surrogate_of_rewards_cut_off():
    batch = random_step(3)
    lengths = batch.mask.sum(1)
    rewards = centred(cut_off(batch.step.rewards, lengths, 3), batch.step.group_ids)
    advantages = whitened(rewards[:, None] * batch.mask, batch.mask)[:, 0]
    loss = objective("dler", cutoff=3, kl=0.0)(batch)
    theirs, slope = trl_grpo(batch, advantages, loss_type="dapo", epsilon_high=0.28)
    assert loss.value.item() == pytest.approx(theirs)
    torch.testing.assert_close(torch.autograd.grad(loss.value, batch.logps)[0], slope)
    assert loss.metrics["cut"] == pytest.approx(float((lengths > 3).double().mean()))


def test_advantages_of_dler_on_f1():
    # REINFORCE++ with the group's mean, no length beyond the cut-off
    batch = f1()
    found = gradient(objective("dler", kl=0.0), batch)[:, 0] * -batch.step_tokens
    assert found[[0, 1, 4, 7]].tolist() == pytest.approx([1.730547, -0.346109, 0.692219, -1.384437], abs=1e-6)


def test_the_penalty_of_dler_is_k3():
    batch = random_step(4)
    more = objective("dler", kl=0.1)(batch).value - objective("dler", kl=0.0)(batch).value
    d = (batch.logps - batch.reference_logps).detach()
    assert more.item() == pytest.approx(0.1 * float((((-d).exp() + d - 1) * batch.mask).sum() / batch.step_tokens))


def test_weights_by_covariance_on_f2():
    batch = sequences(F2_LOGPS, F2_MASK)
    found = by_covariance(tensor([1.0, -1.0]), batch, 10.0, 5.0)
    assert found[0].tolist() == pytest.approx([3.399546, 2.278784, 4.321670], abs=1e-6)
    assert found[1].tolist() == pytest.approx([5, 2.768782, 0], abs=1e-6)


def test_the_bonus_of_tea_rl_on_f2():
    # for the advantages +1 and -1, and for those that `standardised` makes of them, 1.414314 times smaller
    batch, entropy = f2(entropy=F2_ENTROPY), tensor(F2_ENTROPY)
    by_hand = [(by_covariance(tensor([a, -a]), batch, 10.0, 5.0) * entropy).sum().item() / 5 for a in (1.0, SCALE)]
    assert by_hand[0] == pytest.approx(2.362767, abs=1e-6)
    assert objective("tea_rl")(batch).metrics["bonus"] == pytest.approx(by_hand[1])


def test_tea_rl_raises_entropy_and_leaves_its_weights_alone():
    batch = f2(entropy=F2_ENTROPY)
    loss = objective("tea_rl", coefficient=2.0)(batch)
    slope, up = torch.autograd.grad(loss.value, (batch.logps, batch.entropy))
    weights = by_covariance(standardised(batch.step.rewards, batch.step.group_ids), batch, 10.0, 5.0)
    torch.testing.assert_close(up, -2.0 * weights / 5 * batch.mask)
    torch.testing.assert_close(slope, gradient(objective("dapo", high=0.2, cap=None), f2()))


def test_outside_a_band_is_a_distance():
    assert outside(tensor([[0.5, 0.9, 1.5]]), 0.8, 1.2)[0].tolist() == pytest.approx([0.3, 0, 0.3])


def test_epo_holds_entropy_within_the_band_of_the_earlier_steps():
    earlier = ({"entropy": 0.8, "loss": 0.0}, {"entropy": 1.2, "loss": 0.0})  # mean 1, band .8 to 1.2
    entropy = ((0.5, 1.0, 1.5), (0.9, 2.0, 0.0))
    batch = f2(entropy=entropy, history=earlier, progress=0.75)
    loss = objective("epo_entropy", entropy=0.1, smooth=2.0)(batch)
    assert loss.metrics == pytest.approx({"entropy": 5.9 / 5, "outside": (0.3 + 0.3 + 0.8) / 5})
    plain = objective("dapo", high=0.2, cap=None)(f2()).value.item()
    assert loss.value.item() == pytest.approx(plain - 0.1 * (1.18 - 2 * 0.28))
    (up,) = torch.autograd.grad(loss.value, batch.entropy)
    # too sure: pushed up by the bonus and the penalty; in the band by the bonus; too unsure: down
    assert (up * 5 / 0.1)[batch.mask > 0].tolist() == pytest.approx([-3, -1, 1, -1, 1])


def test_the_penalty_of_epo_begins_late_and_may_fade():
    earlier, entropy = ({"entropy": 1.0},), ((0.5, 1.0, 1.5), (0.9, 2.0, 0.0))
    assert objective("epo_entropy")(f2(entropy=entropy, history=earlier, progress=0.4)).metrics["outside"] == 0
    assert objective("epo_entropy", begin=0.0)(f2(entropy=entropy)).metrics["outside"] == 0  # nothing came before
    late = {"entropy": entropy, "history": earlier, "progress": 0.875}
    faded, full = (objective("epo_entropy", entropy=1.0, decline=fade)(f2(**late)).value for fade in (True, False))
    assert (full - faded).item() == pytest.approx((1 - 0.084319) * 0.28, abs=1e-6)


def test_the_kl_of_grpo_may_swing():
    def penalty(progress, **settings):
        batch = dataclasses.replace(random_step(2), progress=progress)
        return (objective("grpo", **settings)(batch).value - objective("grpo")(batch).value).item()

    unit = penalty(0.0, kl=1.0)
    found = [penalty(s / 100, kl=0.04, kl_most=0.1) / unit for s in (0, 15, 30, 65, 100)]
    assert found == pytest.approx([0.07, 0.055, 0.04, 0.07, 0.1])


@pytest.mark.parametrize(("fall", "middle"), [("linear", 3e-3), ("exponential", math.sqrt(5e-3 * 1e-3))])
def test_the_teachers_pull_may_fall(fall, middle):
    def pull(progress, **settings):
        batch = dataclasses.replace(random_step(2), progress=progress)
        return (objective("kdrl", **settings)(batch).value - objective("kdrl", kd=0.0)(batch).value).item()

    unit = pull(0.0, kd=1.0)
    found = [pull(p, kd=5e-3, kd_last=1e-3, fall=fall) / unit for p in (0, 0.5, 1)]
    assert found == pytest.approx([5e-3, middle, 1e-3])


def test_advantages_of_a_hard_prompt_with_one_success():
    rewards = tensor([1.0] + [0.0] * 7)
    found = standardised(rewards, torch.zeros(8).long(), eps=1e-6)
    assert found[:2].tolist() == pytest.approx([2.474870, -0.353553], abs=5e-6)


def test_the_rare_outcome_weighs_more_and_hard_and_easy_count_alike():
    # one hard prompt (1 of 4), two easy ones (3 of 4): the weight lies on the success and on the two failures
    rewards = [1, 0, 0, 0, 1, 1, 1, 0, 1, 1, 1, 0]
    batch = sequences(
        [[-1.0]] * 12, [[1.0]] * 12, rewards=rewards, groups=[0] * 4 + [1] * 4 + [2] * 4, behaviour=[[-1.0]] * 12
    )
    found = -gradient(objective("weighted_grpo", success=3.0, failure=5.0), batch)[:, 0]
    a, b = 1.4997, 0.4999
    hard = [3 * a, -b, -b, -b]
    easy = [b, b, b, -5 * a]
    assert found.tolist() == pytest.approx([x / 2 / 4 for x in hard] + 2 * [x / 2 / 8 for x in easy], abs=1e-4)


def test_one_side_alone_counts_fully_and_flat_prompts_have_no_part():
    rewards = [1, 0, 0, 0, 1, 1, 1, 1]
    batch = sequences([[-1.0]] * 8, [[1.0]] * 8, rewards=rewards, groups=[0] * 4 + [1] * 4, behaviour=[[-1.0]] * 8)
    found = -4 * gradient(objective("weighted_grpo", success=1.0), batch)[:, 0]
    assert found.tolist() == pytest.approx([1.4997, -0.4999, -0.4999, -0.4999, 0, 0, 0, 0], abs=1e-4)


def test_rewards_between_are_refused_where_solved_ones_are_counted():
    with pytest.raises(ValueError, match="needs rewards 0 and 1"):
        objective("weighted_grpo")(f1(rewards=[0.5] * 8))
