"""Finds the final answer in a completion, and decides whether it is the reference."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from strop.storage.errors import did_you_mean

_NUMBER = re.compile(r"(?:(?<![\w)])[-+−])?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d)\.(?!\d))?(?:(?<=\d)/\d+)?")
_LONGEST_NUMBER = 200
"""Characters; a longer run of digits is compared as text, because exact arithmetic on it could take for ever."""
_SAYS_ANSWER = re.compile(r"\banswer(?:\s+is|\s*:|\s*=)[\s:=]*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?:\s|$)|\n")


def extractor(how: str) -> Callable[[str], str | None]:
    """The function that finds an answer in this way: one of `WAYS`, or a regular expression with one group.

    Raises ValueError for a way that is neither.
    """
    if how in WAYS:
        return WAYS[how]
    try:
        pattern = re.compile(how, re.DOTALL)
    except re.error as error:
        raise ValueError(f"{how!r} is not a regular expression: {error}") from None
    if pattern.groups != 1:
        raise ValueError(
            f"{how!r} is no way to find an answer{did_you_mean(how, WAYS)} "
            "(a regular expression must have exactly one group, the answer)"
        )
    return lambda text: _last(pattern.findall(text))


def last_equals(text: str) -> str | None:
    """What follows the last `=`; the whole text where there is none."""
    return text.rsplit("=", 1)[-1].strip()


def boxed(text: str) -> str | None:
    r"""Content of the last closed `\boxed{}`, braces balanced."""
    found = None
    for start in (m.end() for m in re.finditer(r"\\f?boxed\s*\{", text)):
        depth = 1
        for at in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if depth == 0:
                found = text[start:at].strip()
                break
    return found


def answer_tag(text: str) -> str | None:
    """Content of the last `<answer>...</answer>`."""
    return _last(re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL))


def hashes(text: str) -> str | None:
    """The rest of the line after the last `####`."""
    return _last(re.findall(r"####([^\n]*)", text))


def last_line(text: str) -> str | None:
    """The last line that is not empty."""
    return _last([line for line in text.splitlines() if line.strip()])


def last_number(text: str) -> str | None:
    """The last number anywhere in the text."""
    return _last([m.group() for m in _NUMBER.finditer(text) if any(c.isdigit() for c in m.group())])


def whole(text: str) -> str | None:
    """All of it."""
    return text.strip() or None


def auto(text: str) -> str | None:
    """The most explicit mark there is: a box, a tag, hashes, "the answer is", `=` in the last line, the last line."""
    for way in (boxed, answer_tag, hashes):
        answer = way(text)
        if answer is not None:
            return answer
    said = _SAYS_ANSWER.split(text)
    if len(said) > 1:
        return _SENTENCE_END.split(said[-1].strip())[0].strip()
    line = last_line(text)
    return None if line is None else last_equals(line)


def marked(text: str) -> str:
    """The answer a reference marks with a box, a tag or hashes; the whole reference where it marks none."""
    for way in (boxed, answer_tag, hashes):
        answer = way(text)
        if answer is not None:
            return answer
    return text.strip()


def _last(found: list[str]) -> str | None:
    return found[-1].strip() if found else None


WAYS: dict[str, Callable[[str], str | None]] = {
    w.__name__: w for w in (auto, last_equals, boxed, answer_tag, hashes, last_line, last_number, whole)
}


def same(answer: str, reference: str, *, ignore_case: bool = True) -> bool:
    """Equal as numbers where both are numbers, else as text; white space, a final full stop, `$`, `*` and back-ticks
    around the answer do not count."""
    left, right = _tidied(answer), _tidied(reference)
    numbers = _number(left), _number(right)
    if None not in numbers:
        return numbers[0] == numbers[1]
    if ignore_case:
        left, right = left.casefold(), right.casefold()
    return left == right


def _tidied(text: str) -> str:
    plain = " ".join(text.split())
    plain = plain[:-1] if len(plain) > 1 and plain.endswith(".") else plain
    return plain.strip("$*` ") or plain


def _number(text: str) -> Fraction | None:
    plain = text.replace(" ", "")
    if not plain or len(plain) > _LONGEST_NUMBER or not _NUMBER.fullmatch(plain):
        return None
    try:
        return Fraction(plain.replace(",", "").replace("−", "-").rstrip("."))
    except (ValueError, ZeroDivisionError):
        return None
