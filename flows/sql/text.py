"""SQL as people type it: where a statement ends, whether it has, and the values of its `$name` parameters.

Only what lies outside texts, quoted names and comments counts. What is allowed is for the gate to say, which parses.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from strop.storage.errors import LakeError, did_you_mean
from strop.storage.views import literal

PIECE = r"""
    (?P<whole> (?<!\w)[eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*"
             | --[^\n]*(?:\n|\Z) | /\*.*?\*/ | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$ )
  | (?P<open> ['"] | /\* | \$\w*\$ )
  | \$(?P<name> [A-Za-z_]\w* )
  | (?P<end> ; )
    """


@functools.cache
def pieces() -> re.Pattern[str]:
    """`PIECE` compiled, when it is needed: a plain query in the shell's quotes is not."""
    return re.compile(PIECE, re.VERBOSE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement without its semicolon, or a command such as `\\d rollouts`."""

    text: str
    complete: bool
    """It ended with a semicolon, or is a command on a line of its own."""

    @property
    def is_command(self) -> bool:
        """It is for the console, not for the lake."""
        return self.text.startswith("\\")


def statements(text: str) -> Iterator[Statement]:
    """The statements of a text, without empty ones."""
    rest = text.lstrip(" \t\n;")
    while rest:
        if rest.startswith("\\"):
            line, _, rest = rest.partition("\n")
            yield Statement(line.strip(), True)
        else:
            end = _end(rest)
            statement, rest = (rest, "") if end is None else (rest[:end], rest[end + 1 :])
            if _says_something(statement):
                yield Statement(statement.strip(), end is not None)
        rest = rest.lstrip(" \t\n;")


def is_finished(text: str) -> bool:
    """Whether Enter should run it: nothing, a command, or statements of which the last has its semicolon."""
    found = list(statements(text))
    return not found or found[-1].complete


def bind(sql: str, values: Mapping[str, str]) -> str:
    """The query with each `$name` replaced by its value as a text, which DuckDB compares with numbers too.

    Raises LakeError for a name without a value, and for a value that the query does not use.
    """
    if not values and "$" not in sql:
        return sql
    used = set()

    def value(found: re.Match[str]) -> str:
        name = found["name"]
        if name is None:
            return found[0]
        if name not in values:
            raise LakeError(f"the query has a parameter ${name}; give it a value: -p {name}=VALUE")
        used.add(name)
        return literal(str(values[name]))

    bound = pieces().sub(value, sql)
    for name in values:
        if name not in used:
            names = {found["name"] for found in pieces().finditer(sql)} - {None}
            raise LakeError(f"the query has no parameter ${name}{did_you_mean(name, filter(None, names))}")
    return bound


def _end(text: str) -> int | None:
    """Where the semicolon is that ends the first statement."""
    if ";" not in text:
        return None
    for piece in pieces().finditer(text):
        if piece["open"]:
            return None
        if piece["end"]:
            return piece.start()
    return None


def _says_something(statement: str) -> bool:
    """It is more than comments."""
    if statement[:1].isalpha():
        return True
    left = pieces().sub(
        lambda found: "" if found[0].startswith(("--", "/*")) and found["whole"] else found[0], statement
    )
    return bool(left.strip())
