"""The parts objectives are composed of, against numbers worked by hand on the fixtures F1 and F2."""

import pytest
import torch

from strop.core.algebra import advantages, divergences, groups, ratios, spread

REWARDS = torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 0], dtype=torch.float64)
GROUPS = torch.tensor([7, 7, 7, 7, 3, 3, 3, 3])
LENGTHS = torch.tensor([3.0, 2, 4, 3, 2, 2, 3, 5], dtype=torch.float64)
MASK = (torch.arange(5) < LENGTHS[:, None]).double()

LOGPS = torch.tensor([[-0.5, -1.0, -0.2], [-1.2, -0.4, 0.0]], dtype=torch.float64)
OLD = torch.tensor([[-0.7, -0.9, -0.6], [-0.8, -0.5, 0.0]], dtype=torch.float64)
REFERENCE = torch.tensor([[-0.6, -1.1, -0.5], [-1.0, -0.6, 0.0]], dtype=torch.float64)
F2_MASK = torch.tensor([[1.0, 1, 1], [1, 1, 0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (advantages.plain(REWARDS), [1, 0, 0, 0, 1, 1, 1, 0]),
        (advantages.centred(REWARDS, GROUPS), [0.75, *[-0.25] * 3, *[0.25] * 3, -0.75]),
        (advantages.left_one_out(REWARDS, GROUPS), [1, *[-0.333333] * 3, *[0.333333] * 3, -1]),
        (
            advantages.standardised(REWARDS, GROUPS),
            [1.499700, *[-0.499900] * 3, *[0.499900] * 3, -1.499700],
        ),
        (
            advantages.standardised(REWARDS, GROUPS, eps=1e-6),
            [1.499997, *[-0.499999] * 3, *[0.499999] * 3, -1.499997],
        ),
        (
            advantages.batch_scaled(REWARDS, GROUPS),
            [1.402859, *[-0.467620] * 3, *[0.467620] * 3, -1.402859],
        ),
        (
            advantages.length_weighted(REWARDS, GROUPS, LENGTHS),
            [0.75, *[-0.25] * 3, *[1 - 0.583333] * 3, -0.583333],
        ),
        (advantages.best_only(REWARDS, GROUPS), [1.999996, *[0] * 7]),
        (advantages.softened(REWARDS, GROUPS, 1.0)[:4], [0.642626, *[-0.357374] * 3]),
        (advantages.centred(REWARDS, GROUPS, -0.1)[:4], [0.85, *[-0.15] * 3]),
        (
            advantages.beta_scaled(REWARDS, GROUPS),
            [0.716606, *[-0.238869] * 3, *[0.238869] * 3, -0.716606],
        ),
    ],
    ids=[
        "plain", "centred", "leave one out", "std TRL", "std verl", "batch std", "OPO", "pass@k", "OPMD", "AsymRE",
        "BNPO",
    ],
)  # fmt: skip
def test_advantages_of_f1(found, expected):
    assert found.tolist() == pytest.approx(expected, abs=1.1e-6)


EVERY = [
    advantages.centred,
    advantages.left_one_out,
    advantages.standardised,
    advantages.batch_scaled,
    advantages.best_only,
    lambda r, g: advantages.softened(r, g, 1.0),
    advantages.beta_scaled,
    lambda r, g: advantages.length_weighted(r, g, torch.ones_like(r)),
]


@pytest.mark.parametrize("advantage", EVERY)
def test_an_unscorable_reward_has_no_advantage_and_no_part_in_those_of_others(advantage):
    with_it = torch.tensor([1.0, torch.nan, 0.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    ids = torch.tensor([1, 1, 1, 1, 2, 2])
    scored = ~with_it.isnan()
    found = advantage(with_it, ids)
    assert found[1] == 0
    assert found[scored].tolist() == pytest.approx(advantage(with_it[scored], ids[scored]).tolist())


@pytest.mark.parametrize("advantage", EVERY)
@pytest.mark.parametrize("rewards", [[1.0, 1.0], [0.0, 0.0], [1.0], [0.0], [torch.nan, torch.nan]])
def test_a_group_without_contrast_gives_nothing(advantage, rewards):
    found = advantage(torch.tensor(rewards, dtype=torch.float64), torch.zeros(len(rewards), dtype=torch.int64))
    assert found.tolist() == [0.0] * len(rewards)


@pytest.mark.parametrize("advantage", EVERY)
def test_the_order_of_the_sequences_does_not_matter(advantage):
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(advantage(REWARDS[order], GROUPS[order]), advantage(REWARDS, GROUPS)[order])


def test_strata_of_one_prompt():
    rewards = torch.tensor([1.0, 0, 1, 1, 0, 0], dtype=torch.float64)
    strata, one = torch.tensor([1, 1, 1, 2, 2, 2]), torch.zeros(6, dtype=torch.int64)
    local = [0.707105, -1.414211, 0.707105, 1.414211, -0.707105, -0.707105]
    mixed = [0.853552, -1.207104, 0.853552, 1.207104, -0.853552, -0.853552]
    assert advantages.standardised_in_strata(rewards, one, strata, 1.0).tolist() == pytest.approx(local, abs=2e-6)
    assert advantages.standardised_in_strata(rewards, one, strata, 0.5).tolist() == pytest.approx(mixed, abs=2e-6)
    alone = advantages.standardised_in_strata(rewards[:2], one[:2], torch.tensor([1, 2]), 1.0)
    assert alone.tolist() == [0.0, 0.0]


def test_equal_strata_of_two_groups_stay_apart():
    rewards = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    found = advantages.standardised_in_strata(rewards, torch.tensor([0, 0, 1, 1]), torch.tensor([5, 5, 5, 5]), 1.0)
    assert found.tolist() == pytest.approx([1.0, -1.0, 0.0, 0.0], abs=1e-5)


def test_group_statistics():
    values = torch.tensor([1.0, 3.0, torch.nan, 5.0, 7.0], dtype=torch.float64)
    ids = torch.tensor([4, 4, 4, -1, -1])
    assert groups.group_mean(values, ids).tolist() == [2, 2, 2, 5, 7]
    assert groups.group_size(values, ids).tolist() == [2, 2, 2, 1, 1]
    assert groups.group_std(values, ids).tolist() == pytest.approx([2**0.5] * 3 + [0, 0])
    assert groups.group_std(values, ids, ddof=0).tolist() == [1, 1, 1, 0, 0]
    assert groups.group_max(values, ids).tolist() == [3, 3, 3, 5, 7]
    assert values[groups.one_of_each(ids)].sort().values.tolist() == [1, 5, 7]


def test_reinforce_plus_plus_whitens_over_all_tokens():
    found = spread.whitened(spread.reward_to_go(spread.at_last(REWARDS, MASK), MASK), MASK)
    assert sorted(set(found[MASK > 0].mul(1e6).round().div(1e6).tolist())) == [-0.827360, 1.158303]
    centred = advantages.centred(REWARDS, GROUPS)[:, None] * MASK
    white = spread.whitened(centred, MASK)
    assert white[[0, 1, 4, 7], 0].tolist() == pytest.approx([1.730547, -0.346109, 0.692219, -1.384437], abs=1e-6)


def test_generalised_advantages_by_hand():
    rewards, values = torch.tensor([[0.0, 0, 1]]).double(), torch.tensor([[0.2, 0.5, 0.6]]).double()
    found, returns = spread.gae(rewards, values, torch.ones(1, 3).double())
    assert found[0].tolist() == pytest.approx([0.756, 0.48, 0.4])
    assert returns[0].tolist() == pytest.approx([0.956, 0.98, 1.0])
    white = spread.whitened(found, torch.ones(1, 3).double())
    assert white[0].tolist() == pytest.approx([1.127910, -0.349795, -0.778115], abs=1e-6)


def test_tokens_that_are_not_covered_are_passed_over():
    mask = torch.tensor([[1.0, 0, 1, 1, 0]]).double()
    rewards, values = torch.tensor([[0.0, 9, 0, 1, 9]]).double(), torch.tensor([[0.2, 9, 0.5, 0.6, 9]]).double()
    found, returns = spread.gae(rewards, values, mask)
    assert found[0].tolist() == pytest.approx([0.756, 0, 0.48, 0.4, 0])
    assert returns[0].tolist() == pytest.approx([0.956, 0, 0.98, 1.0, 0])
    assert spread.reward_to_go(rewards, mask, 0.5)[0].tolist() == [0.25, 0, 0.5, 1, 0]
    assert spread.at_last(torch.tensor([3.0]).double(), mask)[0].tolist() == [0, 0, 0, 3, 0]


def test_ratios_of_f2_at_three_levels():
    token = ratios.log_ratio(LOGPS, OLD, F2_MASK)
    assert token.exp()[F2_MASK > 0].tolist() == pytest.approx(
        [1.221403, 0.904837, 1.491825, 0.670320, 1.105171], abs=1e-6
    )
    assert ratios.sequence_log_ratio(token, F2_MASK).exp()[:, 0].tolist() == pytest.approx(
        [1.648721, 0.740818], abs=1e-6
    )
    assert ratios.geometric_log_ratio(token, F2_MASK)[:, 0].tolist() == pytest.approx([0.5 / 3, -0.15])
    far = ratios.log_ratio(LOGPS + 99, OLD, F2_MASK)
    assert far.max() == 20


def test_a_level_straight_through_has_its_value_and_each_tokens_gradient():
    logps = LOGPS.clone().requires_grad_()
    level = ratios.geometric_log_ratio(ratios.log_ratio(logps, OLD, F2_MASK), F2_MASK)
    through = ratios.straight_through(level, logps)
    torch.testing.assert_close(through.detach(), level.detach().expand(2, 3))
    (found,) = torch.autograd.grad(through.sum(), logps)
    assert found.tolist() == [[1.0] * 3] * 2


def test_the_clip_and_its_cap():
    ratio, below = torch.tensor([[5.0, 0.5]]).double(), torch.tensor([[-1.0]]).double()
    assert ratios.clipped(below, ratio, 0.2, 0.2, 3.0).tolist() == [[3.0, 0.8]]
    assert ratios.clipped(below, ratio, 0.2, 0.2).tolist() == [[5.0, 0.8]]
    assert ratios.clipped(-below, ratio, 0.2, 0.28).tolist() == [[-1.28, -0.5]]


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_the_mask_is_on_where_the_clip_leaves_a_gradient(advantage):
    ratio = torch.linspace(0.5, 1.5, 21, dtype=torch.float64)[None].requires_grad_()
    a = torch.tensor([[advantage]], dtype=torch.float64)
    (found,) = torch.autograd.grad(ratios.clipped(a, ratio, 0.21, 0.31).sum(), ratio)
    assert ((found != 0).double() == ratios.not_clipped(a, ratio, 0.21, 0.31)).all()
    assert (found[found != 0] == -advantage).all()


def test_one_side_keeps_what_two_sides_drop():
    ratio, up = torch.tensor([[0.5]]).double(), torch.tensor([[1.0]]).double()
    assert ratios.not_clipped(up, ratio, 0.2, 0.2).item() == 1
    assert ratios.within(ratio, 0.2, 0.2).item() == 0


def test_divergences_of_f2():
    means = [(f(LOGPS, REFERENCE) * F2_MASK).sum().item() / 5 for f in (divergences.k1, divergences.k2, divergences.k3)]
    assert means == pytest.approx([0.1, 0.019, 0.018125], abs=1e-6)


def test_what_the_gradients_of_the_estimates_are_on_a_small_softmax():
    rng = torch.Generator().manual_seed(3)
    logits = torch.randn(6, generator=rng, dtype=torch.float64).requires_grad_()
    other = torch.randn(6, generator=rng, dtype=torch.float64).log_softmax(-1)
    logps = logits.log_softmax(-1)
    p = logps.exp()

    def slope(loss):
        return torch.autograd.grad(loss, logits, retain_graph=True)[0]

    reverse = slope((p * (logps - other)).sum())
    forward = slope((other.exp() * (other - logps)).sum())
    on_policy = p.detach()
    torch.testing.assert_close(slope((on_policy * divergences.k2(logps, other)).sum()), reverse)
    torch.testing.assert_close(slope((on_policy * divergences.k1(logps, other).detach() * logps).sum()), reverse)
    torch.testing.assert_close(slope((on_policy * divergences.k3(logps, other)).sum()), forward)
    ratio = (logps - logps.detach()).exp()
    torch.testing.assert_close(slope((on_policy * ratio * divergences.k3(logps, other)).sum()), reverse)
