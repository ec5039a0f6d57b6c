"""Evaluations saved by verifiers: `traces.jsonl` (v1, an episode a line) and `results.jsonl` (before it).

Source: verifiers (Prime Intellect), `verifiers/v1/cli/output.py`, `trace.py`, `graph.py`; `legacy/utils/save_utils.py`.
A trace is one rollout: the messages up to the first one that was sampled are the prompt, all later ones of the final
branch are the turns of the completion, and what the policy wrote itself are its `loss_spans`. Each reward and metric
is a graded score; their weighted sum is the score `reward`, which passes from `pass_threshold` on. An error is a
rollout that ended in 'error' and a score with the verdict 'error'. Reasoning, tool calls, other branches, and token
ids where there are several sampled turns stay in `detail`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from strop.core.imports.lines import Wrong, compact, content, messages, no_files, records, text, value
from strop.core.imports.sample import Complain, Format, Options, Sample
from strop.storage.ids import digest
from strop.storage.tables import Problem, Rollout, Score

TRUNCATED = frozenset({"max_turns", "max_input_tokens", "max_output_tokens", "max_total_tokens", "context_length"})
THRESHOLD = 0.5
"""verifiers' own default for what counts as solved in its pass@k."""
_OF_LEGACY = frozenset(
    {"example_id", "prompt", "completion", "answer", "info", "task", "reward", "error", "metrics", "is_truncated"}
)
_PLAIN = frozenset({"role", "content"})


def find(folder: Path) -> list[Path]:
    """The saved traces or results below a folder. Raises DataError when there are none."""
    for name in ("traces.jsonl", "results.jsonl"):
        if found := sorted(folder.rglob(name)):
            return found
    raise no_files(folder, "traces.jsonl or results.jsonl")


def read(files: Sequence[Path], options: Options, complain: Complain) -> Iterator[Sample]:
    """A sample a trace, or a result, in the order of the files."""
    for path in files:
        about = _metadata(path)
        for number, found in records(path, complain):
            try:
                samples = list(_samples(found, about, path, options))
            except (Wrong, KeyError, TypeError, IndexError, AttributeError) as error:
                said = str(error) if isinstance(error, Wrong) else f"no trace that is known: {error!r}"
                complain(path, number, said)
                continue
            yield from samples


