"""Objectives with a reward model's word on each token, and the one that trains such a model: values worked by hand."""

import math

import pytest
import torch
from objective_tools import check_cuts, gradient, random_step, sequences, tensor

from strop.core.algebra.shaping import beyond
from strop.core.algebra.spread import left_one_out_tokens, reward_to_go, running_mean
from strop.core.plugin import Config, stage
from strop.core.registry import find
from strop.core.trainer.objective import ScoredTokens
from strop.storage.errors import PluginError

NAMES = ["prime", "oreal"]
BETA = 0.05
ONES = [[1.0, 1.0]] * 3
Q = {
    "logps": [[-1.0, -1.0]] * 3, "mask": ONES, "behaviour": [[-1.0, -1.0]] * 3, "groups": (0, 0, 0),
    "rewards": (1.0, 1.0, 0.0),
    "token_scores": [[BETA * q for q in row] for row in ((0.2, 0.4), (-0.1, 0.3), (0.0, -0.6))],
}  # fmt: skip
"""PRIME's log-ratios q = [.2, .4], [-.1, .3], [0, -.6] with outcomes 1, 1, 0."""
Z = (0.5, 1.5, -1.0)
WEIGHTS = (0.244919, 0.462117, 0.165140)
SURE = {
    "logps": [[-0.5, -1.0, -0.2], [-1.2, -0.4, -0.3]], "mask": [[1.0] * 3] * 2, "groups": (0, 0), "rewards": (1.0, 0.0),
    "token_scores": [Z, [-z for z in Z]], "reference": [[-0.5, -1.0, -0.2], [-1.2, -0.4, -0.3]],
}  # fmt: skip
"""OREAL's z on a right completion, and -z on a wrong one."""


def objective(name, **settings):
    """The plugin as the trainer calls it."""
    plugin = find("objective", name)
    config = plugin.configure(settings)
    return lambda batch: plugin.call(config, {"batch": batch})


@pytest.mark.parametrize("name", NAMES)
def test_micro_batches_add_up_to_the_step(name):
    check_cuts(objective(name), random_step())


@pytest.mark.parametrize("name", NAMES)
def test_a_step_without_token_scores_is_refused(name):
    with pytest.raises(ValueError, match='no token scores: the objective\'s mark asks for them with "token_scores"'):
        objective(name)(sequences(**{**(Q if name == "prime" else SURE), "token_scores": None}))


@pytest.mark.parametrize("name", NAMES)
def test_what_could_not_be_scored_has_no_part_and_changes_nothing(name):
    batch = random_step()
    batch.step.rewards[5] = math.nan
    found = gradient(objective(name), batch)
    assert (found[5] == 0).all()
    other = random_step()
    other.step.rewards[5] = math.nan
    other.step.token_scores[5] = 99.0
    torch.testing.assert_close(gradient(objective(name), other), found)


def test_process_returns_by_hand():
    batch = sequences(**Q)
    step = batch.step
    found = reward_to_go(left_one_out_tokens(step.token_scores, step.mask, step.group_ids), step.mask)
    torch.testing.assert_close(found, tensor([[0.04, 0.0275], [0.01, 0.02], [-0.05, -0.0475]]))


def test_prime_by_hand():
    # returns of the process and of the outcome, .5, .5, -1: their mean is 0, their variance 3.3001125 / 5
    scale = 1 / math.sqrt(3.3001125 / 5 + 1e-8)
    advantage = tensor([[0.54, 0.5275], [0.51, 0.52], [-1.05, -1.0475]]) * scale
    assert advantage[0, 0].item() == pytest.approx(0.664682, abs=1e-6)
    torch.testing.assert_close(gradient(objective("prime"), sequences(**Q)), -advantage / 6)
    loss = objective("prime")(sequences(**Q))
    assert loss.metrics == {"agreement": pytest.approx(1.0)}
    turned = {**Q, "token_scores": -tensor(Q["token_scores"])}
    assert objective("prime")(sequences(**turned)).metrics == {"agreement": 0.0}


