"""What reward models say of rollouts: one, an ensemble, none yet; and what builders make of it."""

import json
import math
from pathlib import Path

import pytest
from plugin_rows import group, judged, problem, use

from strop.core.engine import NamedPolicy, RewardModel
from strop.storage.errors import PluginError
from strop.storage.tables import Rollout, Score, TokenLogps


class Table:
    """Scores by completion; a text it does not know is too long for it."""

    def __init__(self, **scores: float) -> None:
        self.known, self.asked = scores, 0

    def scores(self, pairs):
        self.asked += 1
        for prompt, text in pairs:
            if text not in self.known:
                raise ValueError(f"{len(prompt)} tokens are too many")
        return [self.known[text] for _, text in pairs]


def model(stage: str, table: Table) -> RewardModel:
    policy = NamedPolicy(Path(), stage, 5, {})
    return RewardModel(f"run/r1/{stage}", stage, policy, None, load=lambda: table)


def say(rollouts: list[Rollout], *models: RewardModel, **settings) -> list[Score]:
    return use("verify", "reward_model", **settings)(rollouts=rollouts, reward_models=list(models))


def test_one_model_gives_its_score_and_no_verdict():
    first, second = say(group(1, "a", "b"), model("rm", Table(a=1.5, b=-0.5)))
    assert (first.value, second.value) == (1.5, -0.5)
    assert first.verdict is None
    assert json.loads(first.detail) == {"models": ["run/r1/rm"], "scores": [1.5], "spread": 0.0}


def test_an_ensemble_gives_the_mean_and_its_spread_apart_from_the_models_levels():
    one, other = model("one", Table(a=2.0, b=0.0)), model("two", Table(a=11.0, b=11.0))
    a, b = say(group(1, "a", "b"), one, other)
    assert (a.value, b.value) == (6.5, 5.5)
    # less each model's mean: a is +1 and 0, b is -1 and 0
    assert [json.loads(s.detail)["spread"] for s in (a, b)] == [0.5, 0.5]
    agreed = say(group(1, "a", "b"), one, model("two", Table(a=12.0, b=10.0)))
    assert [json.loads(s.detail)["spread"] for s in agreed] == [0.0, 0.0]


def test_caution_takes_the_spread_off():
    one, other = model("one", Table(a=2.0, b=0.0)), model("two", Table(a=11.0, b=11.0))
    a, _ = say(group(1, "a", "b"), one, other, caution=2.0)
    assert a.value == pytest.approx(6.5 - 2 * 0.5)


def test_levels_are_of_each_problem():
    rollouts = [*group(1, "a", "b"), *group(2, "c")]
    scores = say(rollouts, model("one", Table(a=1.0, b=0.0, c=9.0)), model("two", Table(a=1.0, b=0.0, c=-9.0)))
    assert [json.loads(s.detail)["spread"] for s in scores] == [0.0, 0.0, 0.0]


def test_without_a_model_there_is_no_score_and_a_reason():
    (score,) = say(group(1, "a"))
    assert (score.value, score.verdict) == (None, None)
    assert "there is no reward model yet" in score.reason


def test_what_a_model_cannot_read_is_an_error_of_that_rollout_alone():
    long, fine = say(group(1, "?", "a"), model("rm", Table(a=1.0)))
    assert (long.verdict, long.value, long.reason) == ("error", None, "3 tokens are too many")
    assert (fine.verdict, fine.value) == (None, 1.0)
    (failed,) = say(group(1, "a", finish_reason="error", error="gone"), model("rm", Table(a=1.0)))
    assert failed.verdict == "error"


def test_models_are_chosen_by_their_stages_names():
    one, other = model("one", Table(a=2.0)), model("two", Table(a=4.0))
    assert say(group(1, "a"), one, other, models=["two"])[0].value == 4.0
    with pytest.raises(PluginError, match=r"called 'tow'.*did you mean 'two'"):
        say(group(1, "a"), one, other, models=["tow"])
    assert say(group(1, "a"), models=["two"])[0].value is None


