"""What a run keeps, hands on and goes on with; every loop here takes about a second."""

import pytest
from lake_content import content

from strop.core.gating import policy_called
from strop.storage.errors import PluginError, StageError
from strop.storage.lake import open_lake
from strop.storage.tables import Decision, Policy, Rollout, Score


class Died(BaseException):
    """Like a signal: nothing catches it."""


LIGHT = {"build": None, "train": None, "evaluate": None, "gate": None}
"""Kinds that a test of sampling and judging does without."""


def rows(folder, row, where="true"):
    with open_lake(folder / "lake", read_only=True) as lake:
        return lake.rows(row, where)


def died_at(kind, stage, round):
    """A listener that ends the run when that happens."""

    def listen(event):
        if (event.kind, event.stage, event.round) == (kind, stage, round):
            raise Died

    return listen


def test_a_run_that_dies_after_every_commit_ends_as_one_that_never_did(tiny, tmp_path):
    recipe = tiny.write(tmp_path, tiny.stages(**LIGHT), rounds=1)
    tiny.run(recipe, tmp_path / "whole")

    def die(event):
        if event.kind == "stage_done":
            raise Died

    deaths = 0
    while True:
        try:
            summary = tiny.run(recipe, tmp_path / "torn", on_event=die)
            break
        except Died:
            deaths += 1
    assert deaths == 2 + len(recipe.round)  # the task, the base, and the round
    assert summary.rounds == 1
    assert content(tmp_path / "torn" / "lake") == content(tmp_path / "whole" / "lake")


def test_a_shard_that_is_committed_is_not_sampled_again(tiny, tmp_path):
    recipe = tiny.write(tmp_path, tiny.stages(train=None, gate=None, evaluate=None, build=None), rounds=1)
    told = []

    def die(event):
        if event.kind == "progress" and event.stage == "generate":
            told.append(event.done)
            if told == [4, 8, 12, 16]:  # three problems make the first of two shards: this is in the second
                raise Died

    with pytest.raises(Died):
        tiny.run(recipe, tmp_path, on_event=die)
    first = {r.rollout_id for r in rows(tmp_path, Rollout)}
    assert len(first) == 12
    again = []
    tiny.run(recipe, tmp_path, on_event=lambda e: again.append(e.done) if e.stage == "generate" else None)
    after = {r.rollout_id for r in rows(tmp_path, Rollout)}
    assert first < after
    assert len(after) == 24
    assert max(again) == 12


def test_rows_come_in_the_order_they_were_made_under_any_run_id(tiny, tmp_path):
    plugin = """
from strop.storage.tables import Decision

@stage("filter")
def first(config: Nothing, *, rollouts):
    return [Decision(subject_id=r.rollout_id, keep=i < 3, reason=str(i)) for i, r in enumerate(rollouts)]
"""
    recipe = tiny.write(tmp_path, tiny.stages(filter="./mine.py:first", **LIGHT, verify=None), plugin, rounds=1)
    kept = []
    for run_id in ("a", "d"):  # the ids of their shards are in opposite order
        tiny.run(recipe, tmp_path / run_id, run_id=run_id)
        with open_lake(tmp_path / run_id / "lake", read_only=True) as lake:
            kept.append(
                lake.query(
                    "SELECT p.problem_key, r.sample_index, d.reason FROM decisions d "
                    "JOIN rollouts r ON r.rollout_id = d.subject_id JOIN problems p USING (problem_id) ORDER BY ALL"
                )
            )
    assert len(kept[0]) == 24
    assert all(other == kept[0] for other in kept)


def test_a_plugin_that_empties_what_it_was_handed_takes_nothing_from_the_next(tiny, tmp_path):
    plugin = """
@stage("filter")
def greedy(config: Nothing, *, rollouts, scores):
    rollouts.clear()
    scores.clear()
    return []
"""
    recipe = tiny.write(
        tmp_path, tiny.stages(filter="./mine.py:greedy", train=None, evaluate=None, gate=None), plugin, rounds=1
    )
    tiny.run(recipe, tmp_path)
    with open_lake(tmp_path / "lake", read_only=True) as lake:
        assert lake.query("SELECT count(*) FROM examples")[0][0] > 0


