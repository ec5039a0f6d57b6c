"""What happens to a plugin's rows between its return and the lake."""

import dataclasses

import pytest

from strop.core import finish as module
from strop.core.finish import Stamp, finish
from strop.core.plugin import STAGES, Config, stage
from strop.core.problems import content_key, problem_key
from strop.core.registry import Plugin
from strop.core.subjects import Given
from strop.storage.errors import PluginError, StageError
from strop.storage.tables import Context, Decision, Example, Plan, Problem, Rollout, Score

RUN = 7
FIRST = RUN << 20


class Nothing(Config):
    """Nothing to set."""


def plugin(kind, *handles):
    source = f"def it(config: Nothing{', *, ' + ', '.join(handles) if handles else ''}): ..."
    space = {"Nothing": Nothing}
    exec(source, space)
    return Plugin(kind, "it", stage(kind)(space["it"]), "built-in")


def done(kind, rows, *handles, **given):
    where = Stamp("run", 1, RUN, "label", policy_id=3, given=Given(**given))
    return finish(rows, where, allowed=STAGES[kind].returns, plugin=plugin(kind, *handles))


def problem(prompt, **more):
    return Problem(prompt=prompt, reference="1", **more)


def test_a_problem_made_by_replacing_parts_of_another_gets_an_id_and_a_key_of_its_own():
    parent = problem("1=", problem_id=99, problem_key="old", task="ones")
    made = dataclasses.replace(parent, prompt="2=", parents=[99])
    [row] = done("synthesize", [made], problems={99: "ones"}, tasks=("ones",))["problems"]
    assert row.problem_id == FIRST
    assert row.problem_key == problem_key(made) != "old"
    assert (row.origin, row.task, row.round) == ("label", "ones", 1)


def test_no_row_keeps_an_id_that_its_plugin_gave_it():
    for kind, row in (
        ("select", Plan(problem_id=1, plan_id=99)),
        ("filter", Decision(subject_id=1, keep=True, decision_id=99)),
        ("verify", Score(subject_id=1, score_id=99)),
        ("memory", Context(name="a", text="b", context_id=99)),
        ("build", Example(kind="sft", prompt="p", completion="c", example_id=99)),
    ):
        [made] = done(kind, [row])[row.TABLE]
        assert getattr(made, row.ID) == FIRST, kind


def test_a_context_carries_the_label_of_its_memory_stage():
    [row] = done("memory", [Context(name="a", text="b")])["contexts"]
    assert row.memory == "label"


def test_scores_of_rollouts_steps_and_tokens_name_the_rollouts_returned_with_them():
    rows = [
        Score(subject_id=-2, verdict="pass", value=1.0),
        Rollout(problem_id=1, completion="a"),
        Score(subject_kind="step", subject_id=-1, step_index=0, value=0.5),
        Rollout(problem_id=2, completion="b", parent_rollout_id=-1),
        Score(subject_kind="token", subject_id=-2, step_index=3, value=0.5),
    ]
    found = done("generate", rows, problems={1: "t", 2: "t"})
    assert [r.rollout_id for r in found["rollouts"]] == [FIRST, FIRST + 1]
    assert found["rollouts"][1].parent_rollout_id == FIRST
    assert [(s.subject_id, s.problem_id) for s in found["scores"]] == [(FIRST + 1, 2), (FIRST, 1), (FIRST + 1, 2)]
    ids = [r.rollout_id for r in found["rollouts"]] + [s.score_id for s in found["scores"]]
    assert ids == [FIRST + i for i in range(5)]


def test_a_verifiers_score_carries_the_problem_of_its_rollout():
    rows = [Score(subject_id=5, value=1.0), Score(subject_kind="problem", subject_id=8, value=1.0)]
    found = done("verify", rows, "rollouts", rollouts={5: 8}, problems={8: "t"})["scores"]
    assert [s.problem_id for s in found] == [8, 8]


