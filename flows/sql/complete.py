"""What Tab offers: tables after FROM, the columns of the tables in the statement, keywords, functions, commands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from strop.flows import formats
from strop.flows.sql.commands import COMMANDS
from strop.flows.sql.text import pieces

OPENS_TABLE = re.compile(
    r"\b(?:from|join|table|describe|summarize)\s+(?:\w+(?:\s+(?:as\s+)?\w+)?\s*,\s*)*$", re.IGNORECASE
)
NAMED = re.compile(r"(?:\b(?:from|join)|,)\s*(\w+)(?:\s+(?:as\s+)?(\w+))?", re.IGNORECASE)
DEFINED = re.compile(r"(?:\bwith(?:\s+recursive)?|,)\s*(\w+)\s+as\s*(?:materialized\s*)?\(", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Names there are."""

    tables: dict[str, list[str]]
    """Table or view -> its columns."""
    words: Sequence[str] = ()
    """Keywords and functions."""
    runs: Sequence[str] = field(default=())


def candidates(before: str, after: str, known: Vocabulary) -> tuple[str, list[str]]:
    """The word being typed at the end of `before`, and what it may become; `after` is the text behind the cursor."""
    if before.lstrip().startswith("\\"):
        return _of_command(before.lstrip(), known)
    found = re.search(r"(?:(\w+)\.)?(\w*)$", before)
    owner, word = (found[1], found[2]) if found else (None, "")
    if _inside_text(before):
        return word, []
    tables = {name.lower(): (name, columns) for name, columns in known.tables.items()}
    named = {}
    for name, alias in NAMED.findall(before + after):
        if name.lower() in tables:
            named[name.lower()] = named[alias.lower() or name.lower()] = tables[name.lower()]
    if owner is not None:
        columns = named.get(owner.lower(), tables.get(owner.lower(), ("", [])))[1]
        return word, _matching(word, columns)
    queries = DEFINED.findall(before)
    if OPENS_TABLE.search(before.removesuffix(word)):
        return word, _matching(word, [*queries, *known.tables])
    columns = list(dict.fromkeys(column for _, columns in named.values() for column in columns))
    if not word:
        return word, columns
    return word, _matching(word, [*columns, *queries, *known.tables, *(_cased(w, word) for w in known.words)])


def _of_command(line: str, known: Vocabulary) -> tuple[str, list[str]]:
    name, space, rest = line[1:].partition(" ")
    if not space:
        return line, [f"\\{command}" for command in COMMANDS if command.startswith(name)]
    offered: dict[str, Iterable[str]] = {
        "d": known.tables,
        "format": formats.FORMATS,
        "asof": ["round=", "snapshot=", "time=", "newest", *(f"{run}@" for run in known.runs)],
        "x": ["on", "off", "auto"],
        "timing": ["on", "off"],
    }
    return rest, _matching(rest, offered.get(name, ()))


def _matching(word: str, names: Iterable[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if name.lower().startswith(word.lower()) and name != word]


def _cased(keyword: str, typed: str) -> str:
    """Keywords are offered in capitals to those who type capitals."""
    return keyword.upper() if typed.isupper() else keyword


def _inside_text(before: str) -> bool:
    return any(
        piece["open"] or (piece["whole"] and piece.end() == len(before) and piece[0].startswith("--"))
        for piece in pieces().finditer(before)
    )
