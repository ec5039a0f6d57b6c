"""The numbers of `strop plan` before a run, in the middle of one and after."""

import pytest

from strop.core.plan import plan
from strop.core.recipe import load
from strop.storage.console import open_console


class Died(BaseException):
    pass


def test_a_recipe_that_never_ran_is_counted_from_its_settings(smoke):
    recipe = load("smoke")
    before = plan(recipe)
    with open_console(smoke.lake) as console:
        sampled = console.query("SELECT count(*) FROM rollouts").rows[0][0]
        problems = console.query("SELECT split, count(*) FROM problems WHERE origin = 'task' GROUP BY split").rows
    assert before.problems == dict(problems)
    assert before.rollouts == sampled
    assert (before.tokens_basis, before.committed_rounds, before.estimated_seconds) == ("at most", 0, None)
    assert before.tokens == pytest.approx(before.rollouts * 24, rel=0.005)
    after = plan(recipe, smoke.lake, "smoke")
    assert (after.rollouts, after.tokens, after.committed_rounds, after.estimated_seconds) == (0, 0, recipe.rounds, 0)


def test_what_is_committed_is_not_counted_again(tiny, tmp_path):
    recipe = tiny.write(tmp_path, tiny.stages(filter=None, train=None, gate=None, build=None))
    lake = tmp_path / "lake"
    assert plan(recipe, lake, "tiny").rollouts == 16 + 2 * (16 + 24)

    def die(event):
        if (event.kind, event.stage, event.round) == ("stage_done", "generate", 1):
            raise Died

    with pytest.raises(Died):
        tiny.run(recipe, tmp_path, on_event=die)
    half = plan(recipe, lake, "tiny")
    assert (half.rollouts, half.committed_rounds, half.tokens_basis) == (16 + (16 + 24), 0, "measured")
    assert half.tokens == 2 * half.rollouts  # a digit and the end
    assert half.estimated_seconds is None  # no round is complete yet
    tiny.run(recipe, tmp_path)
    done = plan(recipe, lake, "tiny")
    assert (done.rollouts, done.tokens, done.committed_rounds, done.estimated_seconds) == (0, 0, 2, 0)
    more = plan(recipe, lake, "tiny", rounds=3)
    assert (more.rollouts, more.committed_rounds) == (16 + 24, 2)
    assert more.estimated_seconds > 0
    fewer = plan(recipe, lake, "tiny", rounds=1)
    assert (fewer.rollouts, fewer.committed_rounds) == (0, 1)
    other = plan(recipe, lake, "other")
    assert (other.rollouts, other.committed_rounds) == (96, 0)
    assert other.estimated_seconds > more.estimated_seconds


def test_equal_problems_count_once_and_a_round_samples_no_more_than_there_are(tiny, tmp_path):
    plugin = """
@stage("task")
def twice(config: Nothing, *, seed):
    return Task(lambda: [Problem(prompt=p, reference="1") for p in "abcab"])
"""
    shape = tiny.stages(build=None, train=None, evaluate=None, gate=None)
    recipe = tiny.write(tmp_path, shape, plugin, tasks=["./mine.py:twice"], rounds=1)
    found = plan(recipe)
    assert found.problems == {"train": 3, "heldout": 0}
    assert found.rollouts == 3 * 4
