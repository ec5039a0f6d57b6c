"""What every plugin promises, checked on all of them: the built-in ones and one that somebody else packaged."""

import copy
import dataclasses
import inspect
import random
import sys

import pytest
from contract_world import settings, world
from plugin_rows import called
from pydantic import ValidationError

from strop.core.engine import Completion, Request, Sampling
from strop.core.plugin import STAGES, Returned, Task, Verdict
from strop.core.registry import Plugin, builtin_names, find
from strop.storage.tables import Decision, Problem, Rollout, Row, Score, TokenLogps

OURS = [(stage, name) for stage in STAGES for name in builtin_names(stage)]
THEIRS = [("filter", "shortest")]
ELSEWHERE = {"base", "objective"}
"""Kinds whose plugins make or weigh tensors; their files have tests of their own."""
ROWS = [(s, n) for s, n in OURS + THEIRS if STAGES[s].returns]
HEAVY = {("engine", "hf"), ("engine", "vllm"), ("engine", "openai")}
"""Need a checkpoint or a server; see test_hf_engine, test_vllm_engine and test_openai_engine."""


def named(cases):
    return pytest.mark.parametrize("which", cases, ids=["-".join(c) for c in cases])


@pytest.fixture
def plugin(which, request, monkeypatch) -> Plugin:
    if which in THEIRS:
        monkeypatch.syspath_prepend(request.getfixturevalue("third_party"))
    return find(*which)


@pytest.fixture(scope="module")
def made():
    return world()


def handles(plugin: Plugin, made: dict, **changes) -> dict:
    """The handles of its stage, shaped as that stage has them, in copies of their own."""
    found = {**made, **changes}
    if plugin.stage in ("select", "synthesize"):
        found["problems"] = list(found["problems"].values())
    data = {name: found[name] for name in STAGES[plugin.stage].handles if name in found}
    shared = {"engine", "tasks", "progress", "sample_seed", "verifiers"}
    return {name: value if name in shared else copy.deepcopy(value) for name, value in data.items()}


def run(plugin: Plugin, given: dict, tmp_path) -> list[Row]:
    config = plugin.configure(settings(plugin.stage, plugin.name, tmp_path))
    result = called(plugin, config, given)
    return list(result.rows if isinstance(result, Returned) else result)


@named(OURS + THEIRS)
def test_it_says_what_it_is_and_where_it_comes_from(which, plugin):
    module = sys.modules[plugin.function.__module__]
    assert module.__doc__.split("\n")[0].strip().endswith((".", ":"))
    assert "\nSource: " in module.__doc__, f"{module.__name__}: the docstring needs a line 'Source: ...'"
    assert plugin.function.__doc__
    assert plugin.function.__name__ == plugin.name == module.__name__.rsplit(".", 1)[-1]
    assert plugin.mark.config.__name__ == "".join(part.capitalize() for part in plugin.name.split("_"))
    assert plugin.mark.version


@named(OURS + THEIRS)
def test_its_config_is_frozen_strict_and_documented(which, plugin, tmp_path):
    config = plugin.mark.config
    assert config.model_config["frozen"]
    for name, field in config.model_fields.items():
        assert field.description, f"{config.__name__}.{name} needs a docstring"
    valid = settings(*which, tmp_path)
    with pytest.raises(ValidationError, match="no_such_key"):
        plugin.configure({**valid, "no_such_key": 1})
    made = plugin.configure(valid)
    assert plugin.configure(made.model_dump()) == made
    for name in config.model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(made, name, 1)


@named(OURS + THEIRS)
def test_it_asks_for_handles_its_stage_has(which, plugin):
    assert set(plugin.mark.handles) <= set(STAGES[plugin.stage].handles)
    parameters = list(inspect.signature(plugin.function).parameters)
    assert tuple(parameters[1:]) == plugin.mark.handles


@named(ROWS)
def test_the_same_inputs_give_the_same_rows_and_stay_as_they_were(which, plugin, made, tmp_path):
    given = handles(plugin, made)
    before = handles(plugin, made)
    first, second = (run(plugin, given, tmp_path) for _ in range(2))
    assert first
    assert first == second
    for name, value in before.items():
        assert given[name] == value, f"{plugin.name} changed its handle {name!r}"


@named(ROWS)
def test_its_rows_are_what_its_stage_may_write(which, plugin, made, tmp_path):
    rows = run(plugin, handles(plugin, made), tmp_path)
    for row in rows:
        assert isinstance(row, STAGES[plugin.stage].returns)
        assert (row.run_id, row.round, row.stage_run_id) == ("", 0, 0), "stamped by the commit, never by a plugin"
        if isinstance(row, Score):
            assert row.verdict in ("pass", "fail", "error", None)
            assert (row.value is None) == (row.verdict == "error")
        if isinstance(row, Problem):
            assert row.parents
            assert row.split == "train"
    if plugin.stage in ("verify", "filter"):
        said = [row.subject_id for row in rows if isinstance(row, Score | Decision)]
        assert said == [r.rollout_id for r in made["rollouts"]]


