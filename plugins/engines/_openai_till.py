"""Asks a server for what costs something: the price is reserved before and settled after, within the budget."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from strop.core.engine import Sampling
from strop.plugins.engines._openai_pool import (
    ImpatientError,
    Pool,
    RefusedError,
    Server,
    StoppedError,
    TroubleError,
)
from strop.plugins.engines._openai_purse import Purse
from strop.plugins.engines._openai_wire import (
    PATHS,
    WORDS,
    Can,
    MalformedError,
    Reply,
    Wish,
    body_of,
    replies_of,
)
from strop.storage.errors import StageError

if TYPE_CHECKING:
    from strop.plugins.engines.openai import Openai

R = TypeVar("R")
POLL_S = 0.02
"""Between two looks for room in the budget."""
BYTES = 64
"""Of a chat's template for each message, at most, where its tokens are to be guessed from above."""


class Till:
    """One process's way to the servers."""

    def __init__(self, config: Openai, purse: Purse) -> None:
        self.config, self.purse = config, purse
        self.fatal: Exception | None = None
        """Why nothing more is to be asked."""
        self._open = 0
        """Reservations of this process."""

    async def ask(
        self,
        pool: Pool,
        can: Can,
        wish: Wish,
        more: dict[str, Any],
        read: Callable[[Any, float], R],
        bill: Callable[[R], Iterable[Reply]],
    ) -> R:
        """`read(answer, seconds)` of the answer to a wish with `more` fields; `bill` says what it is billed for.

        Raises StageError when the budget has no room for the request, and what `Pool.post` raises.
        """
        config, worst = self.config, self._worst(wish)
        number: int | None = None
        cost: float | None = None  # whatever ends it before its answer was read may be billed

        async def before() -> None:
            nonlocal number
            number = await self._reserve(worst) if number is None else number

        def lost() -> None:
            nonlocal number
            self._settle(number, None)
            number = None

        def make(server: Server) -> dict[str, Any]:
            extra = {**more, **config.extra}
            return body_of(wish, model=server.model, endpoint=config.endpoint, can=can, extra=extra)

        try:
            path, stop = PATHS[config.endpoint], lambda: self.fatal is not None
            found = await pool.post(path, make, read, before=before, lost=lost, stop=stop)
            cost = sum(self.cost(reply) or 0.0 for reply in bill(found))
            return found
        except ImpatientError as error:
            cost = 0.0
            if await self._works(pool, can):
                raise RefusedError(f"given up, as others succeed: {error}") from None
            raise
        except Exception:
            cost = 0.0  # refused, or given up after `lost` was told of what may have cost something
            raise
        finally:
            self._settle(number, cost)

    async def _works(self, pool: Pool, can: Can) -> bool:
        """Whether a server answers a plain request of one token at once."""
        wish = Wish(prompt=WORDS, ids=None, limit=1, seed=None, sampling=Sampling(max_tokens=1))
        for server in pool.servers:
            number = self.purse.reserve(self._worst(wish) or 0.0, self.config.budget)
            cost, body = None, body_of(wish, model=server.model, endpoint=self.config.endpoint, can=can, extra={})
            try:
                answer = await pool.once(server, "POST", PATHS[self.config.endpoint], {**body, **self.config.extra})
                cost = sum(self.cost(reply) or 0.0 for reply in replies_of(answer, 1))
            except (TroubleError, MalformedError, RefusedError):
                continue
            finally:
                if number is not None:
                    self.purse.settle(number, cost)
            pool.well(server)
            return True
        return False

    def cost(self, reply: Reply) -> float | None:
        """Price of a completion, and of the prompt where it is billed for that."""
        price = self.config.price
        if price is None:
            return None
        cached = price.prompt if price.cached is None else price.cached
        prompt = (reply.prompt_tokens - reply.cached_tokens) * price.prompt + reply.cached_tokens * cached
        return (prompt + reply.tokens * price.completion) / 1e6

    def _worst(self, wish: Wish) -> float | None:
        """The most a request may cost."""
        price = self.config.price
        if price is None:
            return None
        text = len(wish.prompt.encode(errors="replace")) + BYTES * (1 + wish.prompt.count('"role"'))
        prompt = len(wish.ids) if wish.ids is not None else text  # a token has a byte at least
        return (prompt * max(price.prompt, price.cached or 0.0) + wish.n * wish.limit * price.completion) / 1e6

    async def _reserve(self, amount: float | None) -> int | None:
        """Waits while requests under way may turn out cheaper."""
        if amount is None:
            return None
        while True:
            if self.fatal is not None:
                raise StoppedError
            number = self.purse.reserve(amount, self.config.budget)
            if number is not None:
                self._open += 1
                return number
            if not self._open and not self.purse.others_at_work():
                raise StageError(self._broke(amount))
            await asyncio.sleep(POLL_S)

    def _settle(self, number: int | None, cost: float | None) -> None:
        if number is not None:
            self._open -= 1
            self.purse.settle(number, cost)

    def _broke(self, amount: float) -> str:
        budget, found = self.config.budget or 0.0, self.purse.spending()
        unsure = found.lost + found.open
        of_it = f" (up to {unsure:.6g} of it for requests whose answer never came)" if unsure else ""
        return (
            f"the budget is spent: {found.committed:.6g} of {budget:.6g}{of_it}, and the next request may cost "
            f"{amount:.6g}. What was sampled is kept; give more and run the same command again, e.g. with "
            f"--set engine.budget={2 * max(budget, found.committed + amount):.3g}"
        )
