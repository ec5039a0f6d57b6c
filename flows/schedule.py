"""When a schedule fires and what a firing does while the one before it still runs. Light: prefect is not imported."""

from __future__ import annotations

import re
from dataclasses import dataclass

import typer

from strop.storage.errors import did_you_mean

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
COLLISIONS = {"cancel": "CANCEL_NEW", "enqueue": "ENQUEUE"}


@dataclass(frozen=True, slots=True)
class When:
    """Either a cron line or an interval."""

    cron: str | None = None
    every_s: int | None = None

    def __str__(self) -> str:
        return f"at {self.cron!r}" if self.cron else f"every {self.every_s} s"


def parse(cron: str | None, every: str | None) -> When:
    """The schedule from its two options. Raises a usage error unless exactly one is given and right."""
    if (cron is None) == (every is None):
        raise typer.BadParameter('give one of --cron "0 3 * * *" and --every 6h')
    if cron is not None:
        if len(cron.split()) != 5 and not cron.startswith("@"):
            raise typer.BadParameter(f"{cron!r}: five fields, minute hour day month weekday", param_hint="--cron")
        return When(cron=cron)
    found = re.fullmatch(r"(\d+)([smhd])", every or "")
    if found is None or int(found[1]) == 0:
        raise typer.BadParameter(f"{every!r}: a number and one of s, m, h, d, e.g. 6h", param_hint="--every")
    return When(every_s=int(found[1]) * UNITS[found[2]])


def strategy(collision: str) -> str:
    """Prefect's name of what happens to a firing that would overlap."""
    if collision not in COLLISIONS:
        raise typer.BadParameter(f"{collision!r}{did_you_mean(collision, COLLISIONS)}", param_hint="--collision")
    return COLLISIONS[collision]