class Told:
    """A session of three policies, of which the gate said this of the last."""

    def __init__(self, action):
        statuses = ("retired", "champion", "rejected")
        self.all = [
            Policy(policy_id=i, round=i, status=status, kind="full", path=str(i), content_hash="")
            for i, status in enumerate(statuses)
        ]
        self.decision = Decision(subject_kind="policy", subject_id=2, keep=False, action=action)

    def policies(self):
        return self.all

    def champion(self):
        return self.all[1]

    def read(self, row, where, params):
        return [self.decision] if params == [self.decision.subject_id] else []


@pytest.mark.parametrize(
    ("action", "which", "round"),
    [
        ("keep", "previous", 2),
        ("roll_back", "previous", 1),
        ("keep", "champion", 1),
        ("roll_back", "champion", 1),
        ("roll_back", "base", 0),
    ],
)
def test_a_policy_that_was_rolled_back_is_nobodys_start_and_one_merely_kept_out_is(action, which, round):
    assert policy_called(Told(action), which).round == round


def test_a_gate_that_says_stop_ends_the_run_for_good_and_its_round_is_finished(tiny, tmp_path):
    plugin = """
@stage("control")
def calm(config: Nothing, *, round):
    return {}
"""
    gate = {"use": "./mine.py:say", "actions": ["stop"]}
    recipe = tiny.write(
        tmp_path, [*tiny.stages(filter=None, gate=gate), {"control": "./mine.py:calm"}], plugin, rounds=4
    )
    with pytest.raises(Died):
        tiny.run(recipe, tmp_path, on_event=died_at("stage_done", "gate", 1))
    summary = tiny.run(recipe, tmp_path)
    assert (summary.rounds, summary.stopped) == (1, "because")
    assert tiny.run(recipe, tmp_path, rounds=9).rounds == 1
    with open_lake(tmp_path / "lake", read_only=True) as lake:
        assert lake.query("SELECT round FROM stage_runs WHERE stage = 'control'") == [(1,)]


def test_a_round_that_is_half_done_is_not_counted_and_fewer_rounds_than_there_are_change_nothing(tiny, tmp_path):
    recipe = tiny.write(tmp_path, tiny.stages(**LIGHT))
    with pytest.raises(Died):
        tiny.run(recipe, tmp_path, on_event=died_at("stage_done", "generate", 2))
    assert tiny.run(recipe, tmp_path, rounds=1).rounds == 1
    assert tiny.run(recipe, tmp_path).rounds == 2
    before = content(tmp_path / "lake")
    assert tiny.run(recipe, tmp_path, rounds=1).rounds == 2
    assert content(tmp_path / "lake") == before


@pytest.mark.parametrize("orders", ["[]", "[Plan(problem_id=p.problem_id, n=0) for p in problems]"])
def test_a_round_without_rollouts_goes_through(tiny, tmp_path, orders):
    plugin = f"""
from strop.storage.tables import Plan, Score

@stage("select")
def none(config: Nothing, *, problems):
    return {orders}

@stage("verify")
def second(config: Nothing, *, rollouts, scores):
    return [Score(subject_id=r.rollout_id, verdict="pass", value=1.0) for r in rollouts]
"""
    shape = [{"select": "./mine.py:none"}, *tiny.stages(select=None, **LIGHT)]
    shape[3:3] = [{"verify": "./mine.py:second"}]
    summary = tiny.run(tiny.write(tmp_path, shape, plugin, rounds=1), tmp_path)
    assert summary.rounds == 1
    assert rows(tmp_path, Rollout) == rows(tmp_path, Score) == rows(tmp_path, Decision) == []


