"""What policies say of rollouts: `likelihood` and `p_true`."""

import dataclasses
import math

import pytest
from engine_tools import CONTEXT, make_policy
from plugin_rows import group, problem, use

from strop.core.engine import NamedPolicy, Request, Sampling
from strop.core.registry import find
from strop.plugins.engines.hf import Hf, hf
from strop.storage.tables import Rollout, Score, TokenLogps


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A small real model under the hf engine, and its directory."""
    directory = make_policy(tmp_path_factory.mktemp("teacher"), 0)
    return hf(Hf(device="cpu"), directory=directory, threads=1)


def named(engine, known=None):
    asked = []

    def load():
        asked.append(engine)
        return engine

    return NamedPolicy(engine.directory, "hash", None, known or {}, load), asked


def sampled(engine, prompt="1+2=", n=4):
    (found,) = engine.sample([Request(prompt=prompt, seeds=tuple(range(n)))], Sampling(max_tokens=12))
    return [
        Rollout(
            rollout_id=100 + i, problem_id=1, group_id=1, sample_index=i, prompt=prompt, completion=c.text,
            token_ids=c.token_ids, logps=c.logps, n_tokens=len(c.token_ids), finish_reason=c.finish_reason,
        )
        for i, c in enumerate(found)
    ]  # fmt: skip


def test_a_policys_likelihood_of_its_own_rollouts_is_what_sampling_recorded(teacher):
    rollouts = sampled(teacher)
    policy, _ = named(teacher)
    rows = use("verify", "likelihood", policy="x")(rollouts=rollouts, policy=policy)
    scores, kept = [r for r in rows if isinstance(r, Score)], [r for r in rows if isinstance(r, TokenLogps)]
    for rollout, score, row in zip(rollouts, scores, kept, strict=True):
        assert row.logps == pytest.approx(rollout.logps, abs=1e-4)
        assert (row.rollout_id, row.policy_hash, row.policy_id, row.engine) == (rollout.rollout_id, "hash", None, "hf")
        assert score.value == pytest.approx(sum(rollout.logps) / rollout.n_tokens, abs=1e-4)
        assert score.verdict is None


def test_what_is_known_is_not_computed_again(teacher):
    rollouts = sampled(teacher)
    known = {r.rollout_id: [-0.25] * r.n_tokens for r in rollouts}
    policy, asked = named(teacher, known)
    rows = use("verify", "likelihood")(rollouts=rollouts, policy=policy)
    assert [row.value for row in rows] == [-0.25] * len(rollouts)
    assert asked == []
    del known[101]
    known[102] = known[102][1:]  # of other tokens
    policy, asked = named(teacher, known)
    rows = use("verify", "likelihood")(rollouts=rollouts, policy=policy)
    assert [row.rollout_id for row in rows if isinstance(row, TokenLogps)] == [101, 102]
    assert len(asked) == 1


def test_a_rollout_that_a_policy_cannot_score_is_an_error_beside_good_ones(teacher):
    rollouts = sampled(teacher, n=3)
    rollouts[1] = dataclasses.replace(rollouts[1], prompt="1" * CONTEXT)
    rollouts[2] = dataclasses.replace(rollouts[2], token_ids=None, completion="", finish_reason="error")
    policy, _ = named(teacher)
    good, long, empty, kept = use("verify", "likelihood")(rollouts=rollouts, policy=policy)
    assert good.value < 0
    assert (long.verdict, long.value) == ("error", None)
    assert f"context is {CONTEXT}" in long.reason
    assert (empty.verdict, empty.reason) == ("error", "it has no tokens")
    assert kept.rollout_id == good.subject_id


def scripted(**logps):
    """Says the labels with these log-probabilities."""
    plugin = find("engine", "scripted")
    replies = [{"text": text, "logps": [value, 0.0]} for text, value in logps.items()]
    return plugin.call(plugin.configure({"rules": [{"match": "", "replies": replies}]}), {})


def test_p_true_by_hand():
    judge = use("verify", "p_true")
    for a, b, expected in (
        (1.0, 0.0, 0.731059),
        (-3.0, -3.0, 0.5),
        (-800.0, 0.0, 0.0),
        (math.log(0.2), math.log(0.6), 0.25),
    ):
        (score,) = judge(rollouts=group(1, "3"), problems={1: problem(1)}, engine=scripted(A=a, B=b))
        assert score.value == pytest.approx(expected, abs=1e-6)
        assert score.verdict is None


def test_p_true_shows_the_problem_the_answer_and_some_others():
    seen = []

    class Watched:
        name, capabilities = "watched", frozenset({"score"})

        def render(self, prompt, messages=None):
            return prompt

        def score(self, pairs):
            seen.extend(pairs)
            return [[-1.0] for _ in pairs]

    rollouts = group(1, "3", "4", "5", "6")
    rollouts[1] = dataclasses.replace(rollouts[1], finish_reason="error", error="gone")
    scores = use("verify", "p_true", shown=1)(rollouts=rollouts, problems={1: problem(1, "1+2=")}, engine=Watched())
    assert [score.value for score in scores] == [0.5, None, 0.5, 0.5]
    assert scores[1].reason == "the completion could not be sampled: gone"
    assert [label for _, label in seen] == ["A", "B"] * 3
    first, *_, last = [prompt for prompt, _ in seen]
    assert "Question: 1+2=" in first
    assert "Proposed answer: 3\n" in first
    assert "Another answer: 5\n" in first
    assert "Another answer: 3\n" in last
    assert first.count("Another answer") == last.count("Another answer") == 1


def test_p_true_of_a_real_policy_is_the_share_of_its_label(teacher):
    judge = use("verify", "p_true", question="{answer}", true="1", false="2")
    rollouts = sampled(teacher, n=2)
    rollouts[1] = dataclasses.replace(rollouts[1], completion="7" * CONTEXT)
    good, long = judge(rollouts=rollouts, problems={1: problem(1)}, engine=teacher)
    (one,), (two,) = teacher.score([(rollouts[0].completion, "1"), (rollouts[0].completion, "2")])
    assert good.value == pytest.approx(math.exp(one) / (math.exp(one) + math.exp(two)), abs=1e-6)
    assert long.verdict == "error"
    assert f"context is {CONTEXT}" in long.reason


def test_a_question_that_cannot_be_asked_is_refused():
    with pytest.raises(ValueError, match=r"must show the \{answer\}"):
        use("verify", "p_true", question="{problem}?")
    with pytest.raises(ValueError, match="'solution'"):
        use("verify", "p_true", question="{answer} {solution}")
