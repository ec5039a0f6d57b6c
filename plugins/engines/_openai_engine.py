"""The engine `openai` itself: prompts to requests, replies to completions."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from strop.core.engine import Completion, Progress, Request, Sampling
from strop.plugins.engines._openai_fleet import Fleet
from strop.plugins.engines._openai_pool import RefusedError, StoppedError
from strop.plugins.engines._openai_probe import SCORERS
from strop.plugins.engines._openai_purse import Purse, packed_key
from strop.plugins.engines._openai_till import Till
from strop.plugins.engines._openai_wire import Can, Reply, Wish, given_logps, replies_of
from strop.plugins.engines._texts import unsound
from strop.storage.errors import StageError

if TYPE_CHECKING:
    from strop.plugins.engines.openai import Openai

R = TypeVar("R")
Fill = Callable[[int, Iterable[int], Iterable[Completion], int], None]
"""fill(request, samples, their completions, tokens)."""
TELL_S = 0.25
"""Between two words on progress."""
REFUSALS = 8
"""Requests refused and none taken, after which the requests are at fault and not their prompts."""
TOO_LONG = ("context length", "context size", "context window", "too long", "maximum length", "input length")
"""In a server's words, what makes a refusal the prompt's own."""
LOGPS = {"plain": "neither tempered nor truncated", "tempered": "not truncated"}


@dataclass(frozen=True, slots=True)
class _Job:
    """One request: the samples of a prompt that it asks for."""

    at: int
    samples: list[int]
    keys: list[bytes]
    """Of the journal, for each."""
    wish: Wish


class OpenaiEngine:
    """See `strop.core.engine.Engine`."""

    name = "openai"

    def __init__(
        self, config: Openai, directory: Path, threads: int, scratch: Path | None, needs: frozenset[str]
    ) -> None:
        self.config, self.directory, self.needs = config, directory, needs
        self.purse = Purse(scratch)
        self.till = Till(config, self.purse)
        self.fleet = Fleet(config, threads, self.till)
        self._taken = self._refused = 0
        try:
            self.fleet.take(directory)
            self._check_needs()
        except BaseException:
            self.close()
            raise
        scores = ["score"] if self.can.score is not None else []
        self.capabilities = frozenset({"sample", "reload", *scores})

    @property
    def can(self) -> Can:
        """What the servers were found to do."""
        return self.fleet.can or Can()

    def render(self, prompt: str, messages: Sequence[dict[str, str]] | None = None) -> str:
        """The text of the policy's own template; for a chat behind a server its messages as JSON."""
        if self.fleet.texts is not None:
            return self.fleet.texts.render(prompt, messages)
        if not messages:
            return prompt
        if self.config.endpoint == "chat":
            return json.dumps(list(messages), ensure_ascii=False)
        return "\n".join(f"{m['role']}: {m['content']}" for m in messages)

    def sample(
        self, requests: Sequence[Request], sampling: Sampling, progress: Progress | None = None
    ) -> list[list[Completion]]:
        """Completions per request; one that the server refuses for its prompt gives completions with an error.

        Raises StageError when the servers stay away, refuse the key or lack the policy, and when the budget is spent.
        """
        self._check_sampling(sampling)
        found: dict[tuple[int, int], Completion] = {}
        total, tokens, told = sum(len(r.seeds) for r in requests), 0, -math.inf

        def fill(at: int, samples: Iterable[int], made: Iterable[Completion], more: int) -> None:
            nonlocal tokens, told
            found.update({(at, sample): completion for sample, completion in zip(samples, made, strict=True)})
            tokens += more
            if progress is not None and (time.monotonic() - told > TELL_S or len(found) == total):
                told = time.monotonic()
                progress(len(found), tokens)

        async def do(job: _Job) -> None:
            try:
                replies = await self._replies(job)
            except RefusedError as error:
                fill(job.at, job.samples, [self._refusal(str(error))] * len(job.samples), 0)
                return
            for sample, key, reply in zip(job.samples, job.keys, replies, strict=True):
                self.purse.keep(key, reply)
                fill(job.at, [sample], [self._completion(reply, sampling)], reply.tokens)

        self._all(self._jobs(requests, sampling, fill), do)
        return [[found[at, sample] for sample in range(len(r.seeds))] for at, r in enumerate(requests)]

    def score(self, pairs: Sequence[tuple[str, str | Sequence[int]]]) -> list[list[float]]:
        """Untempered log-probabilities of each continuation's tokens; EOS is not added.

        Raises ValueError for an empty prompt, and for a pair that fills the context: a server samples one token more.
        """
        texts, how, context = self.fleet.texts, self.can.score, self.fleet.context()
        if texts is None or how is None:
            raise StageError(f"the engine openai cannot score: {self.fleet.url} gives no logps of a given text")
        encoded = texts.encode_pairs(pairs)
        for ids, tail in encoded:
            if len(ids) + len(tail) >= context:
                raise ValueError(
                    f"cannot score {len(ids)} + {len(tail)} tokens: the context is {context:g}, and the server samples "
                    "one after them"
                )
        found = [[math.nan] * len(tail) for _, tail in encoded]
        whole = how != "labels"

        async def do(job: tuple[int, int]) -> None:
            i, at = job
            ids, first = [*encoded[i][0], *encoded[i][1]], len(encoded[i][0])
            label = {} if whole else {"logprob_token_ids": ids[first + at : first + at + 1]}
            shown = ids if whole else ids[: first + at]
            wish = Wish(prompt="", ids=shown, limit=1, seed=None, sampling=Sampling(max_tokens=1))

            def read(answer: Any, seconds: float) -> tuple[list[float], list[Reply]]:
                given = (ids, first) if whole else (label["logprob_token_ids"], 0)
                return given_logps(answer, how, *given), replies_of(answer, 1)

            try:
                logps, _ = await self._ask(wish, {**SCORERS[how], **label}, read, lambda pair: pair[1])
            except RefusedError as error:
                raise StageError(f"{self.fleet.url} refuses to score {len(ids)} tokens: {error}") from None
            found[i][at : at + len(logps)] = logps

        self._all([(i, at) for i, (_, tail) in enumerate(encoded) for at in range(len(tail)) if not (whole and at)], do)
        return found

    def reload(self, directory: Path) -> None:
        """Go on with another policy: an adapter is loaded into the live servers where they take any."""
        self.directory = directory
        self.fleet.take(directory)

    def close(self) -> None:
        """End the servers that were started; their memory is free when this returns."""
        self.fleet.close()
        self.purse.close()

    def _check_needs(self) -> None:
        can = self.can
        there = {"token_ids"} if can.token_ids else set()
        lacking = self.needs - there - ({"logps"} if can.token_ids and can.logps else set())
        if lacking:
            raise StageError(
                f"a stage of the recipe needs {' and '.join(sorted(lacking))} of every completion, and "
                f"{self.fleet.url} gives none: take a server that does (vLLM, SGLang), with `extensions: true` where "
                "Strop does not know it for one"
            )

    def _check_sampling(self, sampling: Sampling) -> None:
        """Raises StageError for a way of sampling that the server would not follow, or not account for."""
        asked = [name for name in ("top_k", "min_p", "stop_token_ids") if getattr(sampling, name)]
        if asked and not self.can.more:
            raise StageError(
                f"the stage samples with {' and '.join(asked)}, and {self.fleet.url} is not known to take that: write "
                "`extensions: true` in the engine's settings if it does, else leave it out"
            )
        if "logps" in self.needs and not self.can.exact(sampling):
            raise StageError(
                "a stage of the recipe needs the log-probabilities of the distribution sampled from, and those "
                f"of {self.fleet.url} are {LOGPS.get(str(self.can.logps), 'none')}: sample at temperature 1 without "
                "top_p, top_k and min_p, or start vLLM with --logprobs-mode processed_logprobs"
            )

    def _jobs(self, requests: Sequence[Request], sampling: Sampling, fill: Fill) -> list[_Job]:
        """What is to be asked: not what the journal has, nor what cannot be sampled."""
        texts, context, subject = self.fleet.texts, self.fleet.context(), self.fleet.subject
        prompts: list[Any] = texts.encode([r.prompt for r in requests]) if texts else [None] * len(requests)
        about = {
            "policy": str(subject and subject.directory),
            "model": (subject and subject.model) or self.config.model,
            "endpoint": self.config.endpoint,
            "extra": self.config.extra,
            "sampling": asdict(sampling),
        }
        jobs = []
        for at, (request, ids) in enumerate(zip(requests, prompts, strict=True)):
            limit = sampling.max_tokens
            if texts is not None:
                refused = texts.refused(len(ids), sampling) or _refused(len(ids), context)
                if refused is not None:
                    fill(at, range(len(request.seeds)), [refused] * len(request.seeds), 0)
                    continue
                limit = int(min(limit, context - len(ids)))
            keys = [packed_key({**about, "prompt": request.prompt, "seed": seed}) for seed in request.seeds]
            absent = []
            for sample, reply in enumerate(self.purse.find(keys)):
                if reply is None:
                    absent.append(sample)
                else:
                    fill(at, [sample], [self._completion(reply, sampling)], reply.tokens)
            for group in [[sample] for sample in absent] if self.config.seeds else [absent] if absent else []:
                seed = request.seeds[group[0]] if self.config.seeds else None
                ends = texts.eos if texts is not None else ()
                wish = Wish(
                    prompt=request.prompt, ids=ids, limit=limit, seed=seed, n=len(group), sampling=sampling, ends=ends
                )
                jobs.append(_Job(at, group, [keys[sample] for sample in group], wish))
        return jobs

    def _all(self, jobs: Sequence[R], do: Callable[[R], Awaitable[None]]) -> None:
        """Do the jobs, some at a time. After a failure those under way are heard out, so that nothing paid is lost."""
        left, pool = iter(jobs), self.fleet.opened()
        self.till.fatal = None

        async def worker() -> None:
            for job in left:
                try:
                    await do(job)
                except StoppedError:
                    return
                except Exception as error:
                    self.till.fatal = self.till.fatal or error
                if self.till.fatal is not None:
                    return

        async def everything() -> None:
            if jobs:
                await pool.ready()
            await asyncio.gather(*(worker() for _ in range(min(self.config.concurrency, len(jobs)))))

        self.fleet.run(everything())
        if self.till.fatal is not None:
            raise self.till.fatal

    async def _replies(self, job: _Job) -> list[Reply]:
        def read(answer: Any, seconds: float) -> list[Reply]:
            return replies_of(answer, job.wish.n, round(seconds, 4))

        replies = await self._ask(job.wish, {}, read, lambda replies: replies)
        self._taken += 1
        return replies

    async def _ask(
        self, wish: Wish, more: dict[str, Any], read: Callable[[Any, float], R], bill: Callable[[R], Iterable[Reply]]
    ) -> R:
        return await self.till.ask(self.fleet.opened(), self.can, wish, more, read, bill)

    def _refusal(self, said: str) -> Completion:
        """A completion of a request that the server refused. Raises StageError when it seems to refuse them all."""
        if not any(words in said.lower() for words in TOO_LONG):
            self._refused += 1
        if self._refused >= REFUSALS and not self._taken:
            raise StageError(
                f"{self.fleet.url} refused {self._refused} requests and took none, the last with: {said}; set what it "
                "wants, or null for what it does not take, in the engine's `extra`"
            )
        return Completion(text="", token_ids=[], logps=[], finish_reason="error", error=said)

    def _completion(self, reply: Reply, sampling: Sampling) -> Completion:
        ids, logps, text, finish = reply.ids or [], self._logps(reply, sampling), reply.text, reply.finish
        if self.fleet.texts is not None and reply.ids is not None:
            (made,) = self.fleet.texts.completions([(ids, logps)], sampling)
            text, ids, logps = made.text, made.token_ids, made.logps
            finish = "stop" if made.finish_reason == "stop" and finish == "length" else finish
        error = None if finish in {"stop", "length"} else f"the server ended it: finish_reason {finish!r}"
        given = {name for name, value in (("token_ids", ids), ("logps", logps)) if value}
        if error is None and self.needs - given:
            lacking = " and ".join(sorted(self.needs - given))
            raise StageError(f"a stage of the recipe needs {lacking}, and {self.fleet.url} gave a completion without")
        return Completion(
            text=text,
            token_ids=ids,
            logps=logps,
            finish_reason=finish if error is None else "error",
            error=error,
            latency_s=reply.latency_s,
            n_tokens=None if ids else reply.tokens,
            n_prompt_tokens=reply.prompt_tokens,
            cost=self.till.cost(reply),
        )

    def _logps(self, reply: Reply, sampling: Sampling) -> list[float]:
        """Those of the distribution sampled from; none where the server's are of another."""
        if reply.ids is None:
            return []
        if sampling.temperature == 0:
            return [0.0] * len(reply.ids)
        logps = reply.logps or []
        if any(math.isnan(logp) for logp in logps):
            raise unsound(self.directory)
        return logps if len(logps) == len(reply.ids) and self.can.exact(sampling) else []


def _refused(length: int, context: float) -> Completion | None:
    """Where the server's context is shorter than the policy's own."""
    if length < context:
        return None
    why = f"the prompt has {length} tokens, the server's context is {context:g}: no room for a completion"
    return Completion(text="", token_ids=[], logps=[], finish_reason="error", error=why)
