"""What an OpenAI-compatible server is sent and answers; vLLM, SGLang and llama.cpp have fields of their own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from strop.core.engine import Sampling

DIALECTS = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llamacpp"}
"""`owned_by` of /v1/models -> a server that takes more than OpenAI's own fields."""
SEEDS = (1 << 63) - 1
OFF = -1
"""`top_k` that is understood as off by all three."""
WORDS = "1 + 1 ="
"""A prompt that means nothing."""
PATHS = {"completions": "completions", "chat": "chat/completions"}


class MalformedError(Exception):
    """An answer that is no completion."""


@dataclass(frozen=True, slots=True)
class Can:
    """What a server was found to do."""

    more: bool = False
    """It takes top_k, min_p, stop_token_ids and the like."""
    ids: bool = False
    """Prompts may be token ids."""
    token_ids: bool = False
    """It says which tokens it sampled."""
    logps: str | None = None
    """Distribution its log-probabilities are of: 'sampled', 'tempered', 'plain' (neither tempered nor truncated)."""
    score: str | None = None
    """How it scores a given text: 'prompt_logprobs', 'echo', or a token at a time as 'labels'."""
    limit: str = "max_tokens"
    """Its name for the longest completion."""
    plain_logprobs: int | None = None
    """Value of `logprobs` that it was asked for; None = it refuses to be asked."""

    def exact(self, sampling: Sampling) -> bool:
        """Whether its log-probabilities are those of the distribution that was sampled from."""
        truncated = sampling.top_p < 1 or sampling.top_k > 0 or sampling.min_p > 0
        if self.logps == "sampled" or sampling.temperature == 0:
            return self.logps is not None or sampling.temperature == 0
        if self.logps == "tempered":
            return not truncated
        return self.logps == "plain" and not truncated and sampling.temperature == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One completion as a server gave it."""

    text: str
    finish: str
    ids: list[int] | None = None
    logps: list[float] | None = None
    prompt_tokens: int = 0
    """Billed for it; of several choices of one request the first is billed for all."""
    cached_tokens: int = 0
    """Of those, at the lower price."""
    tokens: int = 0
    """Sampled, as the server counts them."""
    latency_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """One request in our own words."""

    prompt: str
    """As rendered; for chat JSON messages, or the words of a user."""
    ids: list[int] | None
    """Of the prompt, where the policy's tokenizer is known."""
    limit: int
    """Most tokens to sample."""
    seed: int | None
    """None = the server's own."""
    n: int = 1
    sampling: Sampling
    ends: Sequence[int] = field(default=())
    """Tokens that end a completion beside those the server knows of."""


def body_of(wish: Wish, *, model: str, endpoint: str, can: Can, extra: dict[str, Any]) -> dict[str, Any]:
    """The request's body. `extra` wins; a null in it removes a field."""
    sampling = wish.sampling
    body: dict[str, Any] = {"model": model, can.limit: wish.limit, "temperature": sampling.temperature}
    if endpoint == "chat":
        body["messages"] = messages_of(wish.prompt)
    else:
        body["prompt"] = wish.ids if can.ids and wish.ids is not None else wish.prompt
    body["top_p"] = sampling.top_p
    if wish.seed is not None:
        body["seed"] = wish.seed & SEEDS
    if wish.n > 1:
        body["n"] = wish.n
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if can.plain_logprobs is not None:
        body["logprobs"] = True if endpoint == "chat" else can.plain_logprobs
    if can.more:
        body |= {
            "top_k": sampling.top_k or OFF,
            "min_p": sampling.min_p,
            "repetition_penalty": 1.0,  # else a model's generation_config.json may set another
            "return_token_ids": True,
        }
        if ends := sorted({*wish.ends, *sampling.stop_token_ids}):
            body["stop_token_ids"] = ends
    return {key: value for key, value in (body | extra).items() if value is not None}


def messages_of(prompt: str) -> list[dict[str, str]]:
    """The chat that a rendered prompt stands for."""
    if prompt.startswith("["):
        try:
            found = json.loads(prompt)
        except ValueError:
            found = None
        if found and isinstance(found, list) and all(isinstance(m, dict) and "role" in m for m in found):
            return found
    return [{"role": "user", "content": prompt}]


def replies_of(answer: Any, n: int, latency_s: float = 0.0) -> list[Reply]:
    """The `n` completions of an answer. Raises MalformedError when it is none, or has fewer."""
    try:
        choices = sorted(answer["choices"], key=lambda choice: choice.get("index", 0))
        usage = answer.get("usage") or {}
        replies = [_reply(choice) for choice in choices]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MalformedError(f"no completion in the answer ({type(error).__name__}: {error})") from None
    if len(replies) < n:
        raise MalformedError(f"{len(replies)} completions where {n} were asked for")
    prompt, total = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    cached = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
    made = []
    for i, reply in enumerate(replies[:n]):
        share = total // n + (i < total % n)
        made.append(
            Reply(
                text=reply.text,
                finish=reply.finish,
                ids=reply.ids,
                logps=reply.logps,
                prompt_tokens=prompt if i == 0 else 0,
                cached_tokens=cached if i == 0 else 0,
                tokens=share if reply.ids is None else len(reply.ids),
                latency_s=latency_s,
            )
        )
    return made


def _reply(choice: dict[str, Any]) -> Reply:
    text = choice["text"] if "text" in choice else choice["message"].get("content")
    logprobs = choice.get("logprobs") or {}
    logps: list[float] | None
    if logprobs.get("content"):  # chat, and llama.cpp everywhere
        logps = [float(token["logprob"]) for token in logprobs["content"]]
        ids = [token.get("id") for token in logprobs["content"]]
    else:
        given = logprobs.get("token_logprobs")
        logps = None if given is None or None in given else [float(logp) for logp in given]
        ids = []
    known = choice.get("token_ids")
    if known is None and ids and all(isinstance(i, int) for i in ids):
        known = ids
    finish = choice.get("finish_reason") or "none"
    return Reply(text=text or "", finish=str(finish), ids=None if known is None else list(map(int, known)), logps=logps)


def top_of(answer: Any) -> dict[str, float]:
    """Log-probabilities of the likeliest first tokens, the sampled one included, by the server's name for a token."""
    logprobs = answer["choices"][0].get("logprobs") or {}
    if logprobs.get("content"):
        first = logprobs["content"][0]
        return {str(t["token"]): float(t["logprob"]) for t in [*first.get("top_logprobs", []), first]}
    if not logprobs.get("tokens"):
        return {}
    top = {str(token): float(logp) for token, logp in ((logprobs.get("top_logprobs") or [{}])[0] or {}).items()}
    return {**top, str(logprobs["tokens"][0]): float(logprobs["token_logprobs"][0])}


def given_logps(answer: Any, how: str, ids: Sequence[int], first: int) -> list[float]:
    """Log-probabilities of ids[first:] of a scored prompt, or of the one label. Raises MalformedError without any."""
    try:
        choice = answer["choices"][0]
        if how == "labels":
            (label,) = ids
            return [float(choice["logprobs"]["top_logprobs"][0][f"token_id:{label}"])]
        if how == "prompt_logprobs":
            places = choice["prompt_logprobs"]
            return [float(places[at][str(ids[at])]["logprob"]) for at in range(first, len(ids))]
        found = choice["logprobs"]["token_logprobs"]
        if len(found) < len(ids):
            raise MalformedError(f"{len(found)} log-probabilities of {len(ids)} tokens")
        return [float(logp) for logp in found[first : len(ids)]]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise MalformedError(f"no log-probabilities of the prompt ({type(error).__name__}: {error})") from None
