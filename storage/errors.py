"""Errors a user can act on: printed as one message, without a traceback."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator

MORE_SPACE = "free some space and run the same command again; what was committed is not lost"
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class StropError(Exception):
    """Something the user can put right; the message says what was expected, what came, where, and what to write."""


class LakeError(StropError):
    """The lake cannot be opened, read or written as asked."""


class CatalogError(LakeError):
    """The database that holds the lake's catalog reported an error; it is the cause."""


class RecipeError(StropError):
    """The recipe is malformed; carries the file and, where known, the line."""


class PluginError(StropError):
    """A plugin is missing, ambiguous, fails to import or breaks its stage's contract."""


class StageError(StropError):
    """A stage failed; the run stops here and the same command resumes it."""


class DataError(StropError, ValueError):
    """A file or data set of problems cannot be read as asked; carries the file and, where there is one, the line."""


def causes(error: BaseException) -> Iterator[BaseException]:
    """The exception, and those it was raised from or while handling."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def is_full(error: BaseException) -> bool:
    """Whether a disk or a quota had no room; libraries other than Python's own have exceptions of their own for it."""
    return any(
        (isinstance(e, OSError) and e.errno in FULL) or "No space left on device" in str(e) for e in causes(error)
    )


def is_interrupt(error: BaseException) -> bool:
    """Whether a signal ended it: DuckDB turns an interrupt within a statement into a RuntimeError of its own."""
    return any(not isinstance(e, Exception) for e in causes(error))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """'; did you mean 'x'?' when one of `known` is near, else the list of what there is."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; there is: {', '.join(known)}" if known else ""
