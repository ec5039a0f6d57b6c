"""Select, filter and build: which problems are sampled, and which completions are learnt from."""

import random
from dataclasses import replace

import pytest
from plugin_rows import dropped, group, judged, problem, use

from strop.storage.tables import Decision, Problem


def problems(count: int, **fields) -> list[Problem]:
    return [problem(i + 1, **fields) for i in range(count)]


# select: uniform


def test_uniform_takes_as_many_as_asked_each_once():
    plan = use("select", "uniform", problems=4)(problems=problems(9), seed=1, round=1)
    assert len({row.problem_id for row in plan}) == len(plan) == 4


def test_uniform_takes_all_of_fewer():
    plan = use("select", "uniform", problems=40)(problems=problems(3), seed=1, round=1)
    assert sorted(row.problem_id for row in plan) == [1, 2, 3]


def test_uniform_keeps_a_share_for_the_problems_of_the_previous_round():
    new = [problem(100 + i, origin="weakness", round=1) for i in range(10)]
    old = [problem(200 + i, origin="weakness", round=0) for i in range(10)]
    select = use("select", "uniform", problems=8, new_share=0.5)
    plan = select(problems=[*problems(50), *new, *old], seed=1, round=2)
    assert sum(row.reason == "new" for row in plan) == 4
    assert {row.problem_id for row in plan if row.reason == "new"} <= {p.problem_id for p in new}
    plan = select(problems=[*problems(50), *new[:1]], seed=1, round=2)
    assert [row.problem_id for row in plan if row.reason == "new"] == [100]
    assert len(plan) == 8


def test_uniform_is_uniform():
    counts = dict.fromkeys(range(1, 6), 0)
    select = use("select", "uniform", problems=2)
    for seed in range(400):
        for row in select(problems=problems(5), seed=seed, round=1):
            counts[row.problem_id] += 1
    assert all(120 <= n <= 200 for n in counts.values())  # 160 expected, standard deviation 9.8


def test_uniform_draws_the_same_problems_under_other_ids():
    first = problems(20)
    second = [replace(p, problem_id=1000 - p.problem_id) for p in first]
    select = use("select", "uniform", problems=5)
    chosen = [{row.problem_id for row in select(problems=ps, seed=3, round=1)} for ps in (first, second)]
    assert {1000 - i for i in chosen[1]} == chosen[0]


# filter: correct


def test_correct_keeps_what_passes_and_says_why_the_rest_goes():
    rollouts = group(1, "a", "b", "c", "d")
    decisions = use("filter", "correct")(rollouts=rollouts, scores=judged(rollouts, 1, 0, "error", None))
    assert [(d.subject_id, d.keep) for d in decisions] == [(100, True), (101, False), (102, False), (103, False)]
    assert [d.reason for d in decisions] == ["correct", "wrong: answer", "could not be judged: down", "not judged"]


def test_correct_goes_by_all_scorers_or_by_the_one_named():
    rollouts = group(1, "a")
    scores = judged(rollouts, 1) + judged(rollouts, 0, scorer="math")
    assert not use("filter", "correct")(rollouts=rollouts, scores=scores)[0].keep
    assert use("filter", "correct", scorer="answer")(rollouts=rollouts, scores=scores)[0].keep
    with pytest.raises(ValueError, match="did you mean 'math'"):
        use("filter", "correct", scorer="maths")(rollouts=rollouts, scores=scores)


def test_correct_drops_truncated_completions_unless_told_to_keep_them():
    rollouts = group(1, "a", finish_reason="length")
    (decision,) = use("filter", "correct")(rollouts=rollouts, scores=judged(rollouts, 1))
    assert (decision.keep, decision.reason) == (False, "truncated")
    assert use("filter", "correct", truncated="keep")(rollouts=rollouts, scores=judged(rollouts, 1))[0].keep


# build: rft


def rft(rollouts, scores, decisions=(), seed=0, **config):
    known = {r.problem_id: problem(r.problem_id) for r in rollouts}
    return use("build", "rft", **config)(
        rollouts=rollouts, scores=scores, decisions=list(decisions), problems=known, seed=seed
    )


def test_rft_takes_each_correct_text_once():
    rollouts = group(1, "a", "b", "a", "c", "d")
    examples = rft(rollouts, judged(rollouts, 1, 1, 1, 0, "error"))
    assert [(e.kind, e.completion, e.rollout_id, e.prompt) for e in examples] == [
        ("sft", "a", 100, "p1="),
        ("sft", "b", 101, "p1="),
    ]


def test_rft_takes_no_more_than_asked_and_the_seed_decides_which():
    rollouts = group(1, *"abcdefgh")
    scores = judged(rollouts, *[1] * 8)
    chosen = [tuple(e.completion for e in rft(rollouts, scores, seed=s, per_problem=3)) for s in range(20)]
    assert {len(set(c)) for c in chosen} == {3}
    assert len(set(chosen)) > 5
    assert {text for c in chosen for text in c} == set("abcdefgh")


