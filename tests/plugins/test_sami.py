"""SAMI: matrices of completions behind prompts, their loss by hand, and groups that are none."""

import dataclasses

import pytest
import torch
from objective_tools import check_cuts, gradient, sequences, tensor
from plugin_rows import dropped, group, problem, use

from strop.core.algebra.matrices import matching, slopes
from strop.core.registry import find

WORKED = [[-1.0, -2.0], [-1.5, -1.2]]


def sami():
    plugin = find("objective", "sami")
    config = plugin.configure({})
    return lambda batch: plugin.call(config, {"batch": batch})


def matrices(*scores, shuffled=False):
    """Sequences of one to three tokens with these mean log-probabilities, a group a matrix."""
    rows = [(g, s, v) for g, m in enumerate(scores) for s, v in enumerate(v for row in m for v in row)]
    if shuffled:
        rows = rows[1::2] + rows[::2]
    lengths = torch.tensor([1 + s % 3 for _, s, _ in rows])
    mask = (torch.arange(3) < lengths[:, None]).double()
    logps = tensor([v for _, _, v in rows])[:, None] * mask
    return sequences(logps, mask, groups=[g for g, _, _ in rows], strata=[s for _, s, _ in rows], step_logps=logps)


@pytest.mark.parametrize(("scores", "value"), [(WORKED, 0.428199), ([[-1.0, -2.0], [-1.5, -0.5]], 0.325503)])
def test_rows_and_columns_are_told_apart(scores, value):
    assert matching(tensor(scores)).item() == pytest.approx(value, abs=1e-6)
    loss = sami()(matrices(scores))
    assert loss.value.item() == pytest.approx(value, abs=1e-6)
    assert loss.metrics == {"matched": 1.0}


def test_rows_are_constitutions():
    rows = torch.nn.functional.cross_entropy(tensor(WORKED), torch.arange(2)).item()
    columns = torch.nn.functional.cross_entropy(tensor(WORKED).T, torch.arange(2)).item()
    assert (rows, columns) == pytest.approx((0.433808, 0.422589), abs=1e-6)
    assert sami()(matrices([[-1.0, -2.0], [-1.0, -1.5]])).metrics == {"matched": 0.5}


@pytest.mark.parametrize("scores", [WORKED, torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator())])
def test_the_slope_is_that_of_the_loss(scores):
    leaf = tensor(scores).clone().requires_grad_()
    (found,) = torch.autograd.grad(matching(leaf), leaf)
    torch.testing.assert_close(slopes(leaf.detach()), found)


def test_what_belongs_together_goes_up_by_the_mean_over_its_tokens():
    batch = matrices(WORKED, shuffled=True)
    found = gradient(sami(), batch)
    by_entry = dict(zip(batch.step.strata.tolist(), found, strict=True))
    assert (by_entry[0][:1] < 0).all()
    assert (by_entry[3][:1] < 0).all()
    assert (by_entry[1][:2] > 0).all()
    assert (by_entry[2] > 0).all()
    assert by_entry[1][:2].tolist() == pytest.approx([slopes(tensor(WORKED))[0, 1].item() / 2] * 2)


def test_micro_batches_change_nothing_and_matrices_are_averaged():
    three = [[-1.0, -2.0, -0.5], [-1.5, -1.2, -2.0], [-0.3, -0.4, -0.6]]
    loss = check_cuts(sami(), matrices(WORKED, three, shuffled=True))
    assert loss.value.item() == pytest.approx((0.428199 + matching(tensor(three)).item()) / 2, abs=1e-6)


def test_a_group_that_is_no_matrix_is_named():
    batch = matrices(WORKED)
    for strata in ([0, 1, 2, 2], [0, 1, 2, 4]):
        wrong = dataclasses.replace(batch.step, strata=torch.tensor(strata))
        with pytest.raises(ValueError, match=r"group 0 has strata \[0, 1, 2, .\]"):
            sami()(dataclasses.replace(batch, step=wrong))
    short = sequences([[-1.0]] * 3, [[1.0]] * 3, groups=[7] * 3, strata=[0, 1, 2], step_logps=[[-1.0]] * 3)
    with pytest.raises(ValueError, match="group 7 has strata"):
        sami()(short)
    with pytest.raises(ValueError, match="the step has no logps"):
        sami()(sequences([[-1.0]], [[1.0]], groups=[0], strata=[0]))


def crossed(rollouts, queries, decisions=()):
    known = {i: problem(i, aux=f'{{"query": "{query}"}}' if query else None) for i, query in queries.items()}
    return use("build", "crossed")(rollouts=rollouts, decisions=list(decisions), problems=known)


def test_every_completion_stands_behind_every_prompt_of_its_query():
    rollouts = [*group(1, "a", "x"), *group(2, "b"), *group(3, "alone")]
    rows = crossed(rollouts, {1: "q", 2: "q", 3: "other"})
    assert {e.group_id for e in rows} == {rows[0].group_id}
    own = {1: "a", 2: "b"}
    first = rows[0].problem_id
    order = [first, 3 - first]
    assert [(e.prompt, e.completion, e.stratum) for e in rows] == [
        (f"p{i}=", own[j], 2 * a + b) for a, i in enumerate(order) for b, j in enumerate(order)
    ]
    assert [e.rollout_id for e in rows[:2]] == [100 * j for j in order]


def test_completions_that_are_alike_or_empty_or_dropped_are_no_evidence():
    queries = {1: "q", 2: "q"}
    assert crossed([*group(1, "a"), *group(2, "a")], queries) == []
    assert crossed([*group(1, "a"), *group(2, " ")], queries) == []
    assert crossed([*group(1, "a"), *group(2, "b")], queries, dropped(200)) == []
    assert len(crossed([*group(1, "a"), *group(2, "a", "b")], queries, dropped(200))) == 4


def test_a_problem_without_a_query_is_named():
    with pytest.raises(ValueError, match="crossed needs `query` of every problem, the name of its query; problem 1"):
        crossed(group(1, "a"), {1: None})