def _metadata(path: Path) -> dict[str, Any]:
    """`metadata.json` beside a results file, where there is one."""
    try:
        found = json.loads((path.parent / "metadata.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _samples(found: dict[str, Any], about: dict[str, Any], path: Path, options: Options) -> Iterator[Sample]:
    if "traces" in found:
        env = str((found.get("env") or {}).get("id") or "")
        for trace in found["traces"]:
            yield _trace(trace, env, options)
        if not found["traces"]:  # it failed before anything was sampled: an error is a rollout, too
            yield _trace({"task": found["task"], "errors": found.get("errors"), "id": found.get("id")}, env, options)
    elif "nodes" in found:
        yield _trace(found, "", options)
    elif "example_id" in found:
        yield _legacy(found, about, path, options)
    else:
        raise Wrong("neither an episode (`traces`), a trace (`nodes`) nor a result (`example_id`)")


def _trace(trace: dict[str, Any], env: str, options: Options) -> Sample:
    task, data = trace["task"], trace["task"]["data"]
    path, others = _branch(trace.get("nodes") or [])
    sampled = [i for i, node in enumerate(path) if node.get("sampled")]
    first = sampled[0] if sampled else len(path)
    asked = [node["message"] for node in path[:first]] or _asked(data)
    problem = _problem(asked, data, options.task or env or str(task.get("type") or "verifiers"), options)
    errors = [error for error in trace.get("errors") or [] if error]
    failed = not trace.get("ok", not errors)
    turns = [(node["message"], bool(node.get("sampled"))) for node in path[first:]]
    agent = trace.get("agent") or {}
    call = next((c for c in reversed(trace.get("calls") or []) if not c.get("error")), {})
    ids, logps = _tokens(path, sampled)
    used = [c["usage"]["completion_tokens"] for c in trace.get("calls") or [] if c.get("usage")]
    truncated = trace.get("stop_condition") in TRUNCATED or call.get("finish_reason") == "length"
    rest = {
        "trace": trace.get("id"),
        "agent": agent.get("name"),
        "info": trace.get("info") or None,
        "stop_condition": trace.get("stop_condition"),
        "branches": others or None,
        "nodes": [_node_tokens(node) for node in path] if len(sampled) > 1 else None,
    }
    rollout = _rollout(problem, turns, failed, truncated, errors, rest)
    settings = call.get("sampling") or (agent.get("config") or {}).get("sampling") or {}
    return Sample(
        problem_ref=(problem.task, task.get("key") or task.get("hash") or digest(problem.prompt, problem.reference)),
        problem=problem,
        rollout=_with(
            rollout,
            n_tokens=sum(used) or len(ids or ()),
            token_ids=ids,
            logps=logps,
            temperature=value(settings.get("temperature"), "DOUBLE", "temperature"),
            top_p=value(settings.get("top_p"), "DOUBLE", "top_p"),
            max_tokens=value(settings.get("max_tokens"), "INTEGER", "max_tokens"),
        ),
        scores=tuple(_scores(trace.get("rewards") or {}, trace.get("metrics") or {}, failed, errors, options)),
        policy=options.model or (agent.get("config") or {}).get("model") or call.get("model") or "external",
    )


def _branch(nodes: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]:
    """The messages of the final branch from its root, and the ends of the others that it does not hold."""
    parents = {node.get("parent") for node in nodes}
    paths = []
    for leaf in (i for i in range(len(nodes)) if i not in parents):
        path: list[int] = []
        at: int | None = leaf
        while at is not None:
            if at in path:
                raise Wrong(f"node {at} is its own ancestor")
            path.insert(0, at)
            at = nodes[at].get("parent")
        paths.append(path)
    if not paths:
        return [], []
    main = set(paths[-1])
    return [nodes[i] for i in paths[-1]], [[nodes[i] for i in path if i not in main] for path in paths[:-1]]


def _asked(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the task asks, where no message was recorded."""
    prompt = data.get("prompt")
    given = [{"role": "user", "content": prompt or ""}] if not isinstance(prompt, list) else messages(prompt, "prompt")
    system = data.get("system_prompt")
    return [{"role": "system", "content": system}, *given] if system else given


def _problem(asked: list[dict[str, Any]], data: Mapping[str, Any], task: str, options: Options) -> Problem:
    chat = [{"role": str(m["role"]), "content": content(m)} for m in asked]
    alone = len(chat) == 1 and chat[0]["role"] == "user"
    prompt = data.get("prompt")
    rest = {k: v for k, v in data.items() if k not in ("prompt", "system_prompt", "answer") and v not in (None, [], {})}
    return Problem(
        task=task,
        split=options.split or "train",
        category=None,
        prompt=prompt if isinstance(prompt, str) and prompt else "\n\n".join(m["content"] for m in chat),
        messages=None if alone else json.dumps(chat, ensure_ascii=False),
        reference=text(data, "answer"),
        aux=compact(rest),
        origin="import",
    )


def _rollout(
    problem: Problem,
    turns: list[tuple[dict[str, Any], bool]],
    failed: bool,
    truncated: bool,
    errors: list[dict[str, Any]],
    rest: dict[str, Any],
) -> Rollout:
    """The turns as one text, with where each begins and which of it the policy wrote."""
    completion, offsets, spans = "", [], []
    for message, sampled in turns:
        start = len(completion)
        offsets.append(start)
        completion += content(message)
        if sampled:
            spans += [start, len(completion)]
    beyond = [{key: item for key, item in message.items() if key not in _PLAIN and item} for message, _ in turns]
    if any(beyond):
        rest = {**rest, "turns": beyond}
    several = len(turns) > 1
    return Rollout(
        problem_id=0,
        sample_index=-1,
        split=problem.split,
        prompt=problem.prompt,
        completion=completion,
        turn_offsets=offsets if several else None,
        turn_roles=[str(message["role"]) for message, _ in turns] if several else None,
        loss_spans=spans if several else None,
        finish_reason="error" if failed else "length" if truncated else "stop",
        error=_said(errors) if failed else None,
        detail=compact({key: item for key, item in rest.items() if item is not None}),
    )


def _with(rollout: Rollout, **fields: Any) -> Rollout:
    import dataclasses

    return dataclasses.replace(rollout, **fields)


def _tokens(path: list[dict[str, Any]], sampled: list[int]) -> tuple[list[int] | None, list[float] | None]:
    """The sampled tokens and their log-probabilities, of a single turn: of several they would not make up the text."""
    if len(sampled) != 1 or sampled[0] != len(path) - 1:
        return None, None
    node = path[sampled[0]]
    ids = value(node.get("token_ids") or [], "INTEGER[]", "token_ids")
    logps = value(node.get("logprobs") or [], "FLOAT[]", "logprobs")
    mine = [token for token, mask in zip(ids, node.get("mask") or [], strict=False) if mask]
    return (mine or None), (logps if mine and len(logps) == len(mine) else None)


def _node_tokens(node: dict[str, Any]) -> dict[str, Any]:
    return {key: node[key] for key in ("token_ids", "mask", "logprobs") if node.get(key)}


def _scores(
    rewards: Mapping[str, Any],
    metrics: Mapping[str, Any],
    failed: bool,
    errors: list[dict[str, Any]],
    options: Options,
    total: float | None = None,
    threshold: float = THRESHOLD,
) -> Iterator[Score]:
    """The sum first, then its parts. A failed rollout has an error in place of a sum."""
    parts = {}
    for name, reward in rewards.items():
        given = reward if isinstance(reward, Mapping) or reward is None else {"score": reward}
        parts[name] = given and (value(given["score"], "DOUBLE", name), value(given.get("weight"), "DOUBLE", name))
    if failed:
        yield Score(subject_id=0, scorer="reward", scorer_version="import", verdict="error", reason=_said(errors))
    elif parts or total is not None:
        known = [(s or 0.0) * (1.0 if w is None else w) for s, w in filter(None, parts.values())]
        sum_ = total if total is not None else sum(known)
        least = options.pass_threshold if options.pass_threshold is not None else threshold
        verdict = "pass" if sum_ >= least else "fail"
        yield Score(subject_id=0, scorer="reward", scorer_version="import", verdict=verdict, value=sum_)
    for name, part in parts.items():
        detail = compact({"weight": part[1]}) if part and part[1] not in (None, 1.0) else None
        yield _graded(f"reward.{name}", part[0] if part else None, detail)
    for name, metric in metrics.items():
        yield _graded(f"metric.{name}", value(metric, "DOUBLE", name))


def _graded(scorer: str, found: float | None, detail: str | None = None) -> Score:
    """A number without a verdict; one that was never computed is an error."""
    verdict = "error" if found is None else None
    reason = "scoring did not run" if found is None else None
    return Score(
        subject_id=0,
        scorer=scorer,
        scorer_version="import",
        verdict=verdict,
        value=found,
        reason=reason,
        detail=detail,
    )


def _said(errors: Sequence[Any]) -> str:
    last = errors[-1] if errors else None
    if isinstance(last, Mapping):
        kind, message = last.get("type") or last.get("error"), last.get("message") or last.get("error_chain_repr")
        return ": ".join(str(part) for part in (kind, message) if part) or "no reason given"
    return str(last) if last else "no reason given"


def _legacy(found: dict[str, Any], about: dict[str, Any], path: Path, options: Options) -> Sample:
    prompt, completion = found.get("prompt"), found.get("completion")
    asked = messages(prompt, "prompt") if isinstance(prompt, list) else [{"role": "user", "content": prompt or ""}]
    task = options.task or str(about.get("env_id") or found.get("task") or path.parent.name)
    data = {"answer": found.get("answer"), "info": found.get("info")}
    problem = _problem(asked, data, task, options)
    said = completion if isinstance(completion, list) else [{"role": "assistant", "content": completion or ""}]
    turns = [(message, message["role"] == "assistant") for message in messages(said, "completion")]
    error = found.get("error")
    metrics = found.get("metrics") or {}
    rest = {key: item for key, item in found.items() if key not in _OF_LEGACY and key not in metrics}
    rollout = _rollout(problem, turns, bool(error), bool(found.get("is_truncated")), [error], rest)
    usage, settings = found.get("token_usage") or {}, about.get("sampling_args") or {}
    threshold = about.get("pass_threshold")
    return Sample(
        problem_ref=(task, str(found["example_id"])),
        problem=problem,
        rollout=_with(
            rollout,
            n_tokens=int(value(usage.get("output_tokens"), "DOUBLE", "output_tokens") or 0),
            temperature=value(settings.get("temperature"), "DOUBLE", "temperature"),
            top_p=value(settings.get("top_p"), "DOUBLE", "top_p"),
            max_tokens=value(settings.get("max_tokens"), "INTEGER", "max_tokens"),
        ),
        scores=tuple(
            _scores(
                {},
                metrics,
                bool(error),
                [error],
                options,
                value(found.get("reward"), "DOUBLE", "reward"),
                THRESHOLD if threshold is None else float(threshold),
            )
        ),
        policy=options.model or str(about.get("model") or "external"),
    )


FORMAT = Format("verifiers", "verifiers' traces.jsonl or results.jsonl", find, read)
