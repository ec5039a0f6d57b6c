"""Estimates: values worked by hand, and intervals that cover what they should."""

import itertools
import random

import pytest

from strop.core.statistics import bootstrap_means, estimate, pass_at_k


@pytest.mark.parametrize(
    ("n", "correct", "k", "value"),
    [
        (4, 1, 2, 0.5),  # stages.md 8: 1 - (1 - 2/4)
        (4, 0, 2, 0.0),
        (4, 3, 2, 1.0),  # two draws cannot both be the one that failed
        (8, 2, 1, 0.25),
        (5, 2, 3, 0.9),  # 1 - C(3,3)/C(5,3)
        (1, 1, 1, 1.0),
    ],
)
def test_pass_at_k_by_hand(n, correct, k, value):
    assert pass_at_k(n, correct, k) == pytest.approx(value)


def test_pass_at_k_is_the_share_of_all_draws_with_a_success():
    for correct in range(7):
        draws = list(itertools.combinations([True] * correct + [False] * (6 - correct), 3))
        assert pass_at_k(6, correct, 3) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize(("n", "correct", "k"), [(2, 1, 3), (2, 3, 1), (2, 1, 0), (0, 0, 1)])
def test_pass_at_k_without_an_unbiased_estimate_is_refused(n, correct, k):
    with pytest.raises(ValueError, match="pass@k needs"):
        pass_at_k(n, correct, k)


def test_equal_values_have_an_interval_without_width():
    made = estimate([0.25] * 7, seed=0)
    assert (made.value, made.n, made.low, made.high) == (0.25, 7, 0.25, 0.25)


def test_the_interval_is_that_of_the_normal_approximation_for_many_values():
    """Half zeros, half ones, 400 of them: standard error .025, so .5 -+ 1.96 * .025."""
    made = estimate([0.0, 1.0] * 200, seed=3, resamples=5000)
    assert made.value == 0.5
    assert made.low == pytest.approx(0.451, abs=0.006)
    assert made.high == pytest.approx(0.549, abs=0.006)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = random.Random(5)
    hits = 0
    for trial in range(200):
        made = estimate([float(rng.random() < 0.3) for _ in range(80)], seed=trial, resamples=1000, confidence=0.9)
        hits += made.low <= 0.3 <= made.high
    assert 165 <= hits <= 195  # 180 expected, standard deviation 4.2


def test_the_same_seed_gives_the_same_resamples_and_another_gives_others():
    values = [0.0, 0.5, 1.0]
    first, again, other = (bootstrap_means(values, resamples=50, seed=s) for s in (1, 1, 2))
    assert first.tolist() == again.tolist() != other.tolist()
    assert set(first.round(6)) <= {round(i / 6, 6) for i in range(7)}


def test_no_values_are_refused():
    with pytest.raises(ValueError, match="no values"):
        estimate([], seed=0)
