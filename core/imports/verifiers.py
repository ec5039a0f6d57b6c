"""Evaluations saved by verifiers: `traces.jsonl` (v1, an episode a line) and `results.jsonl` (before it).

Source: verifiers (Prime Intellect), `verifiers/v1/cli/output.py`, `trace.py`, `graph.py`; `legacy/utils/save_utils.py`.
A trace is one rollout: the messages up to the first one that was sampled are the prompt, all later ones of the final
branch are the turns of the completion, and what the policy wrote itself are its `loss_spans`. Each reward and metric
is a graded score; their weighted sum is the score `reward`, which passes from `pass_threshold` on. An error is a
rollout that ended in 'error' and a score with the verdict 'error'. Reasoning, tool calls, other branches, and token
ids where there are several sampled turns stay in `detail`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from strop.core.imports.lines import Wrong, messages, no_files, records, value
from strop.core.imports.rewards import scores_of
from strop.core.imports.sample import Complain, Format, Options, Sample
from strop.core.imports.turns import problem_of, rollout_of
from strop.core.imports.verifiers_results import result
from strop.storage.ids import digest

TRUNCATED = frozenset({"max_turns", "max_input_tokens", "max_output_tokens", "max_total_tokens", "context_length"})


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
        yield result(found, about, path, options)
    else:
        raise Wrong("neither an episode (`traces`), a trace (`nodes`) nor a result (`example_id`)")


def _trace(trace: dict[str, Any], env: str, options: Options) -> Sample:
    task, data = trace["task"], trace["task"]["data"]
    path, others = _branch(trace.get("nodes") or [])
    sampled = [i for i, node in enumerate(path) if node.get("sampled")]
    first = sampled[0] if sampled else len(path)
    asked = [node["message"] for node in path[:first]] or _asked(data)
    problem = problem_of(asked, data, options.task or env or str(task.get("type") or "verifiers"), options)
    errors = [error for error in trace.get("errors") or [] if error]
    failed = not trace.get("ok", not errors)
    turns = [(node["message"], bool(node.get("sampled"))) for node in path[first:]]
    agent = trace.get("agent") or {}
    call: dict[str, Any] = next((c for c in reversed(trace.get("calls") or []) if not c.get("error")), {})
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
    rollout = rollout_of(problem, turns, failed, truncated, errors, rest)
    settings = call.get("sampling") or (agent.get("config") or {}).get("sampling") or {}
    return Sample(
        problem_ref=(problem.task, task.get("key") or task.get("hash") or digest(problem.prompt, problem.reference)),
        problem=problem,
        rollout=dataclasses.replace(
            rollout,
            n_tokens=sum(used) or len(ids or ()),
            token_ids=ids,
            logps=logps,
            temperature=value(settings.get("temperature"), "DOUBLE", "temperature"),
            top_p=value(settings.get("top_p"), "DOUBLE", "top_p"),
            max_tokens=value(settings.get("max_tokens"), "INTEGER", "max_tokens"),
        ),
        scores=tuple(scores_of(trace.get("rewards") or {}, trace.get("metrics") or {}, failed, errors, options)),
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


FORMAT = Format("verifiers", "verifiers' traces.jsonl or results.jsonl", find, read)
