"""Rollouts as a loop on a small language model writes them, made with numpy: 50,000 in a second.

512 tokens with their log-probabilities, a completion of 1500 characters of words with the frequencies of a language,
8 rollouts a problem. `narrow` rollouts have a completion of 60 characters and neither tokens nor log-probabilities.
"""

from __future__ import annotations

import functools

import numpy as np
import pyarrow as pa

from strop.storage.parquet import schema
from strop.storage.tables import PolicyExample, Problem, Rollout, Row, Score

TOKENS = 512
PER_PROBLEM = 8
PER_ROUND = 100_000
WORD_BYTES = 6
POLICY = 1 << 50
PROBLEM, SCORE, EXAMPLE = 1 << 51, 1 << 52, 1 << 53


def rollouts(first: int, n: int, *, narrow: bool = False) -> pa.Table:
    """n rollouts with ids from `first`; round, problem and policy follow from the id."""
    dice = np.random.default_rng(first)
    ids = np.arange(first, first + n)
    rounds = ids // PER_ROUND
    known = {
        "rollout_id": ids,
        "problem_id": PROBLEM + ids // PER_PROBLEM,
        "policy_id": POLICY + rounds,
        "group_id": ids // PER_PROBLEM,
        "sample_index": ids % PER_PROBLEM,
        "split": _same("train", n),
        "prompt": pa.array([f"Problem {i}: what is {i} + {i * 7}?" for i in (ids // PER_PROBLEM).tolist()]),
        "completion": _texts(dice, n, 60 if narrow else 1500),
        "n_tokens": np.full(n, TOKENS),
        "entropy": dice.random(n),
        "self_certainty": dice.random(n) * 9,
        "finish_reason": _same("stop", n),
        "temperature": np.full(n, 0.8),
        "top_p": np.full(n, 1.0),
        "max_tokens": np.full(n, TOKENS),
        "engine": _same("hf", n),
        "seed": dice.integers(0, 2**62, n),
        "run_id": _same("bench-s0", n),
        "round": rounds,
        "stage_run_id": ids >> 20,
    }
    if not narrow:
        offsets = np.arange(0, (n + 1) * TOKENS, TOKENS, dtype=np.int32)
        tokens = _ranks(dice, 1.2, 32_000, n * TOKENS)
        known["token_ids"] = pa.ListArray.from_arrays(offsets, pa.array(tokens))
        logps = -dice.exponential(0.5, n * TOKENS).astype(np.float32)
        known["logps"] = pa.ListArray.from_arrays(offsets, pa.array(logps))
    return _table(Rollout, n, known)


def scores(first: int, n: int) -> pa.Table:
    """One verdict for each of those rollouts; problems differ in how often they are solved."""
    dice = np.random.default_rng(first + 1)
    ids = np.arange(first, first + n)
    problems = ids // PER_PROBLEM
    passed = dice.random(n) < ((problems * 2654435761) % 1000) / 1000
    known = {
        "score_id": SCORE + ids,
        "subject_kind": _same("rollout", n),
        "subject_id": ids,
        "problem_id": PROBLEM + problems,
        "scorer": _same("answer", n),
        "scorer_version": _same("1", n),
        "verdict": pa.array(np.where(passed, "pass", "fail")),
        "value": passed.astype(np.float64),
        "answer": pa.array(dice.integers(0, 1000, n)).cast(pa.string()),
        "run_id": _same("bench-s0", n),
        "round": ids // PER_ROUND,
        "stage_run_id": ids >> 20,
    }
    return _table(Score, n, known)


def problems(n: int) -> pa.Table:
    """The problems of the first rollouts."""
    ids = np.arange(n)
    known = {
        "problem_id": PROBLEM + ids,
        "problem_key": pa.array([f"{i:032x}" for i in range(n)]),
        "task": _same("sums", n),
        "split": _same("train", n),
        "prompt": pa.array([f"Problem {i}: what is {i} + {i * 7}?" for i in range(n)]),
        "reference": pa.array([str(8 * i) for i in range(n)]),
        "parents": pa.array([[]] * n, pa.list_(pa.int64())),
        "origin": _same("task", n),
        "status": _same("active", n),
        "run_id": _same("bench-s0", n),
        "round": np.zeros(n, int),
        "stage_run_id": np.zeros(n, int),
    }
    return _table(Problem, n, known)


def trained_on(first: int, n: int) -> dict[str, pa.Table]:
    """Every tenth of those rollouts as an example, and which policy it trained."""
    from strop.storage.tables import Example

    ids = np.arange(first, first + n, 10)
    m = len(ids)
    shared = {"run_id": _same("bench-s0", m), "round": ids // PER_ROUND, "stage_run_id": ids >> 20}
    examples = {
        "example_id": EXAMPLE + ids,
        "kind": _same("sft", m),
        "builder": _same("rft", m),
        "problem_id": PROBLEM + ids // PER_PROBLEM,
        "prompt": _same("Problem: what is 1 + 7?", m),
        "completion": _texts(np.random.default_rng(first + 2), m, 60),
        "rollout_id": ids,
        "sources": pa.array([[]] * m, pa.list_(pa.int64())),
        **shared,
    }
    edges = {"policy_id": POLICY + 1 + ids // PER_ROUND, "example_id": EXAMPLE + ids, **shared}
    return {"examples": _table(Example, m, examples), "policy_examples": _table(PolicyExample, m, edges)}


def _texts(dice: np.random.Generator, n: int, length: int) -> pa.Array:
    """n texts of words, each word from a list of 8192 by Zipf's law."""
    letters = np.frombuffer(b"etaoinshrdlucmfwypvbgkjqxz", np.uint8)
    words = letters[np.minimum(np.random.default_rng(0).geometric(0.12, (8192, WORD_BYTES)) - 1, 25)]
    words[:, -1] = ord(" ")
    each = length // WORD_BYTES
    chosen = _ranks(dice, 1.15, 8192, n * each)
    offsets = np.arange(0, (n + 1) * each * WORD_BYTES, each * WORD_BYTES, dtype=np.int32)
    text = words[chosen].reshape(-1)
    return pa.StringArray.from_buffers(n, pa.py_buffer(offsets), pa.py_buffer(text))


@functools.cache
def _zipf(exponent: float, known: int) -> np.ndarray:
    """A million ranks below `known` in the shares of Zipf's law: drawing from them is ten times faster than anew."""
    return (np.minimum(np.random.default_rng(1).zipf(exponent, 1 << 20), known) - 1).astype(np.int32)


def _ranks(dice: np.random.Generator, exponent: float, known: int, n: int) -> np.ndarray:
    return _zipf(exponent, known)[dice.integers(0, 1 << 20, n, dtype=np.int32)]


def _same(text: str, n: int) -> pa.Array:
    return pa.array(np.full(n, text))


def _table(row: type[Row], n: int, known: dict[str, object]) -> pa.Table:
    """The columns in the table's order and types; those not known are null."""
    columns = []
    for field in schema(row):
        values = known.get(field.name)
        if values is None:
            columns.append(pa.nulls(n, field.type))
        elif isinstance(values, np.ndarray):
            columns.append(pa.array(values).cast(field.type))
        else:
            columns.append(values.cast(field.type))
    return pa.Table.from_arrays(columns, schema=schema(row))