def test_prime_without_a_word_of_the_reward_model_is_whitened_rloo():
    found = gradient(objective("prime"), sequences(**{**Q, "token_scores": [[0.0, 0.0]] * 3}))
    scale = 1 / math.sqrt(3 / 5 + 1e-8)
    torch.testing.assert_close(found, -tensor([[0.5, 0.5], [0.5, 0.5], [-1.0, -1.0]]) * scale / 6)


def test_prime_goes_by_the_reward_model_where_outcomes_are_equal():
    found = gradient(objective("prime"), sequences(**{**Q, "rewards": (1.0, 1.0, 1.0)}))
    assert (found[0] < 0).all()
    assert (found[2] > 0).all()


def test_prime_clips_the_ratio():
    up = {**Q, "behaviour": [[-1.5, -1.5]] * 3}
    found = gradient(objective("prime"), sequences(**up))
    assert (found[0] == 0).all(), "e^.5 is above 1.2 and the advantage is positive"
    assert (found[2] > 0).all()
    assert (gradient(objective("prime", high=1.0), sequences(**up))[0] < 0).all()


def test_completions_of_other_groups_and_those_without_a_token_do_not_count():
    scores = tensor([[1.0, 3.0], [2.0, 0.0], [9.0, 9.0], [5.0, 5.0], [7.0, 7.0]])
    mask = tensor([[1, 1], [1, 0], [0, 0], [1, 1], [1, 1]])
    found = left_one_out_tokens(scores, mask, torch.tensor([4, 4, 4, 9, -1]))
    # means 2 and 2: x * 2 - 4
    torch.testing.assert_close(found, tensor([[-2.0, 2.0], *[[0.0, 0.0]] * 4]))


def test_the_weights_of_oreal_by_hand():
    mean = running_mean(tensor([Z]), tensor([[1.0] * 3]))
    assert mean.sigmoid()[0].tolist() == pytest.approx([0.622459, 0.731059, 0.582570], abs=5e-7)
    assert beyond(mean.sigmoid(), 0.5)[0].tolist() == pytest.approx(WEIGHTS, abs=5e-7)
    assert beyond(1 - mean.sigmoid(), 0.5)[0].tolist() == [0.0, 0.0, 0.0]
    gap = running_mean(tensor([[9.0, 1.0, 9.0, 3.0]]), tensor([[0.0, 1.0, 0.0, 1.0]]))
    assert gap[0].tolist() == [0.0, 1.0, 1.0, 2.0]


def test_oreal_by_hand():
    loss = objective("oreal")(sequences(**SURE))
    # A = 2 and -2; 2/3 (.244919 * .5 + .462117 * 1 + .165140 * .2), and 2/3 of the sum of the weights
    assert loss.metrics == {
        "positive": pytest.approx(0.411736, abs=1e-6),
        "negative": pytest.approx(0.581451, abs=1e-6),
    }
    assert loss.value.item() == pytest.approx(0.411736 + 0.5 * 0.581451, abs=1e-6)
    found = gradient(objective("oreal"), sequences(**SURE))
    assert found[0].tolist() == pytest.approx([-2 / 3 * w for w in WEIGHTS], abs=1e-6)
    assert found[1].tolist() == pytest.approx([0.5 * 2 / 3 * w for w in WEIGHTS], abs=1e-6)


def test_oreal_leaves_alone_what_the_reward_model_thinks_otherwise_of():
    against = {**SURE, "token_scores": [[-z for z in Z], Z]}
    assert (gradient(objective("oreal"), sequences(**against)) == 0).all()
    assert (gradient(objective("oreal", threshold=0.0), sequences(**against))[1] > 0).all()


def test_oreal_stays_near_the_reference_on_what_it_trains_on():
    far = {**SURE, "reference": [[-0.6, -1.0, -0.2], [-1.2, -0.4, -0.3]]}
    added = objective("oreal")(sequences(**far)).value - objective("oreal")(sequences(**SURE)).value
    # k3 of d = .1 on one of six tokens
    assert added.item() == pytest.approx(0.01 * (math.exp(-0.1) + 0.1 - 1) / 6, abs=1e-9)
    assert find("objective", "oreal").mark.required(find("objective", "oreal").configure({"kl": 0})) == {"token_scores"}