@pytest.mark.parametrize(
    ("kind", "row", "says"),
    [
        ("select", Plan(problem_id=4), r"Plan for problem 4, which it was not handed"),
        ("generate", Rollout(problem_id=4, completion=""), r"Rollout for problem 4"),
        ("verify", Score(subject_id=6), r"Score for rollout 6"),
        ("verify", Score(subject_kind="step", subject_id=6), r"Score for rollout 6"),
        ("verify", Score(subject_kind="problem", subject_id=4), r"Score for problem 4"),
        ("filter", Decision(subject_id=6, keep=True), r"Decision for rollout 6"),
        ("build", Example(kind="sft", prompt="", completion="", rollout_id=6), r"Example for rollout 6"),
        ("build", Example(kind="pair", prompt="", rollout_id=5, rejected_rollout_id=6), r"Example for rollout 6"),
        ("build", Example(kind="sft", prompt="", completion="", problem_id=4), r"Example for problem 4"),
        ("synthesize", problem("2=", parents=[1, 4]), r"Problem for problem 4"),
        ("generate", Decision(subject_id=5, keep=True), r"Decision; it may return Rollout and Score"),
    ],
)
def test_a_row_about_what_the_plugin_was_not_handed_is_refused(kind, row, says):
    with pytest.raises(PluginError, match=rf"{kind} plugin 'it' returned an? {says}"):
        done(kind, [row], problems={1: "t"}, rollouts={5: 1}, tasks=("t",))


def test_what_a_plugin_did_not_ask_for_is_not_checked():
    assert done("filter", [Decision(subject_id=6, keep=True)])["decisions"]


def test_a_builder_with_state_may_bring_back_rollouts_of_earlier_rounds():
    old = Example(kind="sft", prompt="", completion="", rollout_id=6)
    assert done("build", [old], "rollouts", "state", rollouts={5: 1})["examples"][0].rollout_id == 6


def test_a_reference_beyond_the_rollouts_returned_is_refused():
    rows = [Rollout(problem_id=1, completion="a"), Score(subject_id=-2, value=1.0)]
    with pytest.raises(PluginError, match="refers to rollout -2, and returned 1: -1 is the first"):
        done("generate", rows)


def test_a_problem_is_ordered_once_in_each_context():
    twice = [Plan(problem_id=1), Plan(problem_id=1, context_id=9), Plan(problem_id=1, params="{}")]
    assert len(done("select", twice)["plans"]) == 3
    with pytest.raises(PluginError, match="orders problem 1 twice; write one row with a larger `n`"):
        done("select", [*twice, Plan(problem_id=1, n=3)])


def test_a_synthesized_problem_that_is_there_already_is_stored_as_rejected():
    heldout = problem("1=", task="other", split="heldout")
    rows = [problem("1="), problem("2="), problem("2="), problem("3=", status="rejected")]
    found = done("synthesize", rows, tasks=("ones",), pool=frozenset({content_key(heldout)}))["problems"]
    assert [(p.prompt, p.status) for p in found] == [
        ("1=", "rejected"),
        ("2=", "active"),
        ("2=", "rejected"),
        ("3=", "rejected"),
    ]


def test_a_synthesized_problem_never_joins_the_held_out_ones():
    with pytest.raises(PluginError, match="returned a problem of the split 'heldout'; keep 'train'"):
        done("synthesize", [problem("1=", split="heldout")], tasks=("ones",))


def test_a_synthesized_problem_belongs_to_a_task_its_own_its_parents_or_the_only_one():
    parents = {1: "a", 2: "a", 3: "b"}
    rows = [problem("1=", task="b", parents=[1]), problem("2=", parents=[1, 2])]
    found = done("synthesize", rows, problems=parents, tasks=("a", "b"))["problems"]
    assert [p.task for p in found] == ["b", "a"]
    assert done("synthesize", [problem("3=")], tasks=("a",))["problems"][0].task == "a"
    with pytest.raises(PluginError, match="problem of task ''; set `task` to one the recipe has; there is: a, b"):
        done("synthesize", [problem("4=", parents=[1, 3])], problems=parents, tasks=("a", "b"))
    with pytest.raises(PluginError, match=r"problem of task 'aa'.*did you mean"):
        done("synthesize", [problem("5=", task="aa")], tasks=("aa1", "b"))


def test_a_task_knows_two_splits():
    rows = [problem("1=", split="test")]
    with pytest.raises(PluginError, match="the split of a problem is 'train' or 'heldout', got 'test': '1='"):
        finish(rows, Stamp("run", 0, RUN, "t"), allowed=(Problem,), plugin=plugin("task"))


def test_more_rows_than_a_shard_can_number_are_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(module, "ROWS_PER_SHARD", 2)
    with pytest.raises(StageError, match="returned 3 rows at once, and 2 can be numbered: take fewer problems"):
        done("filter", [Decision(subject_id=i, keep=True) for i in range(3)])
