"""Verifiers: golden cases with their origins, and what becomes of completions and references that are not there."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from plugin_rows import group, problem, use
from pydantic import ValidationError

from strop.core.execute import PluginRef, verify
from strop.core.plugin import Task
from strop.core.registry import find
from strop.storage.errors import PluginError
from strop.storage.tables import Score

HERE = Path(__file__).parent
ANSWER = json.loads((HERE / "answer_cases.json").read_text())
MATH = json.loads((HERE / "math_cases.json").read_text())


@pytest.mark.parametrize("case", ANSWER, ids=[c["id"] for c in ANSWER])
def test_answer_finds_and_compares_the_answer(case):
    (score,) = use("verify", "answer", **case.get("config", {}))(
        rollouts=group(1, case["completion"]), problems={1: problem(1, reference=case["reference"])}
    )
    assert (score.verdict, score.answer) == (case["verdict"], case["answer"])
    assert score.value == (1.0 if case["verdict"] == "pass" else 0.0)
    assert (score.reason is None) == (case["verdict"] == "pass")


def test_all_math_cases_in_one_call():
    rollouts = [r for i, case in enumerate(MATH) for r in group(i + 1, case["completion"])]
    problems = {i + 1: problem(i + 1, reference=case["reference"]) for i, case in enumerate(MATH)}
    scores = use("verify", "math")(rollouts=rollouts, problems=problems)
    assert {c["id"]: s.verdict for c, s in zip(MATH, scores, strict=True)} == {c["id"]: c["verdict"] for c in MATH}


def test_math_gives_an_error_and_not_a_zero_when_an_item_takes_too_long_and_goes_on():
    """`10^{10^{10}}` is computed inside C code, where neither Math-Verify's own time-out nor a signal handler runs."""
    handles = {"rollouts": group(1, "$10^{10^{10}}$", "3", "3"), "problems": {1: problem(1, reference="3")}}
    slow, *quick = verify(PluginRef("verify", "math", HERE, {"timeout_s": 0.5}, "math"), handles, [], 0)
    assert (slow.verdict, slow.value, slow.reason) == ("error", None, "timed out after 0.5 s of processor time")
    assert [s.verdict for s in quick] == ["pass", "pass"]


@pytest.mark.parametrize("name", ["answer", "math", "own"])
def test_a_completion_that_never_came_is_an_error(name):
    rollouts = group(1, "10", finish_reason="error", error="server gone")
    (score,) = use("verify", name)(rollouts=rollouts, problems={1: problem(1)}, tasks={"t": always("pass")})
    assert (score.verdict, score.value) == ("error", None)
    assert "server gone" in score.reason


@pytest.mark.parametrize("name", ["answer", "math", "own"])
def test_a_completion_cut_off_fails_unless_allowed(name):
    handles = {
        "rollouts": group(1, "10", finish_reason="length"),
        "problems": {1: problem(1)},
        "tasks": {"t": always("pass")},
    }
    (score,) = use("verify", name)(**handles)
    assert (score.verdict, score.value, score.reason) == ("fail", 0.0, "cut off before it ended")
    (score,) = use("verify", name, allow_truncated=True)(**handles)
    assert score.verdict == "pass"


@pytest.mark.parametrize("name", ["answer", "math"])
def test_a_problem_without_reference_is_an_error(name):
    (score,) = use("verify", name)(rollouts=group(1, "10"), problems={1: problem(1, reference=None)})
    assert (score.verdict, score.value) == ("error", None)
    assert "no reference" in score.reason


@pytest.mark.parametrize(
    ("how", "says"),
    [("boxd", "did you mean 'boxed'"), ("a(b)(c)", "exactly one group"), ("(", "not a regular expression")],
)
def test_a_wrong_way_to_extract_is_refused_before_the_run(how, says):
    with pytest.raises(ValidationError, match=says):
        find("verify", "answer").configure({"extract": how})


def always(verdict: str) -> Task:
    return Task(
        problems=list, score=lambda p, c: Score(subject_id=0, verdict=verdict, value=float(verdict == "pass"), answer=c)
    )


def test_own_asks_the_task_of_each_problem():
    rollouts = group(1, "a") + group(2, "b")
    problems = {1: problem(1, task="yes"), 2: problem(2, task="no")}
    scores = use("verify", "own")(
        rollouts=rollouts, problems=problems, tasks={"yes": always("pass"), "no": always("fail")}
    )
    assert [(s.subject_id, s.problem_id, s.verdict, s.answer) for s in scores] == [
        (100, 1, "pass", "a"),
        (200, 2, "fail", "b"),
    ]


def test_own_names_the_verifier_to_use_where_a_task_has_no_scorer():
    with pytest.raises(PluginError, match="verify: answer"):
        use("verify", "own")(rollouts=group(1, "a"), problems={1: problem(1)}, tasks={"t": Task(problems=list)})


def test_own_refuses_a_scorer_that_returns_no_score():
    task = replace(always("pass"), score=lambda p, c: True)
    with pytest.raises(PluginError, match="must return a Score, it returned True"):
        use("verify", "own")(rollouts=group(1, "a"), problems={1: problem(1)}, tasks={"t": task})
