"""Chain arithmetic: what it asks, what it accepts, and that nothing held out leaks."""

import dataclasses
import json
import random

import pytest
from pydantic import ValidationError

from strop.plugins.tasks._scratchpad import Chain, check_steps, draw, evaluate, parse, reduce_once, scratchpad
from strop.plugins.tasks.chain_arithmetic import ChainArithmetic, categories, chain_arithmetic, heldout_problems
from strop.storage.tables import Problem


@pytest.fixture(scope="module")
def task():
    return chain_arithmetic(ChainArithmetic(train=240), seed=7)


def test_reduction_takes_the_leftmost_product_then_the_leftmost_operator():
    chain = parse("3+4*2-1")
    assert chain == Chain((3, 4, 2, 1), "+*-")
    written = []
    while chain.operators:
        chain, _ = reduce_once(chain)
        written.append(str(chain))
    assert written == ["3+8-1", "11-1", "10"]


@pytest.mark.parametrize(
    ("text", "value"), [("3+4*2-1", 10), ("9-2-3", 4), ("2*3+4*5", 26), ("3-8+9", None), ("9*9+9+9+1", None), ("7", 7)]
)
def test_a_value_that_leaves_0_to_99_on_the_way_makes_a_chain_unusable(text, value):
    assert evaluate(parse(text)) == value


@pytest.mark.parametrize("text", ["", "3+", "3+-4", "a", "3 + 4", "³+4", "--3"])
def test_what_is_no_chain_is_not_parsed(text):
    assert parse(text) is None


@pytest.mark.parametrize(("family", "operators"), [("add", 1), ("add", 7), ("mul", 1), ("mul", 6)])
def test_drawn_chains_keep_the_rules_of_their_family(family, operators):
    rng = random.Random(0)
    for _ in range(200):
        chain = draw(rng, family, operators)
        assert len(chain.operators) == operators
        assert all(1 <= n <= 9 for n in chain.numbers)
        assert ("*" in chain.operators) == (family == "mul")
        assert "**" not in chain.operators
        factors = {j for i, o in enumerate(chain.operators) if o == "*" for j in (i, i + 1)}
        assert all(chain.numbers[j] >= 2 for j in factors)
        assert evaluate(chain) is not None
        expression = str(chain)
        assert evaluate(chain) == eval(expression)


def test_a_scratchpad_without_noise_is_right_at_every_step():
    assert scratchpad(parse("3+4*2-1")) == "3+8-1=11-1=10"
    assert scratchpad(parse("3+4")) == "7"


def test_noise_spoils_about_its_share_of_steps_by_1_2_or_10_and_is_carried_on():
    rng = random.Random(1)
    chain = parse("9+8+7+6")
    wrong = 0
    for _ in range(1000):
        steps = scratchpad(chain, rng, noise=0.1).split("=")
        first = int(steps[0].split("+")[0])
        assert first - 17 in (0, -10, -2, -1, 1, 2, 10)
        assert steps[1] in {f"{first + 7 + offset}+6" for offset in (0, -10, -2, -1, 1, 2, 10)}
        wrong += first != 17
    assert 70 <= wrong <= 130  # 100 expected, standard deviation 9.5


def test_the_process_check_finds_the_wrong_step_and_judges_the_next_by_it():
    assert [s.right for s in check_steps("3+4*2-1=", "3+8-1=11-1=10")] == [True, True, True]
    assert [(s.right, s.reason) for s in check_steps("3+4*2-1=", "3+8-1=12-1=11")] == [
        (True, None),
        (False, "expected 11-1"),
        (True, None),
    ]


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("10", [True]),
        ("11", [False]),
        ("11-1=10", [False, True]),  # skips a step
        ("3+8-1=11-1", [True, True, False]),  # stops early
        ("3+8-1=11-1=10=10", [True, True, True, False]),  # goes on
        ("3+8-1=?=10", [True, False, False]),
        ("", [False]),
    ],
)
def test_the_process_check_wants_every_step_and_no_other(completion, right):
    assert [s.right for s in check_steps("3+4*2-1=", completion)] == right


def test_there_are_twelve_categories_of_fifty_held_out_problems():
    config = ChainArithmetic()
    assert categories(config) == [f"{f}-{k}" for f in ("add", "mul") for k in range(2, 8)]
    heldout = heldout_problems(config)
    assert len(heldout) == 600
    assert {c: sum(p.category == c for p in heldout) for c in categories(config)} == dict.fromkeys(
        categories(config), 50
    )


