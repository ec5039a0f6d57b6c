"""The sampling stage on the scripted engine, and the scripted engine itself."""

import pytest
from plugin_rows import problem, use
from pydantic import ValidationError

from strop.core.engine import Request, Sampling
from strop.core.registry import find
from strop.core.seeds import derive
from strop.plugins.engines.scripted import ScriptedEngine
from strop.storage.errors import StageError
from strop.storage.tables import Context, Plan


def engine(*rules: dict) -> ScriptedEngine:
    plugin = find("engine", "scripted")
    return plugin.call(plugin.configure({"rules": list(rules)}), {})


COIN = {"match": "coin", "replies": ["heads", "tails"]}


def ask(made: ScriptedEngine, prompt: str, *seeds: int, **sampling):
    return made.sample([Request(prompt=prompt, seeds=seeds)], Sampling(**sampling))[0]


def sample(plan, made, *, contexts=None, progress=lambda r, t: None, **config):
    return use("generate", "sample", **config)(
        plan=plan,
        problems={i: problem(i, f"coin {i}") for i in range(1, 4)},
        contexts=contexts or {},
        engine=made,
        sample_seed=lambda p, i: derive(0, p.problem_key, i),
        progress=progress,
    )


# engine: scripted


def test_the_seed_alone_picks_the_reply():
    made = engine(COIN)
    texts = [c.text for c in ask(made, "coin", *range(40))]
    assert set(texts) == {"heads", "tails"}
    assert [ask(made, "another coin", s)[0].text for s in range(40)] == texts


def test_tokens_are_code_points_and_an_end():
    (completion,) = ask(engine({"match": "x", "replies": [{"text": "ab", "logps": [-0.5, -0.25, -0.125]}]}), "x", 1)
    assert completion.token_ids == [97, 98, 0]
    assert completion.logps == [-0.5, -0.25, -0.125]
    assert completion.finish_reason == "stop"


def test_the_limit_cuts_off_and_says_so():
    (completion,) = ask(engine({"match": "x", "replies": ["abc"]}), "x", 1, max_tokens=3)
    assert (completion.text, completion.finish_reason, len(completion.logps)) == ("abc", "length", 3)
    (completion,) = ask(engine({"match": "x", "replies": ["abc"]}), "x", 1, max_tokens=4)
    assert (completion.text, completion.finish_reason) == ("abc", "stop")


def test_the_first_stop_string_ends_the_text_and_is_kept_out_of_it():
    (completion,) = ask(engine({"match": "x", "replies": ["a;b\nc"]}), "x", 1, stop=("\n", ";"))
    assert (completion.text, completion.token_ids, completion.finish_reason) == ("a", [97, 59], "stop")


def test_an_unknown_prompt_stops_and_the_first_rule_that_matches_answers():
    made = engine({"match": "^a", "replies": ["1"]}, {"match": "a", "replies": ["2"]})
    assert [ask(made, p, 0)[0].text for p in ("ab", "ba")] == ["1", "2"]
    with pytest.raises(StageError, match="no rule for the prompt 'c'; it knows: '\\^a', 'a'"):
        ask(made, "c", 0)


def test_calls_and_completions_are_counted():
    made = engine(COIN)
    ask(made, "coin", 1, 2, 3)
    ask(made, "coin", 4)
    assert (made.calls, made.sampled) == (2, 4)


def test_a_known_continuation_scores_as_given():
    made = engine({"match": "x", "replies": [{"text": "ab", "logps": [-1.5, -2.0]}, "cd"]})
    assert made.score([("x", "ab"), ("x", "cd"), ("x", "zzz")]) == [[-1.5, -2.0], [0.0, 0.0], [-1.0] * 3]


def test_a_wrong_number_of_logps_is_refused():
    with pytest.raises(ValueError, match="has 2 characters and 1 logps"):
        ask(engine({"match": "x", "replies": [{"text": "ab", "logps": [0.0]}]}), "x", 1)


@pytest.mark.parametrize("rules", [[], [{"match": "(", "replies": ["a"]}], [{"match": "a", "replies": []}]])
def test_rules_that_cannot_answer_are_refused(rules):
    with pytest.raises(ValidationError):
        find("engine", "scripted").configure({"rules": rules})


# generate: sample


def test_sample_follows_the_plan_and_says_how_each_completion_was_made():
    rollouts = sample([Plan(problem_id=2, plan_id=9), Plan(problem_id=1, n=3)], engine(COIN), n=2, temperature=0.7)
    assert [(r.problem_id, r.sample_index) for r in rollouts] == [(2, 0), (2, 1), (1, 0), (1, 1), (1, 2)]
    first = rollouts[0]
    assert (first.prompt, first.plan_id, first.temperature, first.engine) == ("coin 2", 9, 0.7, "scripted")
    assert first.seed == derive(0, problem(2, "coin 2").problem_key, 0)
    assert first.n_tokens == len(first.token_ids) == len(first.logps) == len(first.completion) + 1


def test_a_completion_depends_on_problem_and_index_alone():
    made = engine(COIN)
    one = sample([Plan(problem_id=1), Plan(problem_id=2)], made)
    other = sample([Plan(problem_id=2)], made)
    assert [r.completion for r in one if r.problem_id == 2] == [r.completion for r in other]


def test_a_context_stands_before_the_problem():
    context = Context(context_id=5, name="lesson", text="Think.")
    plan = [Plan(problem_id=1, context_id=5)]
    (rollout,) = sample(plan, engine({"match": "^Think", "replies": ["ok"]}), contexts={5: context}, n=1)
    assert (rollout.prompt, rollout.context_id) == ("Think.\n\ncoin 1", 5)


def test_params_of_the_plan_override_the_config_and_progress_counts_on():
    plan = [Plan(problem_id=1, params='{"temperature": 0.2, "n": 1}'), Plan(problem_id=2), Plan(problem_id=3)]
    seen = []
    rollouts = sample(plan, engine(COIN), n=2, progress=lambda r, t: seen.append((r, t)))
    assert [(r.problem_id, r.temperature) for r in rollouts] == [(1, 0.2), (2, 1), (2, 1), (3, 1), (3, 1)]
    assert seen == sorted(seen)
    assert seen[-1] == (5, sum(r.n_tokens for r in rollouts))


def test_a_plan_sample_cannot_follow_is_refused():
    with pytest.raises(ValueError, match="no settings of `sample`"):
        sample([Plan(problem_id=1, params='{"temprature": 1}')], engine(COIN))
    with pytest.raises(ValueError, match="starts inside rollout 4"):
        sample([Plan(problem_id=1, start_rollout_id=4)], engine(COIN))


def test_a_failed_completion_is_a_row():
    (rollout,) = sample([Plan(problem_id=1)], engine({"match": "c", "replies": [{"text": "", "error": "gone"}]}), n=1)
    assert (rollout.finish_reason, rollout.error, rollout.completion) == ("error", "gone", "")
