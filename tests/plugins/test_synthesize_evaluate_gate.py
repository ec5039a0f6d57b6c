"""Synthesize, evaluate and gate: numbers by hand, errors left out, and messages that say what to do."""

from dataclasses import replace

import pytest
from plugin_rows import group, judged, problem, rates, use

from strop.core.plugin import Examined, Task
from strop.core.problems import problem_key
from strop.plugins.synthesize.weakness import split
from strop.storage.errors import PluginError
from strop.storage.tables import Problem

# synthesize: weakness


def counting_task(prompts=None) -> Task:
    """`more` makes `<category>#<seed mod 1000>.<i>`, or repeats the prompts given."""

    def more(category, level, n, seed):
        texts = prompts or [f"{category}#{seed % 1000}.{i}" for i in range(n)]
        return [Problem(prompt=t, reference="1", category=category, level=level) for t in texts[:n]]

    return Task(problems=list, more=more)


def weakness(known, pass_rates, task=None, heldout_keys=frozenset(), **config):
    return use("synthesize", "weakness", **{"problems": 100, **config})(
        problems=known,
        heldout_keys=heldout_keys,
        pass_rates=pass_rates,
        tasks={"t": task or counting_task()},
        seed=0,
    )


def test_the_budget_is_split_by_failure_share():
    """stages.md 5: ratios .08/.16/.16 and a budget of 100 give 20/40/40."""
    assert split(100, [0.08, 0.16, 0.16]) == [20, 40, 40]
    assert split(10, [1, 1, 1]) == [4, 3, 3]
    assert split(0, [1.0]) == [0]
    assert split(5, [0.0, 0.0]) == [0, 0]
    assert split(5, []) == []


def test_new_problems_go_to_the_categories_that_fail():
    """add: one of four failed, mul: six of eight, shares .25 and .75: of 8 problems 2 and 6 (by number 1 and 7)."""
    problems = [problem(i, category="add" if i < 5 else "mul") for i in range(1, 13)]
    seen = rates(p1=(0, 8), **{f"p{i}": (4, 8) for i in (2, 3, 4, 5, 6)}, **{f"p{i}": (3, 8) for i in range(7, 13)})
    made = weakness(problems, seen, problems=8)
    assert [p.category for p in made] == ["add"] * 2 + ["mul"] * 6
    assert {p.split for p in made} == {"train"}
    assert {p.task for p in made} == {"t"}
    assert all(p.problem_key == problem_key(p) for p in made)


def test_parents_are_the_failed_problems_of_lowest_pass_rate():
    problems = [problem(i, category="add") for i in range(1, 5)]
    made = weakness(problems, rates(p1=(3, 8), p2=(0, 8), p3=(8, 8), p4=(1, 8)), problems=2, parents=2)
    assert [p.parents for p in made] == [[2, 4], [2, 4]]


def test_levels_of_one_category_are_kinds_of_their_own():
    problems = [problem(i, category="add", level=float(i)) for i in (1, 2)]
    made = weakness(problems, rates(p1=(8, 8), p2=(0, 8)), problems=3)
    assert [p.level for p in made] == [2.0] * 3


def test_known_and_held_out_problems_are_not_made_again():
    known = problem(1, prompt="old", reference="1", category="add")
    held = problem_key(Problem(task="t", prompt="held", reference="1", category="add"))
    task = counting_task(["old", "held", "new", "new"])
    made = weakness([known], rates(p1=(0, 8)), task, frozenset({held}), problems=4)
    assert [p.prompt for p in made] == ["new"]


def test_where_nothing_failed_nothing_is_made():
    problems = [problem(1, category="add"), problem(2, category="add")]
    assert weakness(problems, rates(p1=(8, 8))) == []
    assert weakness(problems, {}) == []


def test_a_task_without_generator_is_named():
    with pytest.raises(PluginError, match="the task 't': it has no generator"):
        weakness([problem(1)], rates(p1=(0, 8)), Task(problems=list))


# evaluate


def pass_at_k(rollouts, scores, categories=None, **config):
    known = {r.problem_id: problem(r.problem_id, category=(categories or {}).get(r.problem_id)) for r in rollouts}
    made = use("evaluate", "pass_at_k", **config)(rollouts=rollouts, scores=scores, problems=known, seed=0)
    return {(m.name, m.slice): m for m in made}


