"""Sampling behind hints where all fails: who gets one, which, and what is left of it in a row."""

import dataclasses
import json

import pytest
from plugin_rows import problem, use
from pydantic import ValidationError
from test_generate_scripted import engine

from strop.core.seeds import derive
from strop.storage.tables import Context, Plan, Score

PROBLEMS = {
    1: problem(1, "easy", "4"),
    2: problem(2, "hard", "5", aux=json.dumps({"plan": "think of five"})),
    3: problem(3, "hopeless", "6"),
}
WORDS = engine(
    {"match": "easy$", "replies": ["4"]},
    {"match": "think of five", "replies": ["5"]},
    {"match": "is 5", "replies": ["five"]},
    {"match": "", "replies": ["no"]},
)
PLAN = [Plan(problem_id=3), Plan(problem_id=1, n=3), Plan(problem_id=2, params='{"temperature": 0.5}')]


def judge(rollouts):
    """Like the verifier `answer`, and silent about what it cannot read."""
    return [
        Score(subject_id=r.rollout_id, verdict="pass" if r.completion == PROBLEMS[r.problem_id].reference else "fail")
        for r in rollouts
    ]


def hinted(plan=PLAN, *, verifiers=None, made=WORDS, contexts=None, round=1, progress=lambda r, t: None, **config):
    return use("generate", "hinted", **{"n": 2, **config})(
        plan=plan,
        problems=PROBLEMS,
        contexts=contexts or {},
        engine=made,
        sample_seed=lambda p, i: derive(0, p.problem_key, i),
        verifiers={"answer": judge} if verifiers is None else verifiers,
        progress=progress,
        round=round,
    )


def about(rollouts, problem_id):
    return [(r.prompt, r.train_prompt, r.completion) for r in rollouts if r.problem_id == problem_id]


def test_only_what_fails_is_sampled_again_and_the_hint_is_not_in_what_is_learnt():
    seen = []
    rollouts = hinted(progress=lambda r, t: seen.append((r, t)), hints=["Plan: {plan}", "It is {answer}."])
    assert about(rollouts, 1) == [("easy", None, "4")] * 3
    assert about(rollouts, 2) == [("hard", None, "no")] * 2 + [("Plan: think of five\n\nhard", "hard", "5")]
    assert about(rollouts, 3) == [("hopeless", None, "no")] * 2 + [("It is 6.\n\nhopeless", "hopeless", "no")]
    assert [r.problem_id for r in rollouts] == [3] * 3 + [1] * 3 + [2] * 3
    assert [r.temperature for r in rollouts if r.problem_id == 2] == [0.5] * 3
    assert seen[-1] == (9, sum(r.n_tokens for r in rollouts))


def test_hints_come_in_their_order_and_end_with_the_first_that_helps():
    rollouts = hinted(hints=["It is {answer}.", "Plan: {plan}", "{answer}!"], tries=2)
    prompts = [r.prompt for r in rollouts if r.problem_id == 2]
    assert prompts == ["hard"] * 2 + ["It is 5.\n\nhard"] * 2 + ["Plan: think of five\n\nhard"] * 2
    hard = [r for r in rollouts if r.problem_id == 2]
    assert [r.sample_index for r in hard] == list(range(6))
    assert [r.seed for r in hard] == [derive(0, PROBLEMS[2].problem_key, i) for i in range(6)]
    prompts = [r.prompt for r in rollouts if r.problem_id == 3]  # it has no plan
    assert prompts == ["hopeless"] * 2 + ["It is 6.\n\nhopeless"] * 2 + ["6!\n\nhopeless"] * 2


def test_the_first_rounds_go_without():
    assert len(hinted(after=2, round=2)) == 7
    assert len(hinted(after=2, round=3)) == 9


def test_what_cannot_be_judged_has_not_failed():
    down = {"answer": lambda rollouts: [Score(subject_id=r.rollout_id, verdict="error") for r in rollouts]}
    assert len(hinted(verifiers=down)) == 7
    one_knows = {"answer": judge, "other": lambda rollouts: []}
    assert len(hinted(verifiers=one_knows)) == 9
    assert len(hinted(verifiers=one_knows, verifier="other")) == 7


def test_a_context_stays_in_front_of_the_hint_and_in_what_is_learnt():
    lesson = {5: Context(context_id=5, name="lesson", text="Count.")}
    rollouts = hinted([Plan(problem_id=2, context_id=5)], contexts=lesson, n=1)
    assert [(r.prompt, r.train_prompt) for r in rollouts] == [
        ("Count.\n\nhard", None),
        ("Count.\n\nThe answer is 5.\n\nhard", "Count.\n\nhard"),
    ]


def test_a_problem_without_an_answer_gets_no_hint_of_it():
    nameless = {2: dataclasses.replace(PROBLEMS[2], reference=None)}
    rollouts = use("generate", "hinted", n=1)(
        plan=[Plan(problem_id=2)],
        problems=nameless,
        contexts={},
        engine=WORDS,
        sample_seed=lambda p, i: i,
        verifiers={"answer": lambda rs: [Score(subject_id=r.rollout_id, verdict="fail") for r in rs]},
        progress=lambda r, t: None,
        round=1,
    )
    assert [r.prompt for r in rollouts] == ["hard"]


def test_what_it_cannot_do_is_said():
    with pytest.raises(ValueError, match="nothing says what did: put a `verify` behind it"):
        hinted(verifiers={})
    with pytest.raises(ValueError, match="no verify stage 'anser'; did you mean 'answer'"):
        hinted(verifier="anser")
    for hint, what in (("{", "is no template"), ("{0}", "has a name that is none"), ("{a.b}", "a name that is none")):
        with pytest.raises(ValidationError, match=what):
            hinted(hints=[hint])
