"""Rows that repeat a sentence, and the objective that unlearns it: numbers worked by hand, and a real training."""

import math

import pytest
import torch
from objective_tools import check_cuts, gradient, random_step, sequences, tensor
from plugin_rows import group, judged, problem, use

from strop.core.algebra.repetition import copied
from strop.core.registry import find


def ditto(**settings):
    plugin = find("objective", "ditto")
    config = plugin.configure(settings)
    return lambda batch: plugin.call(config, {"batch": batch})


def repeated(rollouts, scores, seed=0, **config):
    known = {r.problem_id: problem(r.problem_id) for r in rollouts}
    return use("build", "repeated", **config)(rollouts=rollouts, scores=scores, decisions=[], problems=known, seed=seed)


def three_copies(probabilities, **more):
    """One row: a sentence of three tokens three times, and the end."""
    logps = tensor([[math.log(p) for p in probabilities]])
    return sequences(logps, [[1.0] * 10], targets=[[4, 5, 6] * 3 + [2]], strata=[3], **more)


ROW = [0.2, 0.3, 0.5, 0.3, 0.5, 0.7, 0.15, 0.25, 0.35, 0.9]


def test_a_second_copy_is_to_be_half_as_likely():
    # |.3 - .1|, |.5 - .15|, |.7 - .25|; the third copy is where it should be, the first and the end have no part
    expected = [0.223144, 0.430783, 0.597837]
    loss = ditto()(three_copies(ROW))
    assert loss.value.item() == pytest.approx(sum(expected) / 6, abs=1e-6)
    assert sum(expected) / 3 == pytest.approx(0.417254, abs=1e-6)
    assert loss.metrics["copied"] == pytest.approx((0.3 + 0.5 + 0.7 + 0.15 + 0.25 + 0.35) / 6)


def test_copies_too_likely_are_pushed_down_and_no_copy_pulls_the_one_before():
    found = gradient(ditto(), three_copies(ROW))[0]
    p, apart = tensor(ROW[3:6]), tensor([0.2, 0.35, 0.45])
    torch.testing.assert_close(found[3:6], p / (1 - apart) / 6)
    assert (found[[0, 1, 2, 9]] == 0).all()
    assert gradient(ditto(decay=0.9), three_copies([0.5] * 3 + [0.1] * 7))[0][3:6].max() < 0  # too unlikely: up


def test_a_text_as_it_came_is_plain_supervision():
    batch = random_step()
    plain = sequences(batch.logps.detach(), batch.mask, targets=torch.zeros(12, 6).long(), strata=[0] * 12)
    sft = find("objective", "sft")
    expected = sft.call(sft.configure({}), {"batch": plain}).value
    assert ditto()(plain).value.item() == pytest.approx(expected.item())


def mixed():
    rng = torch.Generator().manual_seed(0)
    strata = torch.tensor([3, 0, 3, 0, 0, 3, 0, 0])
    mask = torch.ones(8, 10)
    mask[strata == 0, 6:] = 0
    targets = torch.randint(3, 9, (8, 10), generator=rng)
    targets[strata == 3] = torch.tensor([4, 5, 6] * 3 + [2])
    return sequences(
        -torch.rand(8, 10, generator=rng, dtype=torch.float64) * mask, mask, targets=targets, strata=strata
    )


def test_micro_batches_change_nothing():
    check_cuts(ditto(), mixed())


def test_the_first_copy_may_be_tokenised_apart():
    targets = torch.tensor([[9, 6, 4, 5, 6, 4, 5, 6, 2], [4, 4, 4, 4, 4, 4, 4, 4, 2]])
    mask = torch.ones(2, 9)
    marks, periods = copied(targets, mask, torch.tensor([3, 4]))
    assert periods.tolist() == [3, 2]
    assert marks[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 0]
    assert marks[1].tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 0]


def test_what_does_not_repeat_is_not_taught_as_if():
    batch = sequences([[-1.0] * 10], [[1.0] * 10], targets=[[4, 5, 6, 4, 5, 7, 4, 5, 6, 2]], strata=[3])
    with pytest.raises(ValueError, match="its 9 tokens do not repeat"):
        ditto()(batch)


def test_strata_are_never_made_up():
    with pytest.raises(ValueError, match="has no strata"):
        ditto()(sequences([[-1.0]], [[1.0]], targets=[[3]], strata=[-1]))


def test_some_completions_become_one_of_their_sentences_over_and_over():
    rollouts = [r for i in range(1, 41) for r in group(i, f"a{i}\nb{i}\n", "x")]
    rows = repeated(rollouts, judged(rollouts, *[1, 0] * 40), copies=4, separator="\n")
    assert len(rows) == 40
    again = [e for e in rows if e.stratum]
    assert 10 < len(again) < 30
    for example in rows:
        n = example.problem_id
        assert example.kind == "sft"
        if example.stratum:
            assert (example.stratum, example.completion) in [(4, f"{s}{n}\n" * 4) for s in "ab"]
        else:
            assert (example.stratum, example.completion) == (0, f"a{n}\nb{n}\n")
    assert {e.completion[0] for e in again} == {"a", "b"}


def test_every_row_or_none_may_be_repeated_and_the_seed_decides():
    rollouts = [r for i in range(1, 21) for r in group(i, "a\nb\nc")]
    scores = judged(rollouts, *[1] * 20)
    assert {e.stratum for e in repeated(rollouts, scores, share=1.0)} == {5}
    assert {e.stratum for e in repeated(rollouts, scores, share=0.0)} == {0}
    assert repeated(rollouts, scores, seed=1) == repeated(rollouts[::-1], scores[::-1], seed=1)
    assert repeated(rollouts, scores, seed=1) != repeated(rollouts, scores, seed=2)
    assert [e.stratum for e in repeated(group(1, "  "), judged(group(1, "  "), 1), share=1.0)] == [0]
