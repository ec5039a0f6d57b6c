"""Seeds derived by hashing, never drawn: the same run seed gives the same rollouts, in any order, on any worker."""

from __future__ import annotations

from strop.storage.ids import digest


def derive(seed: int, *parts: object) -> int:
    """A 62-bit seed for one purpose, e.g. `derive(run_seed, 'sample', round, problem_key, i)`."""
    return int(digest("seed", seed, *parts, size=8), 16) >> 2
