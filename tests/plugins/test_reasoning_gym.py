"""Reasoning Gym's data sets as tasks: disjoint splits, their own scores, and no model text evaluated unseen."""

import dataclasses

import pytest
from plugin_rows import use

from strop.core.registry import find
from strop.plugins.tasks._harmless import harmless


def gym(dataset="chain_sum", seed=1, **config):
    plugin = find("task", "reasoning_gym")
    return plugin.call(plugin.configure({"dataset": dataset, "train": 20, "heldout": 10, **config}), {"seed": seed})


def test_splits_are_disjoint_and_the_held_out_one_is_the_same_for_every_seed():
    first, second = (gym(seed=s).problems() for s in (1, 2))
    parts = [[p.prompt for p in ps if p.split == s] for ps in (first, second) for s in ("train", "heldout")]
    assert [len(set(p)) for p in parts] == [20, 10, 20, 10]
    assert not set(parts[0]) & set(parts[1])
    assert parts[1] == parts[3]
    assert parts[0] != parts[2]


def test_a_small_data_set_gives_what_it_has():
    problems = gym("chain_sum", config={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}, train=400)
    prompts = [p.prompt for p in problems.problems()]
    assert len(set(prompts)) == len(prompts) < 410


@pytest.mark.parametrize("name", ["chain_sum", "spell_backward", "countdown", "leg_counting"])
def test_references_pass_and_nonsense_does_not(name):
    task = gym(name, threshold=1.0)
    for problem in task.problems()[:5]:
        right = task.score(problem, f"Well...\n<answer>{problem.reference}</answer>")
        assert (right.verdict, right.value) == ("pass", 1.0)
        wrong = task.score(problem, "<answer>-1</answer>")
        assert (wrong.verdict, wrong.value < 0.99) == ("fail", True)
        assert task.score(problem, str(problem.reference)).reason == "no answer found (extract: answer_tag)"


def test_partial_scores_are_kept_and_the_threshold_decides():
    task, lenient = gym("spell_backward"), gym("spell_backward", threshold=0.01)
    problem = task.problems()[0]
    completion = f"<answer>{problem.reference} or so</answer>"
    value = task.score(problem, completion).value
    assert 0 < value < 1
    assert [t.score(problem, completion).verdict for t in (task, lenient)] == ["fail", "pass"]


def test_an_answer_the_scorer_cannot_read_fails():
    """prime_factorization hands every part of the answer to int()."""
    task = gym("prime_factorization")
    score = task.score(task.problems()[0], "<answer>two x three</answer>")
    assert (score.verdict, score.value) == ("fail", 0.0)
    assert "cannot read it: ValueError" in score.reason


def test_bare_answers_are_read_where_the_recipe_says_so():
    task = gym(extract="whole", instruction="")
    problem = task.problems()[0]
    assert problem.prompt.endswith("=")
    assert task.score(problem, f" {problem.reference}\n").verdict == "pass"


def test_more_gives_new_problems_of_the_level_asked_for():
    task = gym("spell_backward")
    problem = task.problems()[0]
    assert problem.category == "spell_backward"
    assert 3 <= problem.level <= 10
    made = task.more("spell_backward", problem.level, 5, 7)
    assert len({p.prompt for p in made} - {p.prompt for p in task.problems()}) == 5
    assert {p.level for p in made} == {problem.level}
    assert made == gym("spell_backward").more("spell_backward", problem.level, 5, 7)
    assert made != task.more("spell_backward", problem.level, 5, 8)
    right = task.score(made[0], f"<answer>{made[0].reference}</answer>")
    assert right.verdict == "pass"
    with pytest.raises(ValueError, match="one category 'spell_backward'"):
        task.more("countdown", None, 1, 0)


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'chain_sum'"):
        gym("chain_sums")
    with pytest.raises(ValueError, match="no setting 'max_term'; did you mean 'max_terms'"):
        gym(config={"max_term": 3})
    with pytest.raises(ValueError, match="refuses"):
        gym(config={"min_terms": 5, "max_terms": 2})


def test_a_problem_another_version_made_is_not_scored():
    task = gym()
    stale = dataclasses.replace(task.problems()[0], prompt="2+2=")
    with pytest.raises(ValueError, match="its version"):
        task.score(stale, "<answer>4</answer>")


def test_an_answer_that_is_code_is_not_evaluated(tmp_path):
    """countdown hands the answer to sympy's parse_expr, n_queens to eval: both run what they are given."""
    for name in ("countdown", "n_queens"):
        task = gym(name, train=1, heldout=1)
        attack = f"open({str(tmp_path / 'ran')!r}, 'w')"
        score = task.score(task.problems()[0], f"<answer>{attack}</answer>")
        assert (score.verdict, score.reason) == ("fail", "more than values and arithmetic: not scored")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "text",
    ["3", "67 + 50*2 - 82/2", "x**2/2 + sin(x) - 3*exp(x)", "[1, 2]", "['A', 'B']", "_ Q _\nQ _ _", "1 2 3", "-x**-2"],
)
def test_values_and_arithmetic_are_harmless(text):
    assert harmless(text)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "open('x')",
        "3! + open('x')",
        "(lambda: 1)()",
        "[open for x in (1,)]",
        "x.__class__",
        "9**9**9",
        "9**999",
        "(9**9)**9",
        "'a'*9",
        "[0]*9",
        "exp(exp(9))",
        "f'{open}'",
        "(" * 5000,
        "1+" * 3000 + "1",
    ],
)
def test_code_and_costly_arithmetic_are_not(text):
    assert not harmless(text)


def test_own_verifies_a_gym_problem_end_to_end():
    from plugin_rows import group

    task = gym()
    problem = dataclasses.replace(task.problems()[0], problem_id=1, task="gym")
    rollouts = group(1, f"<answer>{problem.reference}</answer>", "<answer>no</answer>")
    scores = use("verify", "own")(rollouts=rollouts, problems={1: problem}, tasks={"gym": task})
    assert [s.verdict for s in scores] == ["pass", "fail"]