def test_problems_state_prompt_reference_category_and_level(task):
    for problem in task.problems():
        chain = parse(problem.prompt.removesuffix("="))
        assert problem.reference == str(evaluate(chain))
        assert problem.level == len(chain.operators)
        assert problem.category == f"{'mul' if '*' in chain.operators else 'add'}-{len(chain.operators)}"


def test_held_out_problems_are_the_same_for_every_seed_and_training_ones_are_not(task):
    other = chain_arithmetic(ChainArithmetic(train=240), seed=8)
    prompts = {
        (name, split): [p.prompt for p in t.problems() if p.split == split]
        for name, t in (("a", task), ("b", other))
        for split in ("train", "heldout")
    }
    assert prompts["a", "heldout"] == prompts["b", "heldout"]
    assert prompts["a", "train"] != prompts["b", "train"]
    assert [p.prompt for p in task.problems()] == [p.prompt for p in task.problems()]


def test_a_larger_held_out_split_holds_the_smaller_one():
    small, large = ({p.prompt for p in heldout_problems(ChainArithmetic(heldout_per_category=n))} for n in (10, 20))
    assert len(small) == 120
    assert small < large


def test_no_prompt_is_in_both_splits_and_none_comes_twice(task):
    prompts = [p.prompt for p in task.problems()]
    assert len(prompts) == 240 + 600 == len(set(prompts))


def test_more_problems_are_new_ones_of_the_category(task):
    known = {p.prompt for p in task.problems()}
    made = task.more("mul-3", None, 40, 5)
    assert len({p.prompt for p in made} - known) == 40
    assert {(p.category, p.level, p.split) for p in made} == {("mul-3", 3.0, "train")}
    assert [p.prompt for p in made] == [p.prompt for p in task.more("mul-3", None, 40, 5)]
    assert [p.prompt for p in made] != [p.prompt for p in task.more("mul-3", None, 40, 6)]


def test_more_without_a_category_spreads_over_those_of_the_level(task):
    assert [p.category for p in task.more(None, 4.0, 5, 1)] == ["add-4"] * 3 + ["mul-4"] * 2
    assert len(task.more(None, None, 30, 1)) == 30


def test_a_category_that_is_used_up_gives_fewer():
    task = chain_arithmetic(ChainArithmetic(families=("mul",), min_operators=1, max_operators=1, train=500), seed=0)
    prompts = {p.prompt for p in task.problems()}
    assert len(prompts) <= 64  # factors 2..9 by 2..9
    assert len(prompts) + len(task.more("mul-1", None, 100, 3)) <= 64


def test_worked_solutions_are_right_at_every_step_and_change_nothing_else(task):
    worked = chain_arithmetic(ChainArithmetic(train=240, solutions=True), seed=7)
    plain, shown = task.problems(), worked.problems()
    assert [dataclasses.replace(p, aux=None) for p in shown] == plain
    trained = [p for p in [*shown, *worked.more("mul-3", None, 5, 1)] if p.split == "train"]
    assert len(trained) == 245
    for problem in trained:
        solution = json.loads(problem.aux)["solution"]
        assert task.score(problem, solution).verdict == "pass"
        assert all(step.right for step in check_steps(problem.prompt, solution))
        assert solution.count("=") == problem.level - 1
    assert {p.aux for p in shown if p.split == "heldout"} == {None}


def test_an_unknown_category_or_level_names_the_known_ones(task):
    with pytest.raises(ValueError, match="no category 'mull-3'; did you mean 'mul-3'"):
        task.more("mull-3", None, 1, 0)
    with pytest.raises(ValueError, match="of level 9"):
        task.more(None, 9.0, 1, 0)


@pytest.mark.parametrize(
    ("completion", "verdict", "answer"),
    [
        ("10", "pass", "10"),
        ("3+8-1=11-1=10", "pass", "10"),
        ("wrong=words= 10 ", "pass", "10"),
        ("3+8-1=11-1=11", "fail", "11"),
        ("10=", "fail", None),
        ("010", "fail", "010"),
        ("", "fail", None),
    ],
)
def test_the_answer_is_what_follows_the_last_equals_sign(task, completion, verdict, answer):
    score = task.score(Problem(prompt="3+4*2-1=", reference="10"), completion)
    assert (score.verdict, score.answer, score.value) == (verdict, answer, float(verdict == "pass"))
    assert (score.reason is None) == (verdict == "pass")


@pytest.mark.parametrize(
    "values", [{"min_operators": 5, "max_operators": 4}, {"families": ()}, {"families": ("add", "add")}, {"train": 0}]
)
def test_a_config_that_asks_for_nothing_is_refused(values):
    with pytest.raises(ValidationError):
        ChainArithmetic(**values)