def test_pass_at_k_by_hand():
    """Problem 1: one of four passes, pass@2 = .5 (stages.md 8); problem 2: all of four, pass@2 = 1."""
    rollouts = group(1, *"abcd") + group(2, *"abcd")
    found = pass_at_k(rollouts, judged(rollouts, 1, 0, 0, 0, 1, 1, 1, 1), {1: "hard", 2: "easy"}, k=[1, 2])
    assert {key: (m.value, m.n) for key, m in found.items()} == {
        ("pass@1", "heldout"): (0.625, 2),
        ("pass@1", "heldout/easy"): (1.0, 1),
        ("pass@1", "heldout/hard"): (0.25, 1),
        ("pass@2", "heldout"): (0.75, 2),
        ("pass@2", "heldout/easy"): (1.0, 1),
        ("pass@2", "heldout/hard"): (0.5, 1),
    }
    whole = found["pass@1", "heldout"]
    assert (whole.ci_low, whole.ci_high) == (0.25, 1.0)


def test_errors_are_in_neither_number():
    rollouts = group(1, *"abcd")
    found = pass_at_k(rollouts, judged(rollouts, 1, 0, "error", None), k=[1])
    assert found["pass@1", "heldout"].value == 0.5


def test_a_k_above_the_completions_there_are_has_no_metric():
    rollouts = group(1, *"abcd")
    assert set(pass_at_k(rollouts, judged(rollouts, 1, 0, 0, 0))) == {("pass@1", "heldout")}


def test_no_k_at_all_is_an_error_that_counts():
    rollouts = group(1, *"ab")
    with pytest.raises(ValueError, match=r"needs 8 judged completions of a problem, the most any has is 1 .* 1 could"):
        pass_at_k(rollouts, judged(rollouts, 1, "error"), k=[8])


def test_diversity_is_the_share_of_distinct_completions():
    """a b a c has three of four; d d has one of two: mean .625. A failed sample does not count."""
    rollouts = group(1, *"abac") + group(2, "d", "d") + group(3, "e")
    rollouts.append(replace(rollouts[-1], rollout_id=999, finish_reason="error", completion=""))
    made = use("evaluate", "diversity")(rollouts=rollouts, problems={i: problem(i) for i in (1, 2, 3)}, seed=0)
    assert [(m.name, m.slice, m.value, m.n) for m in made] == [("diversity", "heldout", 0.625, 2)]
    assert (made[0].ci_low, made[0].ci_high) == (0.5, 0.75)


def test_diversity_needs_two_completions_of_a_problem():
    with pytest.raises(ValueError, match="two completions"):
        use("evaluate", "diversity")(rollouts=group(1, "a"), problems={1: problem(1)}, seed=0)


# gate: bootstrap_better


def gate(champion, candidate, **config):
    policies = [Examined(i, [], rates(**r)) for i, r in ((1, champion), (2, candidate))]
    return use("gate", "bootstrap_better", **config)(candidate=policies[1], champion=policies[0], seed=0)


def solved(*passed: int) -> dict[str, tuple[int, int]]:
    return {f"p{i}": (n, 8) for i, n in enumerate(passed)}


def test_the_better_candidate_is_promoted_with_the_numbers():
    verdict = gate(solved(*[2] * 40), solved(*[4, 5] * 20))
    assert verdict.action == "promote"
    assert "pass@1 0.250 -> 0.562 on 40 held-out problems: the gain of +0.312 is above 0 at 90%" in verdict.reason


def test_the_worse_and_the_equal_candidate_are_not():
    assert gate(solved(*[4, 5] * 20), solved(*[2] * 40)).action == "keep"
    verdict = gate(solved(*[4] * 40), solved(*[4] * 40))
    assert verdict.action == "keep"
    assert "the gain of +0.000 is not above 0" in verdict.reason


def test_a_gain_within_chance_is_not_enough_unless_less_confidence_is_asked():
    """Of 20 problems six are gained and four lost: gain .1, standard error .154, z = .65, one-sided .74."""
    before, after = solved(*[0] * 6, *[8] * 4, *[4] * 10), solved(*[8] * 6, *[0] * 4, *[4] * 10)
    assert gate(before, after).action == "keep"
    assert gate(before, after, confidence=0.6).action == "promote"


def test_the_gain_must_exceed_min_gain():
    before, after = solved(*[4] * 40), solved(*[6] * 40)
    assert gate(before, after, min_gain=0.24).action == "promote"
    assert gate(before, after, min_gain=0.25).action == "keep"
    assert gate(before, before, min_gain=-0.01).action == "promote"


def test_only_problems_judged_under_both_are_compared():
    verdict = gate({"p1": (0, 8), "p2": (8, 8)}, {"p2": (8, 8), "p3": (8, 8)})
    assert "pass@1 1.000 -> 1.000 on 1 held-out problems" in verdict.reason
    with pytest.raises(ValueError, match="no held-out problem in common"):
        gate({"p1": (0, 8)}, {"p3": (8, 8)})