def test_evaluating_without_a_held_out_problem_is_refused_before_anything_is_sampled(tiny, tmp_path):
    tasks = [{"use": "./mine.py:ones", "heldout": 0}]
    with pytest.raises(
        StageError, match=r"no task \(ones\) has a held-out problem: .* leave `evaluate` and `gate` out"
    ):
        tiny.run(tiny.write(tmp_path, tasks=tasks), tmp_path)
    without = tiny.write(tmp_path / "without", tiny.stages(**LIGHT), tasks=tasks, rounds=1)
    assert tiny.run(without, tmp_path / "without").rounds == 1
    assert {r.split for r in rows(tmp_path / "without", Rollout)} == {"train"}


def test_without_a_gate_the_newest_policy_is_the_champion(tiny, tmp_path):
    tiny.run(tiny.write(tmp_path, tiny.stages(evaluate=None, gate=None)), tmp_path)
    policies = sorted(rows(tmp_path, Policy), key=lambda p: p.round)
    assert [p.status for p in policies] == ["retired", "retired", "champion"]
    assert [p.parent_policy_id for p in policies] == [None, policies[0].policy_id, policies[1].policy_id]
    sampled = {r.round: r.policy_id for r in rows(tmp_path, Rollout, "split = 'train'")}
    assert sampled == {1: policies[0].policy_id, 2: policies[1].policy_id}


def test_a_problem_held_out_in_one_task_and_trained_on_in_another_is_refused(tiny, tmp_path):
    tasks = [{"use": "./mine.py:ones"}, {"use": "./mine.py:ones", "as": "more", "start": 14}]
    with pytest.raises(StageError, match=r"tasks 'ones' and 'more': .* held out in one .*'14='"):
        tiny.run(tiny.write(tmp_path, tasks=tasks), tmp_path)


def test_two_tasks_are_both_sampled_and_both_held_out(tiny, tmp_path):
    tasks = [{"use": "./mine.py:ones"}, {"use": "./mine.py:ones", "as": "more", "start": 100, "train": 3}]
    select = {"use": "uniform", "problems": 99}
    recipe = tiny.write(tmp_path, tiny.stages(select=select, build=None, train=None, gate=None), tasks=tasks, rounds=1)
    tiny.run(recipe, tmp_path)
    with open_lake(tmp_path / "lake", read_only=True) as lake:
        found = lake.query(
            "SELECT p.task, p.split, count(DISTINCT p.problem_id) FROM rollouts r JOIN problems p USING (problem_id) "
            "GROUP BY ALL ORDER BY ALL"
        )
    assert found == [("more", "heldout", 4), ("more", "train", 3), ("ones", "heldout", 4), ("ones", "train", 12)]


ERRS = """
from strop.storage.tables import Score

@stage("verify")
def errs(config: Nothing, *, rollouts):
    return [
        Score(subject_id=r.rollout_id, verdict="error", reason="down")
        if r.sample_index == 0
        else Score(subject_id=r.rollout_id, verdict="pass", value=1.0)
        for r in rollouts
    ]

@stage("select")
def by_rate(config: Nothing, *, problems, pass_rates, round):
    from strop.storage.tables import Plan
    if round == 2:
        assert len(pass_rates) == 6, pass_rates
        assert {rate.n for rate in pass_rates.values()} == {3}, pass_rates
        assert {rate.round for rate in pass_rates.values()} == {1}
    return [Plan(problem_id=p.problem_id) for p in problems[:6]]
"""


def test_an_error_of_one_of_two_verifiers_counts_in_no_pass_rate(tiny, tmp_path):
    shape = tiny.stages(select="./mine.py:by_rate", **LIGHT)
    shape[3:3] = [{"verify": "./mine.py:errs"}]
    assert tiny.run(tiny.write(tmp_path, shape, ERRS), tmp_path).rounds == 2
    decisions = rows(tmp_path, Decision, "round = 1")
    assert sum(d.reason == "could not be judged: down" for d in decisions) == 6


