"""One verdict a rollout: the rule by which pass rates, filters, builders and metrics agree."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "plugins"))
from plugin_rows import group, judged

from strop.core.verdicts import groups, values, verdicts
from strop.storage.tables import Score


def test_a_rollout_passes_when_every_verifier_says_so():
    rollouts = group(1, "a", "b", "c")
    scores = judged(rollouts, 1, 1, 0) + judged(rollouts, 1, 0, 0, scorer="math")
    assert verdicts(scores) == {100: "pass", 101: "fail", 102: "fail"}
    assert verdicts(scores, "answer") == {100: "pass", 101: "pass", 102: "fail"}


def test_one_error_makes_it_an_error_and_takes_its_value_away():
    rollouts = group(1, "a", "b")
    scores = judged(rollouts, 1, 1) + judged(rollouts, "error", 0, scorer="math")
    assert verdicts(scores) == {100: "error", 101: "fail"}
    assert values(scores) == {101: 0.5}


def test_graded_scores_and_scores_of_other_subjects_are_no_verdicts():
    graded = Score(subject_id=1, scorer="judge", value=0.7)
    step = Score(subject_id=2, subject_kind="step", scorer="prm", verdict="fail", value=0.0)
    assert verdicts([graded, step]) == {}
    assert values([graded, step]) == {1: 0.7}


def test_an_unknown_scorer_is_named_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'answer'"):
        verdicts(judged(group(1, "a"), 1), "anwser")


def test_groups_are_in_order_of_problem_and_sample():
    found = groups(reversed(group(2, "a", "b") + group(1, "c")))
    assert [[r.completion for r in g] for g in found] == [["c"], ["a", "b"]]
