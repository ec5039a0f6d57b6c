"""AMFT: the controller by hand, and the two losses."""

import dataclasses

import pytest
import torch
from objective_tools import check_cuts, f2, gradient, random_step, sequences

from strop.core.algebra.schedules import steered
from strop.core.registry import find

BEFORE = {"mu": 0.5, "entropy": 0.9, "lr": 0.1}


def amft(**settings):
    plugin = find("objective", "amft")
    config = plugin.configure(settings)
    return lambda batch: plugin.call(config, {"batch": batch})


def mixed(**more):
    """A random step whose groups have a demonstration each."""
    batch = dataclasses.replace(random_step(), **more)
    batch.step.rewards[3::4] = torch.nan
    return batch


def share(config, *history):
    return amft(**config)(mixed(history=history)).metrics["mu"]


def test_the_share_follows_utility_and_entropy():
    assert steered(0.5, 0.2, 0.3, 0.1, 0.05) == pytest.approx(0.535)
    assert steered(0.9, 2.0, 0.0, 0.1, 0.05) == 1.0
    assert steered(0.1, 0.0, -4.0, 0.1, 0.05) == 0.0


def test_the_objective_steers_by_the_step_before():
    last = BEFORE | {"sft_along": 3.0, "rl_along": 1.0}  # slope .1 * 2
    assert share({"rate": 0.1, "target": 0.6}, last) == pytest.approx(0.535)
    assert share({"target": 0.6}, BEFORE) == pytest.approx(0.515)
    assert share({}, {"mu": 0.5, "entropy": 0.6, "lr": 0.1}, BEFORE) == pytest.approx(0.515)  # target: the first step's
    assert share({"mu": 0.2}) == pytest.approx(0.2)


def test_the_two_losses_are_mixed_by_it():
    batch = mixed()
    alone = [amft(mu=mu)(batch) for mu in (0.0, 1.0)]
    rl, sft = (loss.value.item() for loss in alone)
    assert amft(mu=0.3)(batch).value.item() == pytest.approx(0.7 * rl + 0.3 * sft)
    assert alone[0].metrics["sft"] == pytest.approx(sft)
    assert alone[0].metrics["rl"] == pytest.approx(rl)
    assert (gradient(amft(mu=0.0), batch)[3::4] == 0).all()
    assert (gradient(amft(mu=1.0), batch)[3::4] <= 0).all()
    held = amft(mu=0.3)(mixed(held_back=True))
    assert held.value.item() == pytest.approx(rl)


def test_better_completions_go_up_and_demonstrations_have_no_part_in_the_entropy():
    found = gradient(amft(mu=0.5), f2(entropy=((1.0,) * 3, (1.0,) * 3)))
    assert (found[0] < 0).all()
    assert (found[1, :2] > 0).all()
    both = sequences(rewards=(1.0, float("nan")), groups=(0, 0), old=[[-1.0] * 3] * 2, entropy=((0.5,) * 3, (9.0,) * 3))
    assert amft()(both).metrics["entropy"] == pytest.approx(0.5)


def test_micro_batches_change_nothing():
    check_cuts(amft(), mixed(history=(BEFORE,)))
