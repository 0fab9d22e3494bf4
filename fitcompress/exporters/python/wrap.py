"""Breaks long lines of Python as ruff's formatter does."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["WIDTH", "broken"]

WIDTH = 100
_INDENT = "    "
_PAIRS = {"(": ")", "[": "]", "{": "}"}


def broken(line: str, spare: int = 0) -> list[str]:
    """The line, broken if it is too long: the content of its last brackets goes on one line, or
    each part on its own line, as always in a list or tuple.

    spare: characters that follow the line.

    >>> broken("x = call(" + ", ".join(["argument"] * 10) + ")")[0]
    'x = call('
    """
    found = _last_brackets(line) if len(line) + spare > WIDTH else None
    if found is None:
        return [line]
    start, end = found
    indent = line[: len(line) - len(line.lstrip())]
    head, body, tail = line[: start + 1], line[start + 1 : end], line[end:]
    inner = f"{indent}{_INDENT}"
    clauses, parts = _clauses(body), list(_parts(body))
    if len(clauses) > 1:  # a generator
        parts = [body]
    is_call = line[:start][-1:].isidentifier() or line[:start][-1:].isdigit()
    if len(inner) + len(body) <= WIDTH and (is_call or len(parts) == 1):
        lines = [inner + body]
    elif len(clauses) > 1:
        lines = [text for clause in clauses for text in broken(inner + clause)]
    else:
        lines = [text for part in parts for text in _ended(broken(inner + part, spare=1))]
    return [head, *lines, f"{indent}{tail}"]


def _ended(lines: list[str]) -> list[str]:
    return [*lines[:-1], f"{lines[-1]},"]


def _last_brackets(line: str) -> tuple[int, int] | None:
    """Where the last outermost brackets with content open and close; in the head of a function,
    those of its arguments.
    """
    found, stack = None, list[int]()
    is_head = line.lstrip().startswith("def ")
    for place, sign in _signs(line):
        if sign in _PAIRS:
            stack.append(place)
        elif sign in _PAIRS.values():
            start = stack.pop()
            if not stack and place > start + 1 and not (is_head and found):
                found = start, place
    return found


def _parts(body: str) -> Iterator[str]:
    """The parts between commas outside brackets."""
    depth, start = 0, 0
    for place, sign in _signs(body):
        depth += (sign in _PAIRS) - (sign in _PAIRS.values())
        if sign == "," and not depth:
            yield body[start:place].strip()
            start = place + 1
    if body[start:].strip():
        yield body[start:].strip()


def _clauses(text: str) -> list[str]:
    """The element of a comprehension, and each `for` clause after it."""
    depth, start, clauses = 0, 0, []
    for place, sign in _signs(text):
        depth += (sign in _PAIRS) - (sign in _PAIRS.values())
        if not depth and text.startswith(" for ", place):
            clauses.append(text[start:place].strip())
            start = place
    return [*clauses, text[start:].strip()]


def _signs(text: str) -> Iterator[tuple[int, str]]:
    """Every character outside string literals, with its place."""
    quote = ""
    skip = False
    for place, sign in enumerate(text):
        if skip:
            skip = False
        elif quote:
            skip = sign == "\\"
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        else:
            yield place, sign
