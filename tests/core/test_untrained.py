"""A round whose filter keeps nothing: no policy, the champion stays, the loop goes on."""

import pytest
from rerun_tools import query, rows

from strop.core.recipe import load
from strop.flows import report, runs
from strop.storage.tables import Policy, Rollout

PLUGINS = """
from strop.storage.tables import Decision


class From(Config):
    round: int = 2


@stage("filter")
def late(config: From, *, rollouts, round):
    return [Decision(subject_id=r.rollout_id, keep=round >= config.round, reason="late") for r in rollouts]
"""


def recipe(tiny, folder, first=2, **changes):
    shape = tiny.stages(filter={"use": "./mine.py:late", "round": first}, **changes)
    return tiny.write(folder, shape, PLUGINS)


def test_a_round_without_an_example_makes_no_policy_and_the_next_one_trains(tiny, tmp_path, capsys):
    summary = tiny.run(recipe(tiny, tmp_path), tmp_path)
    assert summary.rounds == 2
    policies = sorted(rows(tmp_path, Policy), key=lambda p: p.round)
    assert [(p.name, p.status) for p in policies] == [("tiny/r0", "champion"), ("tiny/r2", "rejected")]
    gates = query(
        tmp_path, "SELECT round, action, keep, reason, subject_id FROM decisions WHERE subject_kind = 'policy'"
    )
    assert sorted(gates)[0] == (
        1,
        "keep",
        False,
        "nothing to train on: the round has no example",
        policies[0].policy_id,
    )
    assert sorted(gates)[1][3] == "because"
    examined = {r.round for r in rows(tmp_path, Rollout, "split = 'heldout'")}
    assert examined == {0, 2}  # the champion again would say the same, and count twice
    assert query(tmp_path, "SELECT DISTINCT round FROM metrics ORDER BY 1") == [(0,), (2,)]
    (state,) = runs.states(tmp_path / "lake")
    report.print_rounds(state)
    lines = capsys.readouterr().out.splitlines()
    assert ["nothing to train on" in line for line in lines[2:]] == [False, True, False]


@pytest.mark.parametrize("start", ["champion", "previous", "base"])
def test_a_run_that_never_has_an_example_ends_with_its_base(tiny, tmp_path, start):
    made = recipe(tiny, tmp_path, first=9, gate=None, train={"objective": "sft", "init_from": start})
    summary = tiny.run(made, tmp_path)
    assert (summary.rounds, summary.champion) == (2, "tiny/r0")
    assert tiny.run(load(str(tmp_path / "tiny.yaml")), tmp_path).champion == "tiny/r0"


def test_examples_of_earlier_rounds_in_the_window_are_enough(tiny, tmp_path):
    plugin = PLUGINS.replace("round >= config.round", "round < config.round")
    shape = tiny.stages(
        filter={"use": "./mine.py:late"}, train={"objective": "sft", "data_window": 2}, evaluate=None, gate=None
    )
    tiny.run(tiny.write(tmp_path, shape, plugin, rounds=3), tmp_path)
    assert sorted(p.round for p in rows(tmp_path, Policy)) == [0, 1, 2]
