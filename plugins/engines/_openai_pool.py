"""Servers as one pool: a request goes to the least busy one that lives, and again elsewhere when that fails.

Source: exponential back-off with full jitter, Brooker 2015 (AWS Architecture Blog); what is worth a second try as in
OpenAI's own client: 408, 409, 429, 5xx, time-outs, lost connections.
httpx alone, not the `openai` package: back-off, fail-over and servers' own fields would all have to go around it.
"""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx

from strop.plugins.engines._openai_wire import MalformedError
from strop.storage.errors import StageError

R = TypeVar("R")

BASE_S, CAP_S = 0.5, 30.0
"""Of the back-off."""
CONNECT_S = 10.0
AWAY_S = 5.0
"""Longest time between two health checks of a server that is away."""
FAILURES = 5
"""In a row, after which a server must answer a health check before it is given work."""
IDLE_S = 4.0
"""A connection unused for longer is closed: servers close theirs after five seconds, and may do so under a request."""
QUOTED = 400
"""Characters of a server's message that an error quotes."""
NAN = "not JSON compliant"
"""What vLLM says when it should give log-probabilities that JSON has no words for."""
RESUME = "run the same command again to go on: what was sampled is kept"


class RefusedError(Exception):
    """The server will not have this request, now or later; the message is its own."""


class ImpatientError(StageError):
    """Nothing has succeeded for too long, though a server answers: either it is broken or the request is."""


class StoppedError(Exception):
    """Another request has failed for good."""


class TroubleError(Exception):
    """Something that may pass."""

    def __init__(
        self, said: str, *, own: bool = True, away: bool = False, wait_s: float | None = None, billed: bool = False
    ) -> None:
        """`own`: the request may be to blame; `away`: the server is; `billed`: it may have sampled all the same."""
        super().__init__(said)
        self.own, self.away, self.wait_s, self.billed = own, away, wait_s, billed


@dataclass(slots=True)
class Server:
    """One base URL."""

    url: str
    model: str = ""
    """What to call the policy there; set by `admit`."""
    context: int | None = None
    """Longest sequence, where it says."""
    busy: int = 0
    failures: int = 0
    """In a row."""
    rests_until: float = 0.0
    """No request before this, on the monotonic clock."""
    unsure: bool = True
    """It must be admitted before it is given work."""
    said: str = ""
    """The last trouble with it."""
    ended: Callable[[], str | None] = lambda: None
    """Why it will never come back; None while it may."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long what is tried."""

    timeout_s: float
    """A request."""
    retries: int
    """Tries of a request whose failures are its own: others succeed meanwhile."""
    patience_s: float
    """Without any success, before the stage is given up."""


