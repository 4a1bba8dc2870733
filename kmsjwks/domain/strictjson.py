"""JSON in and out without loss: I-JSON (RFC 7493) on the way in, exact integers on the way out."""

from __future__ import annotations

import json
import math
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn

from kmsjwks.domain.errors import MalformedJson

MAX_DEPTH = 32


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise MalformedJson(f"The member name {_shown(name)} appears twice in one object.")
            seen.add(name)
    return members


def _shown(text: str) -> str:
    return json.dumps(text[:64])


def _constant(name: str) -> NoReturn:
    raise MalformedJson(f"{name} is not JSON. Send a number, a string or null.")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise MalformedJson(
            "A number in the body is too large to survive JSON. Send it as a string."
        )
    try:
        intact = Decimal(text) == Decimal(repr(value))
    except InvalidOperation:
        intact = False
    if not intact:
        raise MalformedJson(
            "A number in the body has more digits than a JSON number carries safely. "
            "Send it as a string."
        )
    return value


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, strict=True
)


def loads(data: bytes) -> Any:
    """Parse UTF-8 JSON strictly.

    Raises:
        MalformedJson: not UTF-8, bad syntax, duplicate names, NaN or infinities, numbers that
            would change, lone surrogates, more than ``MAX_DEPTH`` levels.
    """
    try:
        value = _DECODER.decode(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise MalformedJson("The body is not UTF-8.") from error
    except RecursionError as error:
        raise MalformedJson(f"The body is nested deeper than {MAX_DEPTH} levels.") from error
    except json.JSONDecodeError as error:
        raise MalformedJson(
            f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from error
    except ValueError as error:  # integers beyond sys.get_int_max_str_digits()
        raise MalformedJson(
            "A number in the body has too many digits. Send it as a string."
        ) from error
    # What cannot be too deep, or hold a surrogate that is not half of a pair, is not walked.
    if b"\\u" in data:
        _check_text(value)
    if data.count(b"{") + data.count(b"[") > MAX_DEPTH:
        _check_depth(value, MAX_DEPTH)
    return value


def _check_depth(value: Any, levels: int) -> None:
    if not isinstance(value, dict | list):
        return
    if levels == 0:
        raise MalformedJson(f"The body is nested deeper than {MAX_DEPTH} levels.")
    for member in value.values() if isinstance(value, dict) else value:
        if isinstance(member, dict | list):
            _check_depth(member, levels - 1)


def _check_text(value: Any) -> None:
    """Lone surrogates: UTF-8 has none, an escape may be one."""
    if isinstance(value, str):
        if not value.isascii():
            _encode(value)
    elif isinstance(value, dict):
        for name, member in value.items():
            _check_text(name)
            _check_text(member)
    elif isinstance(value, list):
        for member in value:
            _check_text(member)


def _encode(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise MalformedJson(
            "A string holds a lone surrogate, which is not Unicode text. Send a valid string."
        ) from error


def dumps(value: Any) -> bytes:
    """Compact UTF-8 JSON; integers of any size as they are.

    Raises:
        MalformedJson: a value that JSON cannot carry (NaN, infinities, lone surrogates).
    """
    try:
        return _ENCODER.encode(value).encode("utf-8")
    except ValueError as error:  # also UnicodeEncodeError
        raise MalformedJson("The value cannot be written as JSON.") from error


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
