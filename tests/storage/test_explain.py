"""What `explain` says, sentence by sentence, on a lake by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lake_rows import ledger

from strop.storage.console import Console, open_console
from strop.storage.explain import TELL, explain
from strop.storage.kinds import KINDS


@pytest.fixture(scope="module")
def console(every_link_lake: Path) -> Iterator[Console]:
    with open_console(every_link_lake) as opened:
        yield opened


GATE = "the gate better promoted it: pass@1 0.5 -> 0.75. a/r1 is now champion."


def test_a_kept_rollout(console: Console) -> None:
    assert explain(console, 101).lines == (
        "Rollout 101 is sample 1 of 4 for problem 2 (sums): '1+2=', answer '3'.",
        "a/r0 (the base policy, now retired) sampled it in round 1 of run a at seed 1.",
        "It says '3' in 2 tokens; it ended by itself.",
        "It was shown context 300.",
        "2 rollouts of the tree continue it.",
        "answer 1 said pass, value 1, reading the answer '3' (score 201).",
        "answer 2 said fail, value 0 (score 221): no unit in run b.",
        "It was scored in parts as well: 1 score of steps or tokens.",
        "The filter correct kept it: correct.",
        "rft made SFT example 401 of it.",
        f"It trained a/r1 (sft) with 2 other examples; {GATE}",
        "best_worst made it the preferred side of pair 402, against rollout 102, margin 1.",
        f"It trained a/r1 (sft) with 2 other examples; {GATE}",
        "group used it for group example 403.",
        f"It trained a/r1 (sft) with 2 other examples; {GATE}",
    )


def test_a_dropped_rollout_of_a_tree(console: Console) -> None:
    lines = explain(console, 103).lines
    assert "It continues rollout 102 after its step 2, 2 steps below rollout 101, the root of its tree." in lines
    assert "answer 1 could not judge it: time-out (score 203); score 204 stands in its place." in lines
    assert "The filter correct dropped it: wrong: expected 3." in lines


def test_a_rollout_that_taught_nothing_says_why(console: Console) -> None:
    assert explain(console, 109).lines[-1] == "It is held out: it measures its policy, and nothing is trained on it."
    assert "rft made SFT example 421 of it in run b." in explain(console, 104).lines


def test_a_pair(console: Console) -> None:
    assert explain(console, 402).lines == (
        "Pair 402 prefers one completion over another, which best_worst built in round 1 of run a for problem 2 "
        "(sums): '1+2=', answer '3'.",
        "It carries margin 1.",
        "Chosen: '3', rollout 101, sampled by a/r0 in round 1 of run a.",
        "answer 1 said pass, value 1, reading the answer '3' (score 201).",
        "answer 2 said fail, value 0 (score 221): no unit in run b.",
        "Chosen was scored in parts as well: 1 score of steps or tokens.",
        "Rejected: '4', rollout 102, sampled by a/r0 in round 1 of run a.",
        "answer 1 said fail, value 0 (score 202): expected 3, got 4.",
        f"It trained a/r1 (sft) with 2 other examples; {GATE}",
    )


def test_a_policy(console: Console) -> None:
    lines = explain(console, "a/r1").lines
    assert lines[0].startswith("a/r1 is the champion of run a, made in round 1 (policy 11, hash 0000000bf, in p11).")
    assert lines[1:7] == (
        "It was trained from a/r0 with sft, kept near a/r0, its tokens scored by a/r0, on 3 examples in 8 steps "
        "(loss 0.25 over the last tenth); "
        "the weights are full.",
        "Those are 1 group, 1 pair and 1 sft examples of round 1, for 1 problem, 1 of them synthesized by weakness.",
        "Their rollouts were sampled by a/r0 (3).",
        "Of the 4 training rollouts of that round the filters kept 2.",
        "Held out, on 4 problems: pass@1 0.750 [0.500, 1.000] (before: 0.500).",
        "The gate better promoted it: pass@1 0.5 -> 0.75.",
    )
    assert "became the start of a/r1 and b/r1" in "\n".join(explain(console, "a/r0").lines)


def test_a_problem(console: Console) -> None:
    lines = explain(console, "problem:2").lines
    assert lines[0] == "Problem 2 (sums): '1+2=', answer '3'; a training problem."
    assert "weakness synthesized it in round 0 of run a from 1 problem." in lines
    assert "answer 1 passed 2 of 4 rollouts in round 1." in lines
    assert "answer 2 passed 1 of 2 rollouts in round 1 in run b." in lines
    assert "weakness made 1 new problem from it." in explain(console, "problem:1").lines


def test_scores_tell_what_they_replace(console: Console) -> None:
    assert any(
        "It replaces score 203, where answer 1 could not judge it: time-out" in x for x in explain(console, 204).lines
    )
    assert any("It was replaced: answer 1 said fail" in x for x in explain(console, 203).lines)


def test_a_rerun_says_what_it_re_uses(console: Console) -> None:
    source = ledger("generate", run_id="a").stage_run_id
    again = ledger("b-generate", run_id="b").stage_run_id
    assert (
        f"the rows of stage run {source} (generate, round 1 of run a) stand for its own"
        in explain(console, again).lines[1]
    )
    assert explain(console, source).lines[-1] == "Re-used by round 1 of run b."
    assert explain(console, "run:b").lines[1] == "It re-uses a@1; its own work begins with verify."
    assert explain(console, "run:a").lines[-1] == "Re-used by b."


@pytest.mark.parametrize(
    ("kind", "id"),
    {
        "group": "group:70",
        "plan": "90",
        "context": "301",
        "decision": "501",
        "metric": "600",
        "recipe": "recipe:hash-of-a",
        "seed": "seed:0",
        "code": "code:012345",
        "scorer": "scorer:answer 1",
        "stage_run": f"{ledger('train', stage='train', run_id='a').stage_run_id}",
    }.items(),
)
def test_every_other_kind_has_its_story(console: Console, kind: str, id: str) -> None:
    told = explain(console, id)
    assert told.kind == kind
    assert told.lines
    assert not [line for line in told.lines if "None" in line or "nan" in line]


def test_every_kind_is_told() -> None:
    assert set(TELL) == set(KINDS)
