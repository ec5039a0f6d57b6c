"""Lineage, both ways, on a small lake made by hand."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from lake_rows import NOON, ledger, rollouts

from strop.storage.console import Console, open_console
from strop.storage.errors import LakeError
from strop.storage.lake import Lake, open_lake
from strop.storage.lineage import trace
from strop.storage.nodes import Node
from strop.storage.tables import (
    Context,
    Decision,
    Example,
    Metric,
    Plan,
    Policy,
    PolicyExample,
    Problem,
    Run,
    Score,
)

BIG = 2**62


@pytest.fixture(scope="module")
def console(empty_lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    """Two rounds: base policy 10 -> policies 11 -> 12; problem 1 -> 2 -> 3; six rollouts of problem 3."""

    def policy(id: int, round: int, status: str, parent: int | None, content_hash: str) -> Policy:
        return Policy(
            policy_id=id,
            run_id="t-s0",
            round=round,
            stage_run_id=train.stage_run_id,
            name=f"t-s0/r{round}",
            status=status,
            kind="full",
            path="p",
            content_hash=content_hash,
            parent_policy_id=parent,
        )

    generate = ledger("g", stage="generate", seed=99)
    train = ledger("t", stage="train", plugin="sft", upstream=["g"])
    run = Run(
        run_id="t-s0",
        recipe="default",
        recipe_json="{}",
        recipe_hash="abcdef0123",
        code_version="0123456789",
        seed=5,
        strop_version="0",
        created_at=NOON,
    )
    made = {"run_id": "t-s0", "round": 1, "stage_run_id": generate.stage_run_id}
    root = tmp_path_factory.mktemp("lineage") / "lake"
    shutil.copytree(empty_lake, root)
    lake = open_lake(root)
    lake.commit(
        generate,
        rows={
            "runs": [run],
            "problems": [
                Problem(problem_id=1, prompt="first"),
                Problem(problem_id=2, prompt="second", parents=[1]),
                Problem(problem_id=3, prompt="third", parents=[2]),
            ],
            "plans": [Plan(plan_id=BIG, problem_id=3, n=6)],
            "rollouts": [
                r.__class__(
                    **{**{f: getattr(r, f) for f in ("rollout_id", "completion")}, **made},
                    problem_id=3,
                    policy_id=10,
                    plan_id=BIG,
                )
                for r in rollouts(6, first=BIG + 1)
            ],
            "scores": [
                Score(score_id=100, subject_id=BIG + 1, scorer="answer", scorer_version="2", verdict="pass", value=1.0)
            ],
            "decisions": [Decision(decision_id=200, subject_id=BIG + 1, decider="correct", keep=True)],
            "contexts": [Context(context_id=300, name="c", text="hint", sources=[BIG + 1])],
        },
    )
    lake.commit(
        train,
        rows={
            "policies": [
                policy(10, 0, "retired", None, "aaaaaaaa0"),
                policy(11, 1, "retired", 10, "aaaaaaab1"),
                policy(12, 2, "champion", 11, "cccccccc2"),
            ],
            "examples": [
                Example(
                    example_id=400 + i, kind="sft", problem_id=3, prompt="third", completion="x", rollout_id=BIG + 1 + i
                )
                for i in range(5)
            ],
            "policy_examples": [PolicyExample(policy_id=12, example_id=400 + i) for i in range(5)],
            "metrics": [Metric(metric_id=500, policy_id=12, name="pass@1", value=0.5, n=4)],
        },
    )
    lake.close()
    with open_console(root) as opened:
        yield opened


def find(node: Node | None, *path: str) -> Node:
    """The node reached by following relations."""
    assert node is not None
    for relation in path:
        matching = [child for child in node.children if child.relation == relation]
        assert matching, f"{relation} is none of {[child.relation for child in node.children]}"
        node = matching[0]
    return node


def test_a_policy_leads_up_to_problems_and_the_seed(console: Console) -> None:
    up = trace(console, "t-s0/r2").up
    assert up is not None
    assert (up.kind, up.id, up.label) == ("policy", "12", "t-s0/r2 (champion)")
    assert up.facts["made_by"] == "train (sft 1, seed 7), round 2 of t-s0"
    examples = find(up, "trained on")
    assert (examples.kind, examples.label, examples.more) == ("examples", "5 examples", 2)
    assert [e.id for e in examples.children] == ["400", "401", "402"]
    rollout = find(examples.children[0], "made from")
    assert rollout.id == str(BIG + 1)
    assert find(rollout, "sampled by").id == "10"
    assert find(examples.children[0], "judged by").label == "answer 2: pass 1"
    assert find(examples.children[0], "let in by").label == "correct: keep"
    assert find(rollout, "answers").id == "3"
    assert find(rollout, "answers").above  # it stands nearer, below "learnt from"
    assert find(up, "learnt from", "synthesized from", "synthesized from").id == "1"
    assert find(up, "started from").id == "11"
    assert find(up, "started from", "started from").id == "10"
    assert find(up, "part of", "drew from").id == "5"


def test_a_policy_leads_down_to_its_descendants(console: Console) -> None:
    down = trace(console, 10).down
    assert find(down, "parent of").id == "11"
    assert find(down, "parent of", "parent of").id == "12"
    assert (find(down, "sampled").label, find(down, "sampled").more) == ("6 rollouts", 3)
    assert find(trace(console, 12).down, "measured as").label == "pass@1 = 0.5 on heldout"


def test_a_problem_leads_down_to_what_it_trained(console: Console) -> None:
    down = trace(console, 3).down
    assert find(down, "answered by").facts == {"count": 6}
    assert find(down, "became").facts == {"count": 5}
    assert find(down, "trained").id == "12"
    assert find(trace(console, 1).down, "parent of").id == "2"


def test_a_rollout_leads_both_ways(console: Console) -> None:
    found = trace(console, str(BIG + 1))
    assert find(found.up).facts["made_by"] == "generate (sample 1, seed 99), round 1 of t-s0"
    assert find(found.up, "sampled by").label == "t-s0/r0 (retired)"
    assert find(found.up, "ordered by").id == str(BIG)
    assert find(found.down, "became", "trained").id == "12"
    assert find(found.down, "taught").id == "300"


def test_a_score_leads_up_to_its_rollout_and_a_plan_down_to_its_rollouts(console: Console) -> None:
    score = find(trace(console, 100).up)
    assert find(score, "said by").id == "answer 2"
    assert find(score, "about").id == str(BIG + 1)
    assert find(score, "about", "answers").id == "3"
    assert find(trace(console, BIG).down, "ordered").facts["count"] == 6
    assert find(trace(console, 300).up, "learnt from").id == str(BIG + 1)
    assert find(trace(console, 500).up, "measured on", "started from").id == "11"


def test_a_stage_run_and_a_run_say_what_they_wrote(console: Console) -> None:
    stage = ledger("g", stage="generate").stage_run_id
    down = find(trace(console, stage).down)
    assert [(c.kind, c.facts.get("count")) for c in down.children if c.relation == "wrote"] == [("rollouts", 6)]
    assert find(down, "read by").label == "train (sft 1), round 1 of t-s0"
    run = trace(console, "t-s0")
    assert find(run.up, "follows").label == "default (abcdef0123)"
    assert find(run.up, "made with").id == "0123456789"
    assert [p.label for p in find(run.down, "made").children] == [
        "t-s0/r0 (retired)",
        "t-s0/r1 (retired)",
        "t-s0/r2 (champion)",
    ]


def test_a_policy_is_found_by_the_beginning_of_its_hash(console: Console) -> None:
    assert trace(console, "cccccc").up.id == "12"
    assert trace(console, "AAAAAAAB").up.id == "11"
    with pytest.raises(LakeError, match=r"several policies begin so \(t-s0/r0, t-s0/r1\)"):
        trace(console, "aaaaaa")


@pytest.mark.parametrize("id", ["t-s0/r9", "123456789", "zz", "'; DROP", "", "-1", "9" * 30])
def test_an_unknown_id_says_what_an_id_is(console: Console, id: str) -> None:
    with pytest.raises(
        LakeError,
        match=r"nothing in the lake .* answers to .* a row id, a policy's name, the first 6 letters of a hash",
    ):
        trace(console, id)


def test_every_kind_of_id_is_found(console: Console) -> None:
    stage = ledger("t", stage="train").stage_run_id
    kinds = {
        "run:t-s0": "run",
        "default": "recipe",
        "abcdef": "recipe",
        "recipe:default": "recipe",
        "seed:5": "seed",
        "code:012345": "code",
        "scorer:answer": "scorer",
        "scorer:answer 2": "scorer",
        str(stage): "stage_run",
        f"stage_run:{stage}": "stage_run",
        f"rollout:{BIG + 1}": "rollout",
        "policy:12": "policy",
        "problem:3": "problem",
    }
    for id, kind in kinds.items():
        found = trace(console, id)
        assert find(found.up).kind == find(found.down).kind == kind, id
    with pytest.raises(LakeError, match="nothing in the lake"):
        trace(console, "policy:3")


def test_depth_and_limit_bound_what_is_shown(console: Console) -> None:
    assert find(trace(console, "t-s0/r2", depth=0).up).children == ()
    one = find(trace(console, "t-s0/r2", depth=1, limit=5).up)
    examples = find(one, "trained on")
    assert (len(examples.children), examples.more) == (5, 0)
    assert all(e.children == () for e in examples.children)
    far = find(trace(console, "t-s0/r2", depth=3).up, "trained on").children[0]
    assert find(far, "made from", "written by").kind == "stage_run"
    assert "written by" not in {c.relation for c in find(trace(console, 400).up, "made from").children}
    assert trace(console, 3, up=False).up is None
    assert trace(console, 3, down=False).down is None


def test_a_near_name_is_suggested(console: Console) -> None:
    with pytest.raises(LakeError, match="did you mean 't-s0/r2'"):
        trace(console, "ts0/r2")


def test_dangling_and_circular_links_end(lake: Lake) -> None:
    lake.commit(
        ledger(),
        rows={
            "problems": [
                Problem(problem_id=1, prompt="a", parents=[2]),
                Problem(problem_id=2, prompt="b", parents=[1]),
            ],
            "rollouts": rollouts(1, first=9, policy_id=77),
            "policies": [
                Policy(
                    policy_id=5,
                    name="x",
                    status="candidate",
                    kind="full",
                    path="p",
                    content_hash="h",
                    parent_policy_id=6,
                ),
                Policy(
                    policy_id=6,
                    name="y",
                    status="candidate",
                    kind="full",
                    path="p",
                    content_hash="h",
                    parent_policy_id=5,
                ),
            ],
        },
    )
    with open_console(lake.root) as console:
        assert find(trace(console, "x").down, "parent of").id == "6"
        assert find(trace(console, 2).up, "synthesized from").id == "1"
        assert find(trace(console, 9).up, "sampled by").label == "not in this snapshot"
