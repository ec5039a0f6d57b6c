"""Makes sure that a server has the policy that the lake says, and puts an adapter there.

What a server has is read from /v1/models whenever it is new or was away: nothing is sampled from another policy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strop.plugins.engines._adapter import adapter_of
from strop.plugins.engines._openai_pool import Pool, RefusedError, Server
from strop.plugins.engines._openai_wire import DIALECTS
from strop.storage.errors import StageError, did_you_mean

SERVED = "served.json"
"""In the directory of a policy that is only a name: {"model": ...}."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A policy, as a server may know it."""

    directory: Path
    model: str | None = None
    """Its name, where it has no weights of its own."""
    base: Path | None = None
    """The checkpoint that it is an adapter of."""

    @property
    def weights(self) -> Path:
        """The checkpoint that a server is started with."""
        return self.base or self.directory

    @property
    def adapter_name(self) -> str:
        """What an adapter is called on a server: another name for every policy, so that none can be mistaken."""
        return f"strop-{hashlib.blake2b(str(self.directory).encode(), digest_size=6).hexdigest()}"


def subject_of(directory: Path) -> Subject:
    """The policy in a directory. Raises StageError when the base of an adapter is missing."""
    if (directory / SERVED).is_file():
        return Subject(directory, model=json.loads((directory / SERVED).read_text())["model"])
    directory = directory.resolve()
    found = adapter_of(directory)
    return Subject(directory) if found is None else Subject(directory, base=found[1].resolve())


@dataclass(slots=True)
class Admission:
    """Decides whether a server has the policy; notes what it is called there, and the server's dialect."""

    subject: Subject
    wanted: str = ""
    """Name of the model, where it is given."""
    swaps: bool = False
    """Whether adapters may be loaded into the server."""
    started: bool = False
    """Whether the server was started for this policy: one that does not name its files is believed then."""
    dialect: str = ""

    async def admit(self, pool: Pool, server: Server) -> None:
        """Raises StageError when the server has another policy."""
        cards = await self._cards(pool, server)
        if cards is not None:
            self.dialect = next((DIALECTS[o] for o in (str(c.get("owned_by")) for c in cards) if o in DIALECTS), "")
        if self.subject.model is not None or (cards is None and not self.subject.base):
            server.model = self._by_name(server, cards)
        elif self.subject.base is not None:
            server.model = await self._adapter(pool, server, cards or [])
        else:
            server.model = str(self._with_weights(server, cards or [], self.subject.directory)["id"])
        lengths = [c.get("max_model_len") for c in cards or [] if c.get("id") == server.model or not c.get("parent")]
        known = [length for length in lengths if isinstance(length, int)]
        server.context = min(known) if known else None

    async def _cards(self, pool: Pool, server: Server) -> list[dict[str, Any]] | None:
        """What /v1/models lists; None where a server has no such list."""
        try:
            found = await pool.once(server, "GET", "models")
        except RefusedError:
            return None
        except StageError as error:
            if "HTTP 404" in str(error) and self.subject.model is not None:
                return None
            raise
        data = found.get("data") if isinstance(found, dict) else None
        return [card for card in data if isinstance(card, dict)] if isinstance(data, list) else None

    def _by_name(self, server: Server, cards: Sequence[dict[str, Any]] | None) -> str:
        name = self.subject.model or self.wanted
        if not name:
            raise StageError(
                f"{server.url} does not say which models it has; name the one that is the policy: `model: x`"
            )
        names = [str(card.get("id")) for card in cards or []]
        if names and name not in names:
            shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            raise StageError(f"{server.url} has no model {name!r}{did_you_mean(name, names)}; it has: {shown}")
        return name

    def _with_weights(self, server: Server, cards: Sequence[dict[str, Any]], directory: Path) -> dict[str, Any]:
        """The card of the model whose files are those of the directory."""
        for card in cards:
            name = str(card.get("root") or card.get("id"))
            if name.startswith(("/", ".")) and Path(name).resolve() == directory:
                return card
        if self.started and len(cards) == 1 and not str(cards[0].get("root") or "").startswith("/"):
            return cards[0]
        has = ", ".join(str(card.get("root") or card.get("id")) for card in cards[:8]) or "nothing"
        raise StageError(
            f"{server.url} has {has}, and the policy is {directory}: start it with that directory as its model, let "
            "Strop start one for every policy (`serve: ...`), or take a fixed model, `base: {use: served, model: x}`"
        )

    async def _adapter(self, pool: Pool, server: Server, cards: Sequence[dict[str, Any]]) -> str:
        """Load the adapter, unless it is there."""
        subject, name = self.subject, self.subject.adapter_name
        assert subject.base is not None
        if not self.swaps:
            raise StageError(
                f"the policy {subject.directory} is an adapter, which {server.url} was not started with: write "
                "`policies: lora`, or in `serve` {base} in place of {policy}, with --enable-lora"
            )
        base = self._with_weights(server, [card for card in cards if not card.get("parent")], subject.base)
        there = next((card for card in cards if card.get("id") == name), None)
        if there is None:
            body = {"lora_name": name, "lora_path": str(subject.directory)}
            try:
                await pool.once(server, "POST", "load_lora_adapter", body, text=True)
            except (RefusedError, StageError) as error:
                raise StageError(
                    f"{server.url} did not load the adapter {subject.directory} ({error}): it must be able to read "
                    "that folder, and vLLM must run with --enable-lora, a --max-lora-rank no smaller than its own, and "
                    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment"
                ) from None
            cards = await self._cards(pool, server) or []
            there = next((card for card in cards if card.get("id") == name), None)
        if there is None or (there.get("root") and Path(str(there["root"])).resolve() != subject.directory):
            raise StageError(f"{server.url} has under the name {name!r} not the adapter {subject.directory}: {there}")
        if there.get("parent") not in (None, base["id"], base.get("root")):
            raise StageError(f"{server.url} has the adapter {subject.directory} on {there['parent']!r}, another base")
        return name