MEMORY = """
from strop.core.plugin import Returned
from strop.storage.tables import Context, Plan

@stage("memory")
def lessons(config: Nothing, *, contexts, round):
    known = {c.name: c for c in contexts}
    if round == 1:
        return [Context(name="a", text="one"), Context(name="b", text="two")]
    if round == 2:
        return [
            Context(name="a", text="one, better", op="update", parent_context_id=known["a"].context_id),
            Context(name="b", text="", op="delete", parent_context_id=known["b"].context_id),
        ]
    assert [(c.name, c.text) for c in contexts] == [("a", "one, better")]
    return []

@stage("select")
def taught(config: Nothing, *, problems, contexts, round):
    assert [c.text for c in contexts] == [[], ["one", "two"], ["one, better"]][round - 1]
    return [Plan(problem_id=problems[0].problem_id, context_id=c.context_id) for c in contexts]
"""


def test_the_library_of_contexts_is_handed_on_as_it_stands(tiny, tmp_path):
    shape = [
        {"select": "./mine.py:taught"},
        *tiny.stages(select=None, **LIGHT),
        {"memory": "./mine.py:lessons"},
    ]
    tiny.run(tiny.write(tmp_path, shape, MEMORY, rounds=3), tmp_path)
    with open_lake(tmp_path / "lake", read_only=True) as lake:
        assert lake.query("SELECT DISTINCT memory FROM contexts") == [("lessons",)]
        prompts = lake.query("SELECT DISTINCT round, split_part(prompt, chr(10), 1) FROM rollouts ORDER BY ALL")
    assert prompts == [(2, "one"), (2, "two"), (3, "one, better")]


def test_two_generators_of_one_round_do_not_sample_the_same_twice(tiny, tmp_path):
    shape = tiny.stages(**{**LIGHT, "filter": None})
    shape[2:2] = [{"generate": {"use": "sample", "as": "other", "n": 4, "max_tokens": 4}}]
    tiny.run(tiny.write(tmp_path, shape, rounds=1), tmp_path)
    seeds = [r.seed for r in rows(tmp_path, Rollout)]
    assert len(set(seeds)) == len(seeds) == 48


def test_held_out_problems_are_sampled_with_the_same_seeds_in_every_round_by_the_rounds_own_policy(tiny, tmp_path):
    recipe = tiny.write(tmp_path, tiny.stages(filter=None), rounds=1)
    tiny.run(recipe, tmp_path)
    policies = {p.round: p.policy_id for p in rows(tmp_path, Policy)}
    heldout = rows(tmp_path, Rollout, "split = 'heldout'")
    seeds = {at: {r.seed for r in heldout if r.round == at} for at in policies}
    assert seeds[0] == seeds[1]
    assert len(seeds[0]) == 16
    assert {(r.round, r.policy_id) for r in heldout} == set(policies.items())


def test_a_selector_that_names_a_held_out_problem_is_refused(tiny, tmp_path):
    plugin = """
from strop.storage.tables import Plan

@stage("select")
def leak(config: Nothing, *, problems):
    return [Plan(problem_id=problems[-1].problem_id + 1)]
"""
    with pytest.raises(PluginError, match=r"select plugin 'leak' returned a Plan for problem \d+, which it was not"):
        tiny.run(tiny.write(tmp_path, tiny.stages(select="./mine.py:leak", **LIGHT), plugin), tmp_path)


def test_a_controllers_value_that_is_no_json_is_refused_by_name(tiny, tmp_path):
    plugin = """
@stage("control")
def odd(config: Nothing):
    return {"generate.n": {1, 2}}
"""
    shape = [*tiny.stages(**LIGHT), {"control": "./mine.py:odd"}]
    with pytest.raises(PluginError, match="control 'odd': overrides must be plain JSON values"):
        tiny.run(tiny.write(tmp_path, shape, plugin), tmp_path)
