"""ReLIFT: who waits and for how long, turns that never share a step, and the two losses worked by hand."""

import dataclasses
import json

import pytest
import torch
from objective_tools import F2_MASK, F2_OLD, check_cuts, f2, gradient, random_step, sequences
from plugin_rows import group, judged, problem, use

from strop.core.recipe import load
from strop.core.registry import find
from strop.core.trainer.batches import plan
from strop.core.trainer.encode import Encoded, Item

F2_ENTROPY = ((0.9, 0.3, 0.1), (1.5, 0.05, 0.0))


def relift(**settings):
    plugin = find("objective", "relift")
    config = plugin.configure(settings)
    return lambda batch: plugin.call(config, {"batch": batch})


def shown():
    """F2 as two demonstrations."""
    return sequences(mask=F2_MASK, groups=(0, 1), old=F2_OLD, entropy=F2_ENTROPY, strata=(1, 1))


def sampled(**more):
    return f2(**{"entropy": F2_ENTROPY, "strata": (0, 0)} | more)


def test_a_step_of_demonstrations_is_supervision_with_a_little_entropy():
    loss = relift()(shown())
    assert loss.value.item() == pytest.approx(0.66 - 0.001 * 2.85 / 5, abs=1e-9)
    assert loss.metrics == {"demonstrated": 1.0}
    assert relift(entropy=0.0)(shown()).value.item() == pytest.approx(0.66)
    assert (gradient(relift(), shown())[torch.tensor(F2_MASK) > 0] < 0).all()


def test_entropy_on_demonstrations_goes_up():
    batch = shown()
    (found,) = torch.autograd.grad(relift(entropy=0.1)(batch).value, batch.entropy)
    assert found[0, 0].item() == pytest.approx(-0.1 / 5)


def test_a_step_of_completions_is_dr_grpo_without_a_clip():
    # ratios 1.221403, .904837, 1.491825 at advantage 1 and .670320, 1.105171 at -1
    loss = relift(length=4)(sampled())
    assert loss.value.item() == pytest.approx((-3.618065 + 1.775491) / 2 / 4, abs=1e-6)
    assert loss.metrics == {"demonstrated": 0.0}
    found = gradient(relift(), sampled())
    assert (found[0] < 0).all()
    assert (found[1, :2] > 0).all()
    near = dict.fromkeys(("behaviour", "old"), f2().logps.detach())
    clipped = find("objective", "dr_grpo")
    settings = clipped.configure({"length": 256})
    same = gradient(lambda batch: clipped.call(settings, {"batch": batch}), sampled(**near))
    torch.testing.assert_close(gradient(relift(), sampled(**near)), same)


def test_entropy_has_no_part_in_a_step_of_completions():
    batch = sampled()
    (found,) = torch.autograd.grad(relift(entropy=0.1)(batch).value, batch.entropy)
    assert (found == 0).all()


def test_both_in_one_step_add_up_where_examples_are_held_back():
    batch = random_step()
    batch.step.rewards[3] = batch.step.rewards[7] = torch.nan
    loss = check_cuts(relift(), batch)
    assert 0 < loss.metrics["demonstrated"] < 1


def built(state, rollouts, scores, **config):
    known = {i: problem(i, reference=f"worked {i}") for i in range(1, 4)}
    made = use("build", "relift", **config)(rollouts=rollouts, scores=scores, decisions=[], problems=known, state=state)
    return made.rows, json.loads(json.dumps(made.state, sort_keys=True))


def test_unsolved_prompts_wait_until_enough_have_gathered():
    one, two, three = (group(i, "a", "b") for i in (1, 2, 3))
    rows, state = built(None, [*one, *two], judged([*one, *two], 0, 0, 1, 0), wait=2)
    assert [(e.stratum, e.reward) for e in rows] == [(0, 0.0), (0, 0.0), (0, 1.0), (0, 0.0)]
    assert [row["problem_id"] for row in state["waiting"]] == [1]
    rows, state = built(state, [*three, *one], judged([*three, *one], 0, 0, 0, 0), wait=2)
    late = [e for e in rows if e.stratum == 1]
    assert [(e.problem_id, e.prompt, e.completion, e.reward) for e in late] == [
        (1, "p1=", "worked 1", None),
        (3, "p3=", "worked 3", None),
    ]
    assert rows[-2:] == late
    assert state == {"waiting": []}
    assert built(state, two, judged(two, 1, 1), wait=2)[1] == {"waiting": []}


def test_who_waits_waits_once_and_what_was_not_judged_does_not_count():
    one, two = group(1, "a", "b"), group(2, "a", "b")
    _, state = built(None, [*one, *two], judged([*one, *two], 0, "error", "error", None))
    assert [row["problem_id"] for row in state["waiting"]] == [1]
    assert built(state, one, judged(one, 0, 0))[1] == state


def test_without_a_solution_nobody_waits_and_flat_groups_may_be_left_out():
    one = group(1, "a", "b")
    rows, state = built(None, one, judged(one, 0, 0), key="solution", wait=1, contrast=True)
    assert (rows, state) == ([], {"waiting": []})


def test_rewards_alone_do_not_say_what_is_solved():
    one = group(1, "a", "b")
    graded = [dataclasses.replace(score, verdict=None) for score in judged(one, 0.3, 0.4)]
    with pytest.raises(ValueError, match="no rollout has a verdict"):
        built(None, one, graded)


def items():
    """Six groups of two in stratum 0, five demonstrations, of which one is of the first group."""
    import numpy as np

    def item(i, group, stratum):
        sequence = Encoded(np.arange(4 + i % 3), 2, np.ones(2 + i % 3, dtype=np.float32))
        return Item(i, (sequence,), 1.0, 0.0, 0.0, group, None, (None,), stratum)

    return [item(i, i // 2, 0) for i in range(12)] + [item(12 + i, i * 10, 1) for i in range(5)]


def test_turns_never_share_a_step_and_follow_each_other():
    made = items()
    steps = plan(made, epochs=2, batch_tokens=9, micro_batch_tokens=10, seed=0, in_turns=True)
    members = [[i for micro in step.micro for i in micro] for step in steps]
    strata = [{made[i].stratum for i in chosen} for chosen in members]
    first = strata.index({1})
    each = len(steps) // 2
    assert strata == ([{0}] * first + [{1}] * (each - first)) * 2
    assert each - first > 1
    assert sorted(i for chosen in members[:each] for i in chosen) == list(range(17))
    assert members[:each] != members[each:]


def test_alone_a_turn_is_planned_as_ever():
    made = items()[:12]
    given = {"epochs": 2, "batch_tokens": 9, "micro_batch_tokens": 10, "seed": 3}
    assert plan(made, in_turns=True, **given) == plan(made, **given)


def test_the_recipe_is_one():
    recipe = load("relift")
    train = next(step for step in recipe.round if step.kind == "train")
    assert train.plugin.mark.in_turns
    assert train.plugin.mark.required(train.objective) == {"old", "entropy"}