class Pool:
    """Asks any of the servers."""

    def __init__(
        self,
        servers: Sequence[Server],
        admit: Callable[[Pool, Server], Awaitable[None]],
        patience: Patience,
        *,
        key: tuple[str, str],
        connections: int,
    ) -> None:
        """`admit` raises StageError for a server that has another policy; `key` is a variable's name and value."""
        self.servers, self.admit, self.patience, self.key = list(servers), admit, patience, key
        self.success_at = 0.0
        self.trouble_since: float | None = None
        """When the first request failed after the last success."""
        self.failure: Exception | None = None
        """What was wrong with a server that was looked at."""
        self._looks: set[asyncio.Future[None]] = set()
        limits = httpx.Limits(max_connections=connections + 4, keepalive_expiry=IDLE_S)
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key[1]}"} if key[1] else {},
            timeout=httpx.Timeout(None, connect=CONNECT_S),
            limits=limits,
            mounts=dict.fromkeys(("all://127.0.0.1", "all://localhost")),  # no proxy in between
        )

    async def close(self) -> None:
        """End the connections."""
        for look in list(self._looks):
            look.cancel()
        await self._client.aclose()

    async def ready(self) -> None:
        """Look at every server anew and wait until one has the policy.

        Raises StageError when one has another policy, or none comes to have it.
        """
        self.trouble_since = None
        for server in self.servers:
            server.unsure = True
        await asyncio.gather(*(self._admitted(server) for server in self.servers))
        await self._pick(None, lambda: False)

    async def try_once(self, server: Server) -> bool:
        """Whether a server is there by now and has the policy, however short it has been away."""
        server.rests_until = 0.0
        return await self._admitted(server)

    async def post(
        self,
        path: str,
        make: Callable[[Server], dict[str, Any]],
        read: Callable[[Any, float], R],
        *,
        before: Callable[[], Awaitable[None]],
        lost: Callable[[], None],
        stop: Callable[[], bool],
    ) -> R:
        """`read(answer, seconds)` for the body that `make` gives for a server, however many tries that takes.

        `before` is awaited before each try, `lost` told of one that may be billed although its answer never came.
        Raises RefusedError for a request that fails alone, StageError when none can succeed, StoppedError once
        `stop()` is true.
        """
        first, tries, attempts, last = time.monotonic(), 0, 0, None
        while True:
            server = await self._pick(last, stop)
            await before()
            server.busy += 1
            try:
                sent = time.monotonic()
                answer = await self.once(server, "POST", path, make(server))
                found = read(answer, time.monotonic() - sent)
            except (TroubleError, MalformedError) as error:
                trouble = error if isinstance(error, TroubleError) else TroubleError(f"{error}", billed=True)
                if trouble.billed:
                    lost()
                attempts += 1
                tries += trouble.own and self.success_at > first  # what fails for all is not this one's fault
                self._note(server, trouble)
                if tries >= self.patience.retries:
                    raise RefusedError(f"given up after {tries} tries, the last at {server.url}: {trouble}") from None
            else:
                self.well(server)
                return found
            finally:
                server.busy -= 1
            self._impatient(ImpatientError if trouble.own else StageError)
            last = server
            if not trouble.away and trouble.wait_s is None:
                await asyncio.sleep(backoff_s(attempts))

    def well(self, server: Server) -> None:
        """A request to it has succeeded."""
        server.failures, server.said, self.success_at, self.trouble_since = 0, "", time.monotonic(), None

    async def once(
        self, server: Server, method: str, path: str, body: dict[str, Any] | None = None, *, text: bool = False
    ) -> Any:
        """The answer's JSON, or its `text`. Raises TroubleError, RefusedError or StageError."""
        request = self._client.build_request(method, f"{server.url}/{path}", json=body)
        try:
            async with asyncio.timeout(self.patience.timeout_s):
                response = await self._client.send(request)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise TroubleError(f"cannot connect: {self._scrubbed(error)}", own=False, away=True) from None
        except (TimeoutError, httpx.TimeoutException):
            raise TroubleError(f"no answer within timeout_s = {self.patience.timeout_s:g} s", billed=True) from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise TroubleError(
                f"connection lost: {self._scrubbed(error) or type(error).__name__}", billed=True
            ) from None
        if response.is_success and text:
            return response.text
        if response.is_success:
            try:
                return response.json()
            except ValueError as error:
                raise TroubleError(f"malformed JSON: {error}", billed=True) from None
        raise self._failure(server, response)

    def _failure(self, server: Server, response: httpx.Response) -> Exception:
        """What an HTTP error stands for."""
        code, said = response.status_code, self._scrubbed(_message(response))
        name = self.key[0]
        if code in (401, 403):
            what = f"${name} holds a key it does not take" if name else "it wants a key, and `key` names none"
            return StageError(
                f"{server.url} refuses the request (HTTP {code}: {said}): {what}; put a valid one into an environment "
                f"variable and name it, `key: {name or 'OPENAI_API_KEY'}`"
            )
        if code == 402 or (code == 429 and "insufficient_quota" in response.text):
            return StageError(f"{server.url} says that the account has no credit (HTTP {code}: {said}); {RESUME}")
        if code == 404:
            return StageError(
                f"{server.url} has no such model or path as {response.request.url.path} (HTTP 404: {said}); `model` is "
                f"{server.model!r}, and base_urls end in the version, http://host:8000/v1"
            )
        if NAN in said:
            return StageError(
                f"the policy {server.model} gives logits that are not numbers (NaN), says {server.url}: training "
                "diverged; use a lower learning rate, or start again from an earlier policy"
            )
        if code in (408, 409, 425, 429) or code >= 500:
            rests = code in (429, 503)
            wait = retry_after_s(response.headers) if rests else None
            return TroubleError(f"HTTP {code}: {said}", own=code != 429, wait_s=wait)
        return RefusedError(f"HTTP {code}: {said}")

    def _note(self, server: Server, trouble: TroubleError) -> None:
        """Let a server rest that asks for it, and one that seems to be gone."""
        now = time.monotonic()
        if self.trouble_since is None:
            self.trouble_since = now
        server.failures += 1
        server.said = str(trouble)
        if trouble.wait_s is not None:
            server.rests_until = max(server.rests_until, now + trouble.wait_s)
        if trouble.away or trouble.billed:
            server.unsure = True  # what answers next there may be another server
        if trouble.away or (server.failures >= FAILURES and trouble.own):
            server.unsure = True
            server.rests_until = max(server.rests_until, now + min(AWAY_S, backoff_s(server.failures)))

    async def _pick(self, last: Server | None, stop: Callable[[], bool]) -> Server:
        """The least busy server that may be asked, another than `last` where there is one; waits until there is one."""
        while True:
            self._stopped(stop)
            ready = [s for s in self.servers if s.rests_until <= time.monotonic() and s.ended() is None]
            sure = [s for s in ready if not s.unsure]
            for server in ready:
                if not sure and await self._admitted(server):
                    return server
                if sure and server.unsure and not server.lock.locked():
                    self._look_at(server)
            if sure:
                return min(sure, key=lambda s: (s is last, s.busy))
            due = [s.rests_until for s in self.servers if s.ended() is None]
            if not due:
                raise StageError("; ".join(dict.fromkeys(s.ended() or "" for s in self.servers)))
            self._impatient(StageError)
            rest = max(0.0, min(due) - time.monotonic())
            if rest > self.patience.patience_s:
                raise StageError(
                    f"{self._said()}: that asks for {rest:.0f} s of rest, and patience_s is "
                    f"{self.patience.patience_s:g}; {RESUME}"
                )
            await asyncio.sleep(min(1.0, rest) + random.uniform(0, min(0.25, 0.1 + rest / 4)))

    async def _admitted(self, server: Server) -> bool:
        """A health check: whether it answers, and still has the policy."""
        async with server.lock:
            if not server.unsure:
                return True
            if server.rests_until > time.monotonic():
                return False
            try:
                async with asyncio.timeout(max(CONNECT_S, min(60.0, self.patience.timeout_s))):
                    await self.admit(self, server)
            except (TroubleError, TimeoutError) as error:
                self._note(server, TroubleError(str(error) or "no answer to a health check", away=True))
                return False
            server.unsure, server.failures = False, 0
            return True

    def _look_at(self, server: Server) -> None:
        """Check a server while others do the work."""

        async def look() -> None:
            try:
                await self._admitted(server)
            except Exception as error:
                self.failure = error

        task = asyncio.ensure_future(look())
        self._looks.add(task)
        task.add_done_callback(self._looks.discard)

    def _stopped(self, stop: Callable[[], bool]) -> None:
        if stop():
            raise StoppedError
        if self.failure is not None:
            raise self.failure

    def _impatient(self, kind: type[StageError]) -> None:
        since = self.trouble_since
        if since is not None and time.monotonic() - since > self.patience.patience_s:
            raise kind(f"no answer for patience_s = {self.patience.patience_s:g} s ({self._said()}); {RESUME}")

    def _said(self) -> str:
        return "; ".join(f"{s.url}: {s.said or s.ended() or 'nothing yet'}" for s in self.servers)

    def _scrubbed(self, said: object) -> str:
        """Without the key, should a server repeat it."""
        text = str(said)
        return (text.replace(self.key[1], "***") if self.key[1] else text)[:QUOTED]


def backoff_s(tries: int) -> float:
    """Anything up to a bound that doubles with every try, so that requests which failed together come apart."""
    return random.uniform(0, min(CAP_S, BASE_S * 2 ** min(tries, 16)))


def retry_after_s(headers: httpx.Headers) -> float | None:
    """Seconds the server asks to wait, from `retry-after-ms` or `Retry-After` (seconds or a date)."""
    try:
        if (given := headers.get("retry-after-ms")) is not None:
            return max(0.0, float(given) / 1000)
        if (given := headers.get("retry-after")) is None:
            return None
        try:
            return max(0.0, float(given))
        except ValueError:
            return max(0.0, email.utils.parsedate_to_datetime(given).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _message(response: httpx.Response) -> str:
    """The server's own words: OpenAI's error object, or what stands there instead."""
    try:
        found = response.json()
    except ValueError:
        return " ".join(response.text.split())
    error = found.get("error", found) if isinstance(found, dict) else found
    said = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(said).split())