def test_rft_obeys_every_filter_and_multiplies_their_weights():
    rollouts = group(1, "a", "b")
    weighed = [Decision(subject_id=100, keep=True, weight=w) for w in (0.5, 0.5)]
    examples = rft(rollouts, judged(rollouts, 1, 1), [*weighed, *dropped(101)])
    assert [(e.completion, e.weight) for e in examples] == [("a", 0.25)]


def test_rft_goes_by_the_filter_where_it_overrules_a_verifier():
    rollouts = group(1, "a", "b", "c")
    scores = judged(rollouts, 1, 1, 0) + judged(rollouts, 0, 1, 0, scorer="math")
    kept = [Decision(subject_id=r.rollout_id, keep=r.rollout_id == 100) for r in rollouts]
    assert [e.completion for e in rft(rollouts, scores, kept)] == ["a"]
    assert [e.completion for e in rft(rollouts, scores)] == ["b"]


def test_rft_never_learns_from_a_completion_that_failed_to_come():
    rollouts = group(1, "partial", finish_reason="error", error="gone")
    assert rft(rollouts, [], [Decision(subject_id=100, keep=True)]) == []


def test_rft_trains_on_the_training_prompt_where_there_is_one():
    rollouts = group(1, "a", train_prompt="without the hint")
    assert rft(rollouts, judged(rollouts, 1))[0].prompt == "without the hint"


def test_rft_without_any_verdict_says_what_is_missing():
    with pytest.raises(ValueError, match="put a `verify` before it"):
        rft(group(1, "a"), [])


# build: best_worst


def pairs(rollouts, scores, decisions=(), **config):
    known = {r.problem_id: problem(r.problem_id) for r in rollouts}
    made = use("build", "best_worst", **config)(
        rollouts=rollouts, scores=scores, decisions=list(decisions), problems=known
    )
    return [(e.chosen, e.rejected, e.margin) for e in made]


def test_best_worst_of_one_one_zero_is_one_pair():
    """stages.md 6: scores 1,1,0 give one best/worst pair (and two of all pairs)."""
    rollouts = group(1, "a", "b", "c")
    assert pairs(rollouts, judged(rollouts, 1, 1, 0)) == [("a", "c", 1.0)]


def test_best_worst_names_both_rollouts():
    rollouts = group(1, "a", "b")
    (example,) = use("build", "best_worst")(
        rollouts=rollouts, scores=judged(rollouts, 0.2, 0.9), decisions=[], problems={1: problem(1)}
    )
    assert (example.kind, example.rollout_id, example.rejected_rollout_id) == ("pair", 101, 100)
    assert example.margin == pytest.approx(0.7)


def test_groups_without_contrast_give_no_pair():
    rollouts = group(1, "a", "b") + group(2, "c") + group(3, "d", "d")
    assert pairs(rollouts, judged(rollouts, 1, 1, 1, 1, 0)) == []


def test_errors_are_never_used_though_they_would_be_lowest():
    rollouts = group(1, "a", "b", "c")
    assert pairs(rollouts, judged(rollouts, 1, 0.5, "error")) == [("a", "b", 0.5)]


def test_several_pairs_of_a_group_use_different_texts_until_the_contrast_ends():
    rollouts = group(1, *"abcde")
    scores = judged(rollouts, 1, 0.9, 0.5, 0.1, 0)
    assert pairs(rollouts, scores, per_problem=5) == [("a", "e", 1.0), ("b", "d", 0.8)]
    assert pairs(rollouts, scores, per_problem=5, min_margin=0.9) == [("a", "e", 1.0)]


def test_what_a_filter_dropped_is_rejected_and_never_chosen():
    rollouts = group(1, "a", "b", "c")
    assert pairs(rollouts, judged(rollouts, 1, 0.8, 0), dropped(100, 102)) == [("b", "c", 0.8)]


def test_best_worst_ranks_by_the_scorer_named():
    rollouts = group(1, "a", "b")
    scores = judged(rollouts, 1, 0) + judged(rollouts, 0.1, 0.2, scorer="judge")
    assert pairs(rollouts, scores, scorer="judge") == [("b", "a", 0.1)]


def test_builders_do_not_depend_on_the_order_of_rows():
    rollouts = [r for i in range(1, 6) for r in group(i, *"abcd")]
    scores = judged(rollouts, *[1, 0, 1, 0.5] * 5)
    mixed, mixed_scores = rollouts[:], scores[:]
    random.Random(1).shuffle(mixed)
    random.Random(2).shuffle(mixed_scores)
    assert rft(rollouts, scores) == rft(mixed, mixed_scores)
    assert pairs(rollouts, scores, per_problem=2) == pairs(mixed, mixed_scores, per_problem=2)


# build: grouped


def grouped(rollouts, scores, decisions=(), **config):
    known = {r.problem_id: problem(r.problem_id) for r in rollouts}
    return use("build", "grouped", **config)(
        rollouts=rollouts, scores=scores, decisions=list(decisions), problems=known
    )


