"""Finds out what a server can do, with a handful of one-token requests, before anything rests on it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from strop.core.engine import Sampling
from strop.plugins.engines._openai_pool import RefusedError
from strop.plugins.engines._openai_wire import WORDS, Can, MalformedError, Wish, given_logps, replies_of, top_of
from strop.storage.errors import StageError

Ask = Callable[[Wish, Can, dict[str, Any]], Awaitable[Any]]
"""The answer to a wish from a server of those abilities, with further fields in the body."""
TOP = 5
TOLD_APART = 1e-2
"""Nats by which two log-probabilities must differ to tell one distribution from another."""
NARROW = Sampling(top_p=1e-3, max_tokens=1)
"""One token is left of every distribution: if it is reported as certain, truncation is in the numbers."""


async def probe(ask: Ask, *, endpoint: str, ids: list[int] | None, more: bool, vllm: bool, lora: bool) -> Can:
    """`ids` are those of `WORDS`, where the policy's tokenizer is known; `lora`: whether the server has adapters.

    Raises StageError when not even a plain request is taken.
    """
    wish = Wish(prompt=WORDS, ids=ids, limit=1, seed=None, sampling=Sampling(max_tokens=1))
    top = {"logprobs": True, "top_logprobs": TOP} if endpoint == "chat" else {"logprobs": TOP}
    can, answer = await _plain(ask, wish, Can(more=more))
    if endpoint != "chat" and ids is not None and await _takes(ask, wish, replace(can, ids=True), {}):
        can = replace(can, ids=True)
    likely = await _takes(ask, wish, can, top)
    if likely is not None and top_of(likely):
        answer = likely
        can = replace(can, plain_logprobs=0 if vllm else 1)
        answer = await ask(wish, can, {})
        can = replace(can, logps=await _distribution(ask, wish, can, top, top_of(likely)))
    can = replace(can, token_ids=replies_of(answer, 1)[0].ids is not None)
    if can.ids and ids is not None and len(ids) > 1:
        can = replace(
            can, score=await _scorer(ask, wish, can, ids, ["labels"] if lora else ["prompt_logprobs", "echo"])
        )
    return can


async def _plain(ask: Ask, wish: Wish, can: Can) -> tuple[Can, Any]:
    said = ""
    for limit in ("max_tokens", "max_completion_tokens"):
        try:
            return replace(can, limit=limit), await ask(wish, replace(can, limit=limit), {})
        except RefusedError as error:
            said = said or str(error)
            if "max_completion_tokens" not in str(error):
                break
    raise StageError(
        f"the server refuses a plain request ({said}): set what it wants, or null for what it does not take, in "
        "`extra`, and choose the `endpoint` it has, completions or chat"
    )


async def _takes(ask: Ask, wish: Wish, can: Can, more: dict[str, Any]) -> Any:
    try:
        return await ask(wish, can, more)
    except RefusedError:
        return None


async def _distribution(ask: Ask, wish: Wish, can: Can, top: dict[str, Any], plain: dict[str, float]) -> str:
    """Which distribution the log-probabilities are of; 'plain' where that cannot be told."""
    cold = await _takes(ask, replace(wish, sampling=Sampling(temperature=0.5, max_tokens=1)), can, top)
    cooled = top_of(cold) if cold is not None else {}
    shared = sorted(set(plain) & set(cooled), key=lambda token: -plain[token])
    gaps = [(plain[shared[0]] - plain[t], cooled[shared[0]] - cooled[t]) for t in shared[1:]]
    gaps = [(before, after) for before, after in gaps if TOLD_APART < before < 50]
    if not gaps or sum(abs(after - 2 * before) - abs(after - before) for before, after in gaps) >= 0:
        return "plain"
    narrow = await _takes(ask, replace(wish, sampling=NARROW), can, top)
    certain = max(top_of(narrow).values(), default=-1.0) if narrow is not None else -1.0
    return "sampled" if max(plain.values()) < -TOLD_APART and certain > -TOLD_APART / 10 else "tempered"


async def _scorer(ask: Ask, wish: Wish, can: Can, ids: list[int], ways: Sequence[str]) -> str | None:
    """The first way to score that works. vLLM with adapters is not asked for logps of a prompt: it may die of that."""
    for how in ways:
        labels = {"logprob_token_ids": ids[:1]} if how == "labels" else {}
        answer = await _takes(ask, wish, can, {**SCORERS[how], **labels})
        try:
            given = ids[:1] if labels else ids
            if answer is not None and all(logp <= 0 for logp in given_logps(answer, how, given, 0 if labels else 1)):
                return how
        except MalformedError:
            continue
    return None


SCORERS: dict[str, dict[str, Any]] = {
    "prompt_logprobs": {"prompt_logprobs": 0},
    "labels": {"logprobs": 1, "return_tokens_as_token_ids": True},
    "echo": {"echo": True, "logprobs": 1, "max_tokens": 0},
}
"""Fields that make a server give the log-probabilities of a prompt, or of `logprob_token_ids` as the next token."""
