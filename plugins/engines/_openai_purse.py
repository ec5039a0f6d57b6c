"""What a run has paid for: a budget that no worker oversteps, and every completion that was paid for.

One SQLite file in the run's folder, shared by its workers and restarts. A request reserves the most it may cost before
it is sent and is settled with what it did cost; a reservation whose owner died stays, as its request may be billed.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from strop.plugins.engines._openai_wire import Reply

KEPT = 100_000
"""Completions kept, the newest: many times those of the shards in flight."""
ROOM = 1e-9
"""Of the currency: sums of prices round."""
TABLES = """
CREATE TABLE IF NOT EXISTS total (spent REAL NOT NULL, lost REAL NOT NULL);
INSERT INTO total SELECT 0, 0 WHERE NOT EXISTS (SELECT 1 FROM total);
CREATE TABLE IF NOT EXISTS open (id INTEGER PRIMARY KEY, owner TEXT NOT NULL, amount REAL NOT NULL);
CREATE TABLE IF NOT EXISTS journal (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, reply BLOB NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Spending:
    """Of the run so far, in the currency of the price table."""

    spent: float
    """Settled, `lost` included."""
    lost: float
    """Of that, on requests that were sent and never answered in full: what they may have cost at most."""
    open: float
    """Reserved by requests under way, or by workers that died before they heard the answer."""

    @property
    def committed(self) -> float:
        """Spent or reserved."""
        return self.spent + self.open


class Purse:
    """A run's money and its journal of paid completions."""

    def __init__(self, folder: Path | None) -> None:
        """None: nobody else sees it, and it ends with this process."""
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        path = ":memory:" if folder is None else str(folder / "openai.sqlite")
        self._db = sqlite3.connect(path, timeout=60, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        with self._change():
            for statement in TABLES.strip().split(";\n"):
                self._db.execute(statement.strip().rstrip(";"))
            self._db.execute("DELETE FROM journal WHERE id <= (SELECT max(id) FROM journal) - ?", [KEPT])
        me = psutil.Process()
        self._owner = f"{me.pid}-{me.create_time():.2f}"

    def reserve(self, amount: float, budget: float | None) -> int | None:
        """The number of a reservation; None where the budget has no room for it."""
        with self._change():
            if budget is not None and self.spending().committed + amount > budget + ROOM:
                return None
            row = self._db.execute("INSERT INTO open (owner, amount) VALUES (?, ?)", [self._owner, amount])
            return row.lastrowid

    def settle(self, number: int, cost: float | None) -> None:
        """End a reservation. None: nobody knows, so what was reserved counts as spent."""
        with self._change():
            (amount,) = self._db.execute("SELECT amount FROM open WHERE id = ?", [number]).fetchone()
            lost = amount if cost is None else 0.0
            self._db.execute(
                "UPDATE total SET spent = spent + ?, lost = lost + ?", [amount if cost is None else cost, lost]
            )
            self._db.execute("DELETE FROM open WHERE id = ?", [number])

    def spending(self) -> Spending:
        """What the run has spent."""
        found = self._db.execute("SELECT spent, lost, (SELECT coalesce(sum(amount), 0) FROM open) FROM total")
        return Spending(*found.fetchone())

    def others_at_work(self) -> bool:
        """Whether another live worker has requests under way, which may turn out cheaper than reserved."""
        owners = self._db.execute("SELECT DISTINCT owner FROM open WHERE owner <> ?", [self._owner]).fetchall()
        return any(_alive(owner) for (owner,) in owners)

    def find(self, keys: Sequence[bytes]) -> list[Reply | None]:
        """What the journal has under each key."""
        found: list[Reply | None] = []
        for key in keys:
            row = self._db.execute("SELECT reply FROM journal WHERE key = ?", [key]).fetchone()
            found.append(None if row is None else Reply(**json.loads(zlib.decompress(row[0]))))
        return found

    def keep(self, key: bytes, reply: Reply) -> None:
        """Write a completion to the journal: from here on it is not asked for again."""
        packed = zlib.compress(json.dumps(asdict(reply)).encode(), 1)
        with self._change():
            self._db.execute("INSERT OR REPLACE INTO journal (key, reply) VALUES (?, ?)", [key, packed])

    def close(self) -> None:
        """The file stays."""
        self._db.close()

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def _alive(owner: str) -> bool:
    pid, _, started = owner.partition("-")
    try:
        return f"{psutil.Process(int(pid)).create_time():.2f}" == started
    except psutil.Error:
        return False


def packed_key(parts: dict[str, Any]) -> bytes:
    """The journal's key of a request: equal for equal parts."""
    import hashlib

    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
