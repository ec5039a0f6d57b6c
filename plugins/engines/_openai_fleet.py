"""The servers that have the policy: found or started, checked, and asked what they can do."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from strop.plugins.engines._openai_policy import Admission, Subject, subject_of
from strop.plugins.engines._openai_pool import Patience, Pool, Server
from strop.plugins.engines._openai_probe import probe
from strop.plugins.engines._openai_serve import Serving, check_adapter
from strop.plugins.engines._openai_till import Till
from strop.plugins.engines._openai_wire import WORDS, Can, Wish, replies_of
from strop.storage.errors import StageError

if TYPE_CHECKING:
    from strop.plugins.engines._texts import Texts
    from strop.plugins.engines.openai import Openai

R = TypeVar("R")
POLL_S = 0.25
"""Between two looks at a server that starts."""


class Fleet:
    """One policy at a time, and where it is served."""

    def __init__(self, config: Openai, threads: int, till: Till) -> None:
        self.config, self.threads, self.till = config, threads, till
        self.serving: list[Serving] = []
        self.can: Can | None = None
        """What the servers can do; None until they were asked."""
        self.texts: Texts | None = None
        """The policy's own tokenizer; None for one without weights."""
        self.subject: Subject | None = None
        self.pool: Pool | None = None
        self._runner = asyncio.Runner()

    @property
    def url(self) -> str:
        """Of the first server, for errors."""
        return self.pool.servers[0].url if self.pool is not None else "(closed)"

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Run a coroutine to its end."""
        return self._runner.run(work)

    def opened(self) -> Pool:
        """The servers. Raises StageError when there are none any more."""
        if self.pool is None:
            raise StageError(f"the engine of {self.subject.directory if self.subject else 'no policy'} is closed")
        return self.pool

    def context(self) -> float:
        """Longest sequence, in tokens, of the policy and of every server."""
        own = self.texts.context if self.texts is not None else self.config.context or math.inf
        return min([own, *(s.context for s in self.opened().servers if s.context)])

    def take(self, directory: Path) -> None:
        """Find this policy on the servers, load it into them, or start servers for it.

        Raises StageError when they do not have it, or take longer than `patience_s`, of ours `start_s`.
        """
        config, before = self.config, self.subject
        self.subject = subject_of(directory)
        self._check(self.subject)
        fixed = self.subject.model is not None
        self.texts = None if fixed else self._texts(directory, self.subject)
        if self.pool is not None:
            self.run(self.pool.close())
        self.pool = None
        if config.serve and not (before and before.weights == self.subject.weights and "{base}" in config.serve):
            self._start(self.subject)
        servers = [Server(url) for url in config.base_urls]
        servers += [Server(started.url, ended=started.ended) for started in self.serving]
        swaps = config.policies == "lora" or bool(config.serve)
        admission = Admission(self.subject, config.model, swaps=swaps, started=bool(config.serve))
        patience = Patience(config.timeout_s, config.retries, config.patience_s)
        key = _key(config.key)
        self.pool = Pool(servers, admission.admit, patience, key=key, connections=config.concurrency)
        self.run(self._ready(self.pool, admission))

    def close(self) -> None:
        """End what was started; its memory is free when this returns."""
        pool, self.pool = self.pool, None
        if pool is not None:
            self.run(pool.close())
        self._runner.close()
        self._end()

    def _end(self) -> None:
        serving, self.serving = self.serving, []
        for server in serving:
            server.close()

    def _check(self, subject: Subject) -> None:
        if self.config.endpoint == "chat" and subject.model is None:
            raise StageError(
                "endpoint chat is for policies without weights (`base: {use: served, model: x}`); one that is trained "
                "is asked for completions of the very prompt it is trained on: endpoint: completions"
            )
        if self.config.serve and subject.model is not None:
            raise StageError("`serve` starts a server for weights, and the base has none: name `base_urls`")

    def _texts(self, directory: Path, subject: Subject) -> Texts:
        from strop.plugins.engines._texts import Texts

        template, context = self.config.chat_template, self.config.context
        return Texts.read(directory, subject.weights, chat_template=template, context=context)

    def _start(self, subject: Subject) -> None:
        """Servers for these weights, in place of those for others."""
        if subject.base is not None:
            check_adapter(self.config.serve, subject.directory)
        self._end()
        threads = max(1, self.threads // self.config.replicas)
        for replica in range(self.config.replicas):
            values = {"policy": subject.directory, "base": subject.weights, "replica": replica}
            self.serving.append(Serving(self.config.serve, values, threads))

    async def _ready(self, pool: Pool, admission: Admission) -> None:
        for server, process in zip(pool.servers, self.serving, strict=False):
            await self._started(pool, server, process)
        await pool.ready()
        if self.can is not None:
            return
        ids = self.texts.encode([WORDS])[0] if self.texts is not None else []
        more = self.config.extensions

        async def ask(wish: Wish, can: Can, fields: dict[str, Any]) -> Any:
            def read(answer: Any, seconds: float) -> Any:
                replies_of(answer, 1)
                return answer

            return await self.till.ask(pool, can, wish, fields, read, lambda answer: replies_of(answer, 1))

        self.can = await probe(
            ask,
            endpoint=self.config.endpoint,
            ids=ids or None,
            more=bool(admission.dialect) if more is None else more,
            vllm=admission.dialect == "vllm",
            lora=self.config.policies == "lora" or "{base}" in self.config.serve,
        )

    async def _started(self, pool: Pool, server: Server, process: Serving) -> None:
        """Wait until a server that was started answers. Raises StageError with its last output."""
        until = process.began + self.config.start_s
        while not await pool.try_once(server):
            if (why := process.ended()) is not None:
                raise StageError(why)
            if time.monotonic() > until:
                raise StageError(
                    f"the server `{process.line}` does not answer at {server.url} after start_s = "
                    f"{self.config.start_s:g} s ({server.said}); its last output:\n{process.output()}"
                )
            await asyncio.sleep(POLL_S)


def _key(name: str) -> tuple[str, str]:
    """Name and value of the variable that holds the key. Raises StageError when it is not set."""
    if name and not os.environ.get(name):
        raise StageError(f"`key` names the environment variable {name}, which is not set: export {name}=...")
    return name, os.environ[name] if name else ""