def test_grouped_takes_every_scored_completion_with_its_reward():
    rollouts = group(1, "a", "b", "b", "c", "d") + group(2, "e")
    scores = judged(rollouts, 1, 0, 0.5, "error", None, 1)
    found = grouped(rollouts, scores)
    assert {(e.kind, e.completion, e.rollout_id, e.group_id, e.reward) for e in found} == {
        ("group", "a", 100, 1, 1.0),
        ("group", "b", 101, 1, 0.0),
        ("group", "b", 102, 1, 0.5),
        ("group", "e", 200, 2, 1.0),
    }


def test_grouped_leaves_out_what_a_filter_dropped_and_what_failed_to_come():
    rollouts = group(1, "a", "b", "c") + group(2, "d", finish_reason="error")
    found = grouped(rollouts, judged(rollouts, 1, 0, 0, 0), dropped(101))
    assert [e.rollout_id for e in found] == [100, 102]


def test_grouped_can_leave_out_groups_without_contrast_or_too_small():
    rollouts = group(1, "a", "b") + group(2, "c", "d") + group(3, "e")
    scores = judged(rollouts, 1, 0, 1, 1, 0)
    assert {e.group_id for e in grouped(rollouts, scores, contrast=True)} == {1}
    assert {e.group_id for e in grouped(rollouts, scores, least=2)} == {1, 2}


def test_grouped_without_any_score_says_what_is_missing():
    with pytest.raises(ValueError, match="put a `verify` before it"):
        grouped(group(1, "a"), [])


def test_grouped_rewards_by_the_scorer_named_and_trains_on_the_training_prompt():
    rollouts = group(1, "a", train_prompt="without the hint", loss_spans=[0, 1])
    scores = judged(rollouts, 1) + judged(rollouts, 0.25, scorer="judge")
    (found,) = grouped(rollouts, scores, scorer="judge")
    assert (found.reward, found.prompt, found.loss_spans) == (0.25, "without the hint", [0, 1])


def test_grouped_makes_one_stratum_of_equal_answers():
    rollouts = group(1, "a", "b", "c", "d", "e") + group(2, "f", "g")
    answers = ("7", " 7", None, "8", "", "7", "7")
    scores = [replace(s, answer=a) for s, a in zip(judged(rollouts, 1, 1, 0, 0, 0, 1, 1), answers, strict=True)]
    assert [e.stratum for e in grouped(rollouts, scores, stratum="answer")] == [0, 0, 1, 2, 1, 0, 0]
    assert [e.stratum for e in grouped(rollouts, scores)] == [None] * 7


def test_grouped_takes_the_answers_of_the_scorer_named():
    rollouts = group(1, "a", "b")
    found = [
        replace(s, answer=a)
        for scorer, answers in (("answer", "xx"), ("judge", "xy"))
        for s, a in zip(judged(rollouts, 1, 0, scorer=scorer), answers, strict=True)
    ]
    assert [e.stratum for e in grouped(rollouts, found, stratum="answer", scorer="judge")] == [0, 1]
    assert [e.stratum for e in grouped(rollouts, found, stratum="answer")] == [0, 0]


def test_grouped_makes_one_stratum_of_equal_numbers_of_turns():
    rollouts = [
        replace(r, turn_offsets=offsets)
        for r, offsets in zip(group(1, "aaaa", "bbbb", "cccc"), ([0, 2], [0], [0, 3]), strict=True)
    ]
    assert [e.stratum for e in grouped(rollouts, judged(rollouts, 1, 0, 0), stratum="turns")] == [0, 1, 0]


@pytest.mark.parametrize(("stratum", "what"), [("answer", "no score has one"), ("turns", "no rollout has any")])
def test_grouped_without_what_strata_go_by_says_so(stratum, what):
    rollouts = group(1, "a")
    with pytest.raises(ValueError, match=what):
        grouped(rollouts, judged(rollouts, 1), stratum=stratum)


def test_grouped_weighs_hard_prompts_more():
    rollouts = group(1, *"abcd") + group(2, *"abcd") + group(3, "a")
    scores = judged(rollouts, 1, 0, 0, 0, 1, 1, 1, 0, 0)

    def weights(**config):
        return {e.group_id: e.weight for e in grouped(rollouts, scores, **config)}

    assert weights() == dict.fromkeys((1, 2, 3))
    assert weights(difficulty="linear") == pytest.approx({1: 0.75, 2: 0.25, 3: 0.98})
    assert weights(difficulty="root") == pytest.approx({1: 3**0.5, 2: 3**-0.5, 3: 7.0})
    assert weights(difficulty="bands") == pytest.approx({1: 2 / 3, 2: 1 / 3, 3: 1.0})
    rollouts, scores = group(4, *"abcde"), judged(group(4, *"abcde"), 1, 1, 1, 1, 0)
    assert weights(difficulty="bands") == {}, "solved too often"
    with pytest.raises(ValueError, match=r"got 1\.5"):
        grouped(group(1, "a"), judged(group(1, "a"), 1.5), difficulty="root")
