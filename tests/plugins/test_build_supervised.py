"""Builders of the supervised family: markers, hindsight, emptied thoughts, groups with a demonstration."""

import random

import pytest
from plugin_rows import dropped, group, judged, problem, use


def built(name, rollouts, scores, decisions=(), seed=0, known=None, **config):
    known = known or {r.problem_id: problem(r.problem_id) for r in rollouts}
    return use("build", name, **config)(
        rollouts=rollouts, scores=scores, decisions=list(decisions), problems=known, seed=seed
    )


def covered(example):
    """The texts the loss covers."""
    ends = iter(example.loss_spans)
    return [example.completion[a:b] for a, b in zip(ends, ends, strict=True)]


NAMES = ["mistake_tuning", "chain_of_hindsight", "thought_dropout", "demonstrated"]


@pytest.mark.parametrize("name", NAMES)
def test_they_do_not_depend_on_the_order_of_rows(name):
    rollouts = [r for i in range(1, 6) for r in group(i, *"abcd")]
    scores = judged(rollouts, *[1, 0, 1, 0] * 5)
    mixed, mixed_scores = rollouts[:], scores[:]
    random.Random(1).shuffle(mixed)
    random.Random(2).shuffle(mixed_scores)
    assert built(name, rollouts, scores) == built(name, mixed, mixed_scores) != []


@pytest.mark.parametrize("name", NAMES)
def test_without_any_verdict_they_say_what_is_missing(name):
    with pytest.raises(ValueError, match="put a `verify` before it"):
        built(name, group(1, "a"), [])


@pytest.mark.parametrize("name", NAMES)
def test_a_training_prompt_takes_the_place_of_the_one_sampled_from(name):
    rollouts = group(1, "a", "b", train_prompt="without the hint")
    assert all(e.prompt.startswith("without the hint") for e in built(name, rollouts, judged(rollouts, 1, 0)))


# mistake_tuning


def test_mistake_tuning_marks_right_and_wrong():
    rollouts = group(1, "w", "r", "w", "?", "s")
    rows = built("mistake_tuning", rollouts, judged(rollouts, 0, 1, 0, "error", 1), right=" R:", wrong=" W:")
    assert [(e.kind, e.prompt, e.completion, e.rollout_id) for e in rows] == [
        ("sft", "p1= R:", "r", 101),
        ("sft", "p1= R:", "s", 104),
        ("sft", "p1= W:", "w", 100),
    ]


def test_mistake_tuning_takes_no_more_of_either_than_asked():
    rollouts = group(1, *"abcdef")
    rows = built("mistake_tuning", rollouts, judged(rollouts, 1, 1, 1, 0, 0, 0), per_problem=2)
    assert [e.completion for e in rows] == ["a", "b", "d", "e"]


def test_what_a_filter_dropped_is_never_shown_as_right_and_may_be_wrong():
    rollouts = group(1, "a", "b", "c")
    rows = built("mistake_tuning", rollouts, judged(rollouts, 1, 1, 0), dropped(100, 102), right="+", wrong="-")
    assert [(e.prompt, e.completion) for e in rows] == [("p1=+", "b"), ("p1=-", "c")]


# chain_of_hindsight


def test_hindsight_has_four_forms_and_covers_the_completions_alone():
    rollouts = group(1, "bad", "fine")
    rows = built("chain_of_hindsight", rollouts, judged(rollouts, 0, 1), good=" G:", bad=" B:")
    assert [(e.prompt, e.completion, covered(e), e.rollout_id, e.sources) for e in rows] == [
        ("p1= G:", "fine", ["fine"], 101, []),
        ("p1= B:", "bad", ["bad"], 100, []),
        ("p1= B:", "bad G:fine", ["bad", "fine"], 100, [101]),
        ("p1= G:", "fine B:bad", ["fine", "bad"], 101, [100]),
    ]


def test_hindsight_covers_only_what_the_policy_wrote():
    rollouts = group(1, "ab<tool>c", "de<tool>f", loss_spans=[0, 2, 8, 9])
    (row,) = built("chain_of_hindsight", rollouts, judged(rollouts, 0, 1), forms=["bad_good"], good="//")
    assert row.completion == "ab<tool>c//de<tool>f"
    assert covered(row) == ["ab", "c", "de", "f"]


def test_hindsight_needs_contrast_and_pairs_in_order():
    rollouts = group(1, "a", "b") + group(2, "c", "d", "e", "f")
    scores = judged(rollouts, 1, 1, 0, 1, 0, 1)
    rows = built("chain_of_hindsight", rollouts, scores, forms=["good_bad"], per_problem=5, bad="|")
    assert [e.completion for e in rows] == ["d|c", "f|e"]


def test_hindsight_knows_its_forms():
    with pytest.raises(ValueError, match="good_bad"):
        use("build", "chain_of_hindsight", forms=["good_good"])


# thought_dropout


def thinking(text="so"):
    rollouts = group(1, f"<think>{text}</think>4", "4", f"<think>{text}", "<think>wrong</think>5")
    return rollouts, judged(rollouts, 1, 1, 1, 0)


def test_thoughts_are_emptied_and_the_rest_stays_as_it_was():
    rollouts, scores = thinking("so <think> again")
    rows = built("thought_dropout", rollouts, scores, share=1.0)
    assert [e.completion for e in rows] == ["<think>\n\n</think>4", "4", "<think>so <think> again"]
    assert [e.rollout_id for e in rows] == [100, 101, 102]
    kept = built("thought_dropout", rollouts, scores, share=0.0)
    assert [e.completion for e in kept] == [r.completion for r in rollouts[:3]]


def test_half_of_the_thoughts_go_and_the_seed_decides_which():
    rollouts = [r for i in range(1, 401) for r in group(i, f"<think>{i}</think>4")]
    scores = judged(rollouts, *[1] * 400)
    gone = [
        [e.completion == "<think>\n\n</think>4" for e in built("thought_dropout", rollouts, scores, seed=s)]
        for s in (1, 2)
    ]
    assert all(160 <= sum(one) <= 240 for one in gone)  # 200 expected, standard deviation 10
    assert gone[0] != gone[1]


def test_a_thought_of_which_the_policy_wrote_parts_stays():
    rollouts = group(1, "<think>so</think>4", loss_spans=[0, 9])
    (row,) = built("thought_dropout", rollouts, judged(rollouts, 1), share=1.0)
    assert (row.completion, row.loss_spans) == ("<think>so</think>4", [0, 9])


# demonstrated


def test_each_group_ends_with_the_problems_solution_without_a_reward():
    rollouts = group(1, "a", "b") + group(2, "c")
    known = {1: problem(1), 2: problem(2, reference=None)}
    rows = built("demonstrated", rollouts, judged(rollouts, 1, 0, 0), known=known)
    by_group = {n: [(e.completion, e.reward, e.rollout_id) for e in rows if e.group_id == n] for n in (1, 2)}
    assert by_group == {1: [("a", 1.0, 100), ("b", 0.0, 101), ("10", None, None)], 2: [("c", 0.0, 200)]}


def test_a_worked_solution_may_stand_in_aux():
    rollouts = group(1, "a") + group(2, "b")
    known = {1: problem(1, aux='{"solution": "4+6=10"}'), 2: problem(2)}
    rows = built("demonstrated", rollouts, judged(rollouts, 0, 0), known=known, key="solution")
    assert [e.completion for e in rows if e.reward is None] == ["4+6=10"]
