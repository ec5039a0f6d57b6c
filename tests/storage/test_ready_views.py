"""What the ready-made views say of a lake by hand with a rerun, a search tree and a score that was replaced."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lake_rows import ledger

from strop.storage.console import Console, open_console
from strop.storage.ready_views import READY, examples
from strop.storage.tables import BY_NAME

EMPTY = {"contexts", "plugin_state", "v_errors", "v_trees", "v_pairs", "policy_examples", "token_logps"}
"""Tables and views that the smoke run leaves empty, or whose question it has no answer to."""
QUERIES = [
    *((name, query) for name, queries in examples.TABLES.items() for query in queries),
    *((view.name, query) for view in READY.values() for query in view.examples),
]


@pytest.fixture(scope="module")
def console(every_link_lake: Path) -> Iterator[Console]:
    with open_console(every_link_lake) as opened:
        yield opened


def ask(console: Console, sql: str) -> list[tuple[Any, ...]]:
    return console.query(sql).rows


@pytest.mark.parametrize(("name", "query"), QUERIES, ids=[f"{name}: {query.asks}" for name, query in QUERIES])
def test_every_example_of_the_reference_page_runs(name: str, query: examples.Query, smoke: Any) -> None:
    with open_console(smoke.lake) as console:
        rows = console.query(query.sql).rows
    if name not in EMPTY and "run_id = 'a'" not in query.sql:
        assert rows


def test_every_table_has_an_example() -> None:
    assert set(examples.TABLES) == set(BY_NAME)


def test_a_rerun_counts_what_it_re_uses(console: Console) -> None:
    rounds = ask(console, "SELECT run_id, round, policy, kept, rollouts FROM v_rounds ORDER BY ALL")
    assert rounds == [
        ("a", 0, "a/r0", None, 0),
        ("a", 1, "a/r1", 2, 4),
        ("b", 1, "b/r1", 2, 4),
    ]
    sampled = (
        "SELECT rollout_id, verdict, said, kept FROM v_rollouts WHERE run_id = '{}' AND split = 'train' ORDER BY ALL"
    )
    assert ask(console, sampled.format("a")) == [
        (101, "pass", ["answer 1: pass"], True),
        (102, "fail", ["answer 1: fail"], False),
        (103, "fail", ["answer 1: fail"], False),
        (104, "pass", ["answer 1: pass"], True),
    ]
    assert ask(console, sampled.format("b")) == [
        (101, "fail", ["answer 2: fail"], True),
        (102, None, None, False),
        (103, None, None, False),
        (104, "pass", ["answer 2: pass"], True),
    ]


def test_pass_rates_go_by_version_and_leave_replaced_scores_out(console: Console) -> None:
    rates = ask(console, "SELECT run_id, scorer, scorer_version, problem_id, n, passed FROM v_pass_rates ORDER BY ALL")
    assert rates == [("a", "answer", "1", 2, 4, 2), ("b", "answer", "2", 2, 2, 1)]
    assert 203 not in {id for (id,) in ask(console, "SELECT score_id FROM v_scores")}
    assert ask(console, "SELECT count(*) FROM scores s WHERE s.score_id = 203") == [(1,)]
    assert ask(console, "SELECT * FROM v_errors") == []


def test_pairs_show_both_sides(console: Console) -> None:
    pairs = ask(
        console,
        "SELECT example_id, problem, chosen, rejected, chosen_verdict, rejected_verdict, chosen_value, rejected_value, "
        "margin FROM v_pairs",
    )
    assert pairs == [(402, "1+2=", "3", "4", "pass", "fail", 1.0, 0.0, 1.0)]


def test_training_sets_go_down_to_problems_and_verdicts(console: Console) -> None:
    sets = ask(
        console,
        "SELECT policy, example_id, rollout_id, sampled_by, sampled_in, problem_id, origin, verdict, said "
        "FROM v_training_sets ORDER BY policy_id, example_id",
    )
    assert sets == [
        ("a/r1", 401, 101, "a/r0", 1, 2, "weakness", "pass", ["answer 1: pass"]),
        ("a/r1", 402, 101, "a/r0", 1, 2, "weakness", "pass", ["answer 1: pass"]),
        ("a/r1", 403, 103, "a/r0", 1, 2, "weakness", "fail", ["answer 1: fail"]),
        ("b/r1", 421, 104, "a/r0", 1, 2, "weakness", "pass", ["answer 2: pass"]),
    ]
    assert ask(console, "SELECT policy, example_id FROM v_trained_on ORDER BY ALL") == [(s[0], s[1]) for s in sets]


def test_trees_have_a_root_and_depths(console: Console) -> None:
    nodes = ask(
        console, "SELECT root_id, rollout_id, parent_rollout_id, depth, branch_step, children FROM v_trees ORDER BY 2"
    )
    assert nodes == [
        (101, 101, None, 0, None, 2),
        (101, 102, 101, 1, 1, 1),
        (101, 103, 102, 2, 2, 0),
        (101, 104, 101, 1, None, 0),
    ]


def test_ancestors_include_the_policy_itself(console: Console) -> None:
    rows = ask(console, "SELECT policy, distance, ancestor FROM v_ancestors ORDER BY policy_id, distance")
    assert rows == [
        ("a/r0", 0, "a/r0"),
        ("a/r1", 0, "a/r1"),
        ("a/r1", 1, "a/r0"),
        ("b/r1", 0, "b/r1"),
        ("b/r1", 1, "a/r0"),
    ]
    assert ask(console, "SELECT * FROM v_problem_parents") == [(2, 1, 1)]


def test_policies_and_runs_are_told_in_one_row(console: Console) -> None:
    policies = ask(
        console, "SELECT policy, parent, reference, pass_at_1, ci_low, action, reason FROM v_policies ORDER BY 1"
    )
    assert policies == [
        ("a/r0", None, None, 0.5, None, None, None),
        ("a/r1", "a/r0", "a/r0", 0.75, 0.5, "promote", "pass@1 0.5 -> 0.75"),
        ("b/r1", "a/r0", None, None, None, None, None),
    ]
    runs = ask(console, "SELECT run_id, parent_run_id, champion, pass_at_1, rounds FROM v_runs ORDER BY 1")
    assert runs == [("a", None, "a/r1", 0.75, 1), ("b", "a", "b/r1", None, 1)]
    reused = ask(
        console, "SELECT stage, rows_of, source_run_id FROM v_stage_runs WHERE stage_run_id <> rows_of ORDER BY 1"
    )
    assert reused == [
        (stage, ledger(stage, stage=stage, run_id="a").stage_run_id, "a") for stage in ("filter", "generate")
    ]


JOINED = {
    "v_ancestors": "v.policy_id = r.policy_id",
    "v_problem_parents": "v.problem_id = r.problem_id",
    "v_trees": "v.rollout_id = r.rollout_id",
    "v_rounds": "v.run_id = r.run_id",
    "v_policies": "v.policy_id = r.policy_id",
}


@pytest.mark.parametrize("view", JOINED)
def test_a_view_lets_a_joined_table_read_only_what_is_asked_for(console: Console, view: str) -> None:
    console.query(f"SELECT count(*) FROM {view} v JOIN rollouts r ON {JOINED[view]}")  # makes the views
    plan = console._connection.execute(
        f"EXPLAIN SELECT count(*) FROM {view} v JOIN rollouts r ON {JOINED[view]}"
    ).fetchall()
    assert "completion" not in plan[0][1]