def test_an_implicit_reward_is_beta_times_the_log_ratio():
    rollouts = group(1, "a", "b", token_ids=[3, 4])
    ours = NamedPolicy(Path(), "ours", 5, {100: [-0.3, -0.1], 101: [-0.5, -1.1]})
    base = NamedPolicy(Path(), "base", 1, {100: [-0.5, -0.5], 101: [-0.5, -0.5]})
    scores = say(rollouts, RewardModel("run/r1/prm", "prm", ours, base, beta=0.05))
    assert [s.value for s in scores] == pytest.approx([0.05 * 0.6, 0.05 * -0.6])


def test_self_rewarding_ppos_reward_of_f3():
    """The chosen completion, -4 under the tuned policy and -4.5 under the base."""
    tuned = NamedPolicy(Path(), "tuned", 5, {100: [-0.8] * 5})
    base = NamedPolicy(Path(), "base", 1, {100: [-0.9] * 5})
    (score,) = say(group(1, "abcde", token_ids=[3] * 5), RewardModel("run/r1/sft", "sft", tuned, base))
    assert score.value == pytest.approx(0.5, abs=1e-6)


def test_log_probabilities_that_were_not_known_are_kept_under_either_policy():
    class Half:
        name, capabilities = "half", frozenset({"score"})

        def score(self, pairs):
            return [[math.log(0.5)] * len(ids) for _, ids in pairs]

    ours = NamedPolicy(Path(), "ours", 5, {100: [-0.2, -0.2]}, Half)
    base = NamedPolicy(Path(), "base", 1, {}, Half)
    rows = say(group(1, "a", "b", token_ids=[3, 4]), RewardModel("run/r1/prm", "prm", ours, base, beta=2.0))
    kept = [row for row in rows if isinstance(row, TokenLogps)]
    assert sorted((r.policy_hash, r.rollout_id, r.policy_id) for r in kept) == [
        ("base", 100, 1),
        ("base", 101, 1),
        ("ours", 101, 5),
    ]
    values = [row.value for row in rows if isinstance(row, Score)]
    assert values == pytest.approx([2 * (2 * math.log(2) - 0.4), 0.0])


def test_a_pairs_margin_may_be_what_an_ensemble_makes_of_it():
    rollouts = group(1, "a", "b", "c")
    scores = judged(rollouts, 1, 0, 0)
    graded = say(rollouts, model("one", Table(a=1.0, b=3.0, c=0.0)), model("two", Table(a=2.0, b=2.0, c=1.0)))
    named = [Score(subject_id=s.subject_id, scorer="rm", value=s.value) for s in graded]

    def built(**settings):
        build = use("build", "best_worst", scorer="answer", **settings)
        return build(rollouts=rollouts, scores=[*scores, *named], decisions=[], problems={1: problem(1)})

    (pair,) = built()
    assert (pair.chosen, pair.rejected, pair.margin, pair.reward) == ("a", "b", 1.0, 1.0)
    (pair,) = built(margin_scorer="rm")
    assert (pair.chosen, pair.rejected, pair.margin, pair.reward) == ("a", "b", 1.5 - 2.5, 1.5)


def test_groups_wait_for_a_scorer_that_has_nothing_to_say_yet():
    rollouts = group(1, "a", "b")
    build = use("build", "grouped", scorer="rm")
    scores = [Score(subject_id=s.subject_id, scorer="rm", reason=s.reason) for s in say(rollouts)]
    assert build(rollouts=rollouts, scores=scores, decisions=[], problems={1: problem(1)}) == []
    broken = judged(rollouts, "error", "error", scorer="rm")
    with pytest.raises(ValueError, match="no rollout has a score"):
        build(rollouts=rollouts, scores=broken, decisions=[], problems={1: problem(1)})