def test_oreal_takes_one_of_each_kind_and_the_advantage_from_all():
    n = 5
    mask = [[1.0]] * n
    batch = {
        "logps": [[-1.0]] * n, "mask": mask, "groups": (0, 0, 0, 0, 1), "rewards": (1.0, 0.0, 0.0, 0.0, 1.0),
        "token_scores": [[40.0], [-40.0], [-40.0], [-40.0], [40.0]], "reference": [[-1.0]] * n,
    }  # fmt: skip
    # A of the right one: 1 - -1; of a wrong one: -1 - (1 - 1 - 1) / 3
    found = gradient(objective("oreal"), sequences(**batch))[:, 0]
    assert found.tolist() == pytest.approx([-2.0, 0.0, 0.5 * 2 / 3, 0.0, 0.0])
    found = gradient(objective("oreal", pair=False), sequences(**batch))[:, 0]
    assert found.tolist() == pytest.approx([-2.0, *[0.5 * 2 / 9] * 3, 0.0])


def test_oreal_needs_outcomes():
    with pytest.raises(ValueError, match=r"needs rewards 0 and 1, got 0\.5"):
        objective("oreal")(sequences(**{**SURE, "rewards": (0.5, 1.0)}))


def scored(scores=(Z, (-2.0, 1.0, 9.0)), rewards=(1.0, 0.0), rows=slice(None)):
    return ScoredTokens(
        scores=tensor(scores)[rows].clone().requires_grad_(),
        step_rewards=tensor(rewards),
        mask=tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])[rows],
        rewards=tensor(rewards)[rows],
        weights=tensor((1.0, 1.0))[rows],
        step_sequences=2.0,
    )


def test_token_outcome_by_hand():
    batch = scored()
    loss = objective("token_outcome")(batch)
    # -log sigma(1/3), and -log(1 - sigma(-1/2)) without the token that the mask leaves out
    assert loss.value.item() == pytest.approx((0.540306 + 0.474077) / 2, abs=1e-6)
    assert loss.metrics == {"accuracy": 1.0, "level": pytest.approx((1 / 3 - 1 / 2) / 2)}
    (slope,) = torch.autograd.grad(loss.value, batch.scores)
    # sigma - outcome, over the tokens and the two completions
    assert slope[0].tolist() == pytest.approx([-0.417430 / 6] * 3, abs=1e-6)
    assert slope[1].tolist() == pytest.approx([0.377541 / 4, 0.377541 / 4, 0.0], abs=1e-6)


def test_right_and_wrong_completions_count_alike():
    more = ScoredTokens(
        tensor([Z, (0.0, 0.0, 0.0)]), tensor((1.0, 0.0, 0.0, 0.0)), tensor([[1.0] * 3] * 2), tensor((1.0, 0.0)),
        tensor((1.0, 1.0)), 4.0,
    )  # fmt: skip
    # 4 / 2 of the one right of four, and 4 / 6 of each wrong one
    expected = 2 * 0.540306 + 2 / 3 * math.log(2)
    assert objective("token_outcome")(more).value.item() == pytest.approx(expected / 4, abs=1e-6)
    plain = (0.540306 + math.log(2)) / 4
    assert objective("token_outcome", even=False)(more).value.item() == pytest.approx(plain, abs=1e-6)


def test_token_outcome_cut_into_micro_batches_is_the_same():
    whole = objective("token_outcome")(scored())
    parts = [objective("token_outcome")(scored(rows=slice(i, i + 1))) for i in range(2)]
    assert sum(part.value.item() for part in parts) == pytest.approx(whole.value.item())
    assert sum(part.metrics["accuracy"] for part in parts) == 1.0
    with pytest.raises(ValueError, match="needs rewards 0 and 1, got 2"):
        objective("token_outcome")(scored(rewards=(2.0, 0.0)))


def test_a_mark_says_which_kind_of_reward_model_scores_tokens():
    def own(config: Config, *, batch):
        """Not called."""

    with pytest.raises(PluginError, match=r"`scored_by` 'implicit' or 'token', got None"):
        stage("objective", examples="group", requires=("token_scores",))(own)
    with pytest.raises(PluginError, match="with a head there are no log-probabilities to require"):
        stage("objective", examples="group", requires=("reference",), head="token")(own)