@named([(s, n) for s, n in ROWS if s != "generate"])
def test_the_order_of_its_inputs_does_not_matter(which, plugin, made, tmp_path):
    given = handles(plugin, made)
    mixed = handles(plugin, made)
    for value in mixed.values():
        if isinstance(value, list):
            random.Random(3).shuffle(value)
    straight, turned = (run(plugin, g, tmp_path) for g in (given, mixed))
    if plugin.stage in ("verify", "filter"):
        straight, turned = (sorted(rows, key=_about) for rows in (straight, turned))
    assert straight == turned


def _about(row):
    return row.TABLE, row.rollout_id if isinstance(row, TokenLogps) else row.subject_id


@named(ROWS)
def test_of_nothing_it_makes_nothing_or_says_why(which, plugin, made, tmp_path):
    empty = {name: type(value)() for name, value in made.items() if isinstance(value, list | dict)}
    given = {**handles(plugin, made), **{n: v for n, v in handles(plugin, made, **empty).items() if n != "tasks"}}
    try:
        rows, said = run(plugin, given, tmp_path), "nothing"
    except ValueError as error:
        rows, said = [], str(error)
    assert rows == []
    assert said


@named([(s, n) for s, n in ROWS if s in ("verify", "filter", "build", "evaluate")])
def test_it_bears_errors_truncation_and_missing_references(which, plugin, made, tmp_path):
    problem_id = made["rollouts"][0].problem_id
    broken = [
        dataclasses.replace(r, completion="", token_ids=[], logps=[], n_tokens=0, finish_reason="error", error="gone")
        if r.problem_id == problem_id
        else dataclasses.replace(r, finish_reason="length")
        if i % 4 == 0
        else r
        for i, r in enumerate(made["rollouts"])
    ]
    ids = {r.rollout_id for r in broken if r.finish_reason == "error"}
    scores = [
        dataclasses.replace(s, verdict="error", value=None, answer=None) if s.subject_id in ids else s
        for s in made["scores"]
    ]
    problems = {
        i: dataclasses.replace(p, reference=None) if i == problem_id + 1 else p for i, p in made["problems"].items()
    }
    rows = run(plugin, handles(plugin, made, rollouts=broken, scores=scores, problems=problems), tmp_path)
    for row in rows:
        if isinstance(row, Score) and row.subject_id in ids:
            assert (row.verdict, row.value) == ("error", None)
            assert row.reason
        if plugin.stage == "filter" and row.subject_id in ids:
            assert not row.keep
        if plugin.stage == "build":
            assert not {row.rollout_id, row.rejected_rollout_id} & ids


@named([c for c in OURS if c[0] == "task"])
def test_a_task_has_two_splits_that_share_no_prompt_and_is_the_same_every_time(which, plugin, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    config = plugin.configure(settings(*which, tmp_path))
    task, again = (plugin.call(config, {"seed": 4}) for _ in range(2))
    assert isinstance(task, Task)
    problems = task.problems()
    assert problems == task.problems() == again.problems()
    train, heldout = ({p.prompt for p in problems if p.split == s} for s in ("train", "heldout"))
    assert train
    assert heldout
    assert not train & heldout
    problems.clear()
    assert task.problems(), "the list handed out is the caller's own"
    if task.more is not None:
        first = again.problems()[0]
        more = task.more(first.category, first.level, 3, 9)
        assert more == again.more(first.category, first.level, 3, 9)
        assert 0 < len(more) <= 3
        assert not {p.prompt for p in more} & heldout
    if task.score is not None:
        scored = task.score(again.problems()[0], "nonsense")
        assert scored.verdict == "fail"


@named([c for c in OURS if c[0] == "engine" and c not in HEAVY])
def test_an_engine_samples_by_seed_alone(which, plugin, made, tmp_path):
    engine = plugin.call(plugin.configure(settings(*which, tmp_path)), {"directory": tmp_path, "threads": 1})
    requests = [Request(prompt="1+1=", seeds=(1, 2, 3)), Request(prompt="2+2=", seeds=(4,))]
    first = engine.sample(requests, Sampling(max_tokens=8))
    assert [len(c) for c in first] == [3, 1]
    assert engine.sample(requests[::-1], Sampling(max_tokens=8)) == first[::-1]
    for completion in (c for found in first for c in found):
        assert isinstance(completion, Completion)
        assert len(completion.token_ids) == len(completion.logps)
        assert all(logp <= 0 for logp in completion.logps)
    assert engine.capabilities <= {"sample", "score", "next_logits", "hidden"}
    engine.close()


@named([c for c in OURS if c[0] == "gate"])
def test_a_gate_gives_the_same_verdict_with_its_reason_whatever_the_order(which, plugin, made, tmp_path):
    config = plugin.configure(settings(*which, tmp_path))
    given = handles(plugin, made)
    verdict = plugin.call(config, given)
    assert isinstance(verdict, Verdict)
    assert verdict.action in ("promote", "keep", "roll_back", "stop")
    assert verdict.reason
    champion = dataclasses.replace(made["champion"], pass_rates=dict(reversed(made["champion"].pass_rates.items())))
    assert plugin.call(config, {**given, "champion": champion}) == verdict


def test_every_kind_of_stage_is_covered():
    kinds = {"task", "engine", "gate"} | {s for s, _ in ROWS} | ELSEWHERE
    assert {s for s, _ in OURS} <= kinds, "a new kind of stage needs its own checks here"


def test_rollouts_of_a_search_may_come_with_scores():
    assert STAGES["generate"].returns == (Rollout, Score)
