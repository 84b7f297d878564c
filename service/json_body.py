"""A refused body read by `json`: what is JSON, which keys stood in it twice, and where it breaks off.

It runs for bodies that the typed decoders refuse, and knows nothing of what a request should hold.
"""

from __future__ import annotations

import json
import math
import re

from service.problems import FieldError, Problem

_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"|[{}\[\],:]')
_SHOWN_KEY = re.compile(r"[A-Za-z0-9_.$@:\-]{1,64}")
_MANY_CHARACTERS = 100_000  # beyond it, where a syntax error stands is told by its position alone
_MANY_DIGITS = re.compile(r"[0-9]{400}")  # more than any finite float has; int() itself refuses 4,301


class JsonObject(dict[str, object]):
    """A JSON object that knows which keys stood in it twice."""

    repeated: tuple[str, ...] = ()


def _object(pairs: list[tuple[str, object]]) -> JsonObject:
    found = JsonObject(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        found.repeated = tuple(dict.fromkeys(key for key, _ in pairs if key in seen or seen.add(key)))
    return found


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < 400 else math.inf


def parsed_body(body: bytes) -> object:
    """Return what `json` makes of a body, its objects knowing their repeated keys; Problem 400 where it is no JSON."""
    if not body.strip():
        raise _no_json("empty_body", "expected a JSON object, got no body", "")
    if body.startswith(b"\xef\xbb\xbf"):
        raise _no_json("byte_order_mark", "expected UTF-8 without a byte order mark", "")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _no_json("invalid_utf8", f"expected UTF-8; byte {error.start} is not", "") from None
    try:
        # Each hook is a call for every object or integer of up to 1 MB.
        parse_int = _integer if _MANY_DIGITS.search(text) else None
        return json.loads(text, object_pairs_hook=_object, parse_int=parse_int)
    except json.JSONDecodeError as error:
        where = f"expected JSON; line {error.lineno}, column {error.colno} is not"
        raise _no_json("invalid_json", where, _path_at(text, error.pos)) from None
    except RecursionError:
        raise _no_json("too_deep", "expected at most 8 levels of nesting", "") from None


def _no_json(code: str, text: str, path: str) -> Problem:
    return Problem(400, code, detail="The body is no JSON text.", errors=(FieldError(path, code, text),))


def _path_at(text: str, position: int) -> str:
    """Return the path of the value that stands at `position` of a broken text, as far as it can be told."""
    if position > _MANY_CHARACTERS:
        return ""
    steps: list[str | int] = []
    expects_key: list[bool] = []
    for token in _TOKEN.finditer(text, 0, position):
        mark = token[0]
        if mark in "{[":
            steps.append("" if mark == "{" else 0)
            expects_key.append(mark == "{")
        elif not steps:
            continue
        elif mark in "}]":
            steps.pop()
            expects_key.pop()
        elif mark == ",":
            last = steps[-1]
            steps[-1] = last + 1 if isinstance(last, int) else ""
            expects_key[-1] = not isinstance(last, int)
        elif mark == ":":
            expects_key[-1] = False
        elif expects_key[-1]:
            steps[-1] = shown_key(token[1])
        if len(steps) > 16:
            return ""
    return ".".join(str(step) for step in steps if step != "")


def shown_key(key: str) -> str:
    """Return a key as it may stand in a path: an odd one may be somebody's name, or a line of a log."""
    return key if _SHOWN_KEY.fullmatch(key) else "?"
