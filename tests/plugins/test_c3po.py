"""C3PO: pairs by scope, three terms by hand, and what is refused."""

import dataclasses
import json

import pytest
import torch
from objective_tools import tensor
from pair_tools import check_pair_cuts, gradients, pairs, random_pairs
from plugin_rows import dropped, group, problem, use

from strop.core.registry import find


def c3po(**settings):
    plugin = find("objective", "c3po")
    config = plugin.configure(settings)
    return lambda batch: plugin.call(config, {"batch": batch})


def of_kinds(batch, *strata, step=None):
    return dataclasses.replace(
        batch, strata=torch.tensor(strata), step_strata=torch.tensor(strata if step is None else step)
    )


def three():
    """F3 in scope; near it -.8 a token, out of it -.75."""
    return of_kinds(pairs((-4.0, -4.0, -3.75), (-6.0,) * 3, ((-4.5,) * 3, (-5.6,) * 3), step=3.0), 0, 1, 2)


def test_dpo_in_scope_and_its_own_completions_elsewhere():
    loss = c3po()(three())
    assert loss.value.item() == pytest.approx(0.884159, abs=1e-6)
    assert loss.metrics == {"accuracy": 1.0, "margin": pytest.approx(0.09)}
    assert c3po(near=0, out=0)(three()).value.item() == pytest.approx(0.649159, abs=1e-6)


def test_each_kind_is_averaged_over_its_own_pairs():
    batch = pairs((-4.0, -4.0, -3.0), (-6.0,) * 3, ((-4.5,) * 3, (-5.6,) * 3), step=3.0)
    assert c3po()(of_kinds(batch, 0, 1, 1)).value.item() == pytest.approx(0.649159 + 0.2 * (0.8 + 0.6) / 2, abs=1e-6)
    only = c3po()(of_kinds(batch, 2, 2, 2))
    assert only.value.item() == pytest.approx(0.1 * (0.8 + 0.8 + 0.6) / 3)
    assert only.metrics == {"accuracy": 0.0, "margin": 0.0}


def test_out_of_scope_only_what_it_wrote_itself_goes_up():
    chosen, rejected = gradients(c3po(), three())
    assert (chosen < 0).all()
    assert (rejected[0] > 0).all()
    assert (rejected[1:] == 0).all()
    assert chosen[1].tolist() == pytest.approx([-0.2 / 5] * 5)
    assert chosen[2].tolist() == pytest.approx([-0.1 / 5] * 5)


def test_micro_batches_change_nothing():
    check_pair_cuts(c3po(), of_kinds(random_pairs(), 0, 1, 2, 2, 0, 1, 0))


def test_weights_count_within_their_kind():
    batch = dataclasses.replace(three(), weights=tensor([2.0, 0.0, 1.0]))
    assert c3po()(batch).value.item() == pytest.approx(2 * 0.649159 + 0.075, abs=1e-5)


def test_a_scope_is_never_made_up():
    with pytest.raises(ValueError, match="have no strata"):
        c3po()(pairs())
    with pytest.raises(ValueError, match="have no strata"):
        c3po()(of_kinds(pairs(), -1))


def scope(i, name, **more):
    return problem(i, reference=None, aux=json.dumps({"scope": name, **more}))


def scoped(rollouts, problems, decisions=(), **config):
    known = {p.problem_id: p for p in problems}
    rows = use("build", "scoped", **config)(rollouts=rollouts, decisions=list(decisions), problems=known)
    return sorted(rows, key=lambda row: row.problem_id)


def test_the_revised_completion_wins_in_scope_and_nothing_changes_elsewhere():
    rollouts = [*group(1, "a", "b"), *group(2, "c"), *group(3, "d", "e")]
    problems = [scope(1, "in", better="a+"), scope(2, "near"), scope(3, "out", better="ignored")]
    rows = scoped(rollouts, problems, revised="better")
    assert [(e.chosen, e.rejected, e.stratum) for e in rows] == [("a+", "a", 0), ("c", "c", 1), ("d", "d", 2)]
    assert [(e.rollout_id, e.rejected_rollout_id) for e in rows] == [(None, 100), (200, 200), (300, 300)]


def test_what_already_follows_the_feedback_or_was_dropped_is_passed_over():
    problems = [problem(1, reference="a", aux='{"scope": "in"}'), scope(2, "out")]
    rollouts = [*group(1, "a", "b"), *group(2, "c", "d")]
    rows = scoped(rollouts, problems, dropped(200))
    assert [(e.chosen, e.rejected) for e in rows] == [("a", "b"), ("d", "d")]
    assert scoped(group(1, "a"), problems) == []
    assert scoped(group(1, "a"), [scope(1, "in")]) == []


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (problem(1), r"needs `scope` of every problem, 'in', 'near' or 'out'; problem 1 .* has None"),
        (scope(1, "inside"), "has 'inside'"),
    ],
)
def test_a_problem_that_does_not_say_is_named(made, says):
    with pytest.raises(ValueError, match=says):
        scoped(group(1, "a"), [made])
