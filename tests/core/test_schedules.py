"""Settings that change during a training, at points worked by hand."""

import math

import pytest

from strop.core.algebra.schedules import decline, exponential, linear, piecewise, v_shape
from strop.core.registry import find


def test_a_line_ends_where_its_share_of_the_training_does():
    assert [linear(p, 0.0, 0.2) for p in (0, 0.25, 1)] == pytest.approx([0, 0.05, 0.2])
    assert [linear(p, 0.0, 0.2, over=0.5) for p in (0, 0.25, 0.5, 0.9)] == pytest.approx([0, 0.1, 0.2, 0.2])
    assert linear(0.0, 0.0, 0.2, over=0.0) == 0.2


def test_equal_factors_give_the_budgets_of_a_length_that_shrinks():
    # 800 tokens down to a fifth: 800, 357, 160
    assert [math.floor(exponential(p, 800, 160) + 1e-9) for p in (0, 0.5, 1)] == [800, 357, 160]


def test_pieces_are_straight_and_the_outer_values_hold():
    knots = [(0.3, 1.0), (0.7, 3.0), (0.8, 3.0)]
    assert [piecewise(p, knots) for p in (0, 0.3, 0.5, 0.7, 0.75, 1)] == pytest.approx([1, 1, 2, 3, 3, 3])


def test_the_v_of_grpo_d():
    found = [v_shape(s / 100, 0.04, 0.1, 0.3) for s in (0, 15, 30, 65, 100)]
    assert found == pytest.approx([0.07, 0.055, 0.04, 0.07, 0.1])


def test_the_decline_of_epo():
    # a quarter of the first half, three quarters of the second
    assert [decline(0.125), decline(0.875)] == pytest.approx([0.921306, 0.084319], abs=1e-6)
    assert decline(0.0) == 1.0


@pytest.mark.parametrize(
    ("name", "settings", "text"),
    [
        ("grpo", {"kl_most": 0.1}, "above 0"),
        ("grpo", {"kl": 0.2, "kl_most": 0.1}, "not above kl_most"),
        ("kdrl", {"kd": 0.0, "kd_last": 0.1}, "set kd above 0"),
    ],
)
def test_a_schedule_without_its_other_end_is_refused(name, settings, text):
    with pytest.raises(ValueError, match=text):
        find("objective", name).configure(settings)


def test_a_setting_that_came_later_leaves_a_recipe_what_it_was():
    for name in ("grpo", "kdrl"):
        config = find("objective", name).configure({})
        assert not {"kl_most", "kl_turn", "kd_last", "fall"} & set(config.decisive())
