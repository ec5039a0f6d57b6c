"""Completions by rule, for tests and for plugin authors: no model, no checkpoint, and it counts what it is asked.

Source: the scripted client of every agent framework's tests; made for Strop.
A token is a character, its id the code point; 0 ends the sequence. Temperature and truncation change nothing: the seed
alone picks among the replies of the first rule whose pattern is found in the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, field_validator

from strop.core.engine import Completion, Progress, Request, Sampling
from strop.core.plugin import Config, stage
from strop.core.seeds import derive
from strop.storage.errors import StageError

END = 0
"""Id of the end-of-sequence token."""


class Reply(Config):
    """One thing the policy may say."""

    text: str
    """The completion."""
    logps: tuple[float, ...] | None = None
    """Log-probability of each character, and of the end where there is one more; without them all are 0."""
    error: str | None = None
    """Say that sampling failed, with this reason."""


class Rule(Config):
    """What is said to which prompts."""

    match: str
    """Regular expression to be found in the prompt as the model reads it."""
    replies: Annotated[tuple[str | Reply, ...], Field(min_length=1)]
    """Texts, or {text, logps, error}; the sample's seed picks one, each as likely as the others."""

    @field_validator("match")
    @classmethod
    def _pattern(cls, match: str) -> str:
        try:
            re.compile(match)
        except re.error as error:
            raise ValueError(f"{match!r} is not a regular expression: {error}") from None
        return match


class Scripted(Config):
    """The rules, in order."""

    rules: Annotated[tuple[Rule, ...], Field(min_length=1)]
    """The first that matches a prompt answers it; a prompt that none matches stops the stage."""


@stage("engine")
def scripted(config: Scripted) -> ScriptedEngine:
    """An engine that needs no policy."""
    return ScriptedEngine(config)


class ScriptedEngine:
    """See `strop.core.engine.Engine`."""

    name = "scripted"
    capabilities = frozenset({"sample", "score"})

    def __init__(self, config: Scripted) -> None:
        self.config = config
        self.calls = 0
        """Calls of `sample` and `score`."""
        self.sampled = 0
        """Completions given."""

    def render(self, prompt: str, messages: Sequence[dict[str, str]] | None = None) -> str:
        """The prompt itself, or `role: content` lines."""
        return "\n".join(f"{m['role']}: {m['content']}" for m in messages) if messages else prompt

    def sample(
        self, requests: Sequence[Request], sampling: Sampling, progress: Progress | None = None
    ) -> list[list[Completion]]:
        """Raises StageError for a prompt that no rule matches."""
        self.calls += 1
        found = []
        tokens = 0
        for request in requests:
            replies = self._replies(request.prompt)
            found.append([_completion(replies[derive(s, "reply") % len(replies)], sampling) for s in request.seeds])
            self.sampled += len(request.seeds)
            tokens += sum(len(c.token_ids) for c in found[-1])
            if progress is not None:
                progress(sum(map(len, found)), tokens)
        return found

    def score(self, pairs: Sequence[tuple[str, str | Sequence[int]]]) -> list[list[float]]:
        """A reply's own log-probabilities, without its end where not asked for; -1 a character of other text."""
        self.calls += 1
        found = []
        for prompt, continuation in pairs:
            ids = [*map(ord, continuation)] if isinstance(continuation, str) else list(continuation)
            known = next((r for r in self._replies(prompt) if [*map(ord, r.text), END][: len(ids)] == ids), None)
            found.append([-1.0] * len(ids) if known is None else _logps(known)[: len(ids)])
        return found

    def close(self) -> None:
        """Nothing to free."""

    def _replies(self, prompt: str) -> list[Reply]:
        for rule in self.config.rules:
            if re.search(rule.match, prompt):
                return [r if isinstance(r, Reply) else Reply(text=r) for r in rule.replies]
        patterns = ", ".join(repr(rule.match) for rule in self.config.rules)
        raise StageError(f"the scripted engine has no rule for the prompt {prompt!r}; it knows: {patterns}")


def _logps(reply: Reply) -> list[float]:
    """One for each character and one for the end. Raises ValueError for a wrong number of them."""
    length = len(reply.text)
    given = list(reply.logps) if reply.logps is not None else [0.0] * (length + 1)
    if len(given) == length:
        given.append(0.0)
    if len(given) != length + 1:
        raise ValueError(f"the reply {reply.text!r} has {length} characters and {len(given)} logps")
    return given


def _completion(reply: Reply, sampling: Sampling) -> Completion:
    ids, logps = [*map(ord, reply.text), END], _logps(reply)
    if reply.error is not None:
        return Completion(
            text=reply.text, token_ids=ids[:-1], logps=logps[:-1], finish_reason="error", error=reply.error
        )
    text, reason = reply.text, "stop"
    stops = [(at, s) for s in sampling.stop if (at := text.find(s)) >= 0]
    if stops:
        at, stop = min(stops)
        ids, logps, text = ids[: at + len(stop)], logps[: at + len(stop)], text[:at]
    if len(ids) > sampling.max_tokens:
        ids, logps, text, reason = (
            ids[: sampling.max_tokens],
            logps[: sampling.max_tokens],
            text[: sampling.max_tokens],
            "length",
        )
    return Completion(text=text, token_ids=ids, logps=logps, finish_reason=reason, entropy=0.0)
