"""Single settings given outside the file, and how they are put over it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmsjwks.config import values
from kmsjwks.config.places import Place
from kmsjwks.config.schema import setting_kind
from kmsjwks.domain.errors import MalformedJson
from kmsjwks.domain.strictjson import loads

MAX_VALUE_BYTES = 1024 * 1024

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_FLOAT = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_BOOLEANS = {"true": True, "false": False}
_OPTION = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Assignment:
    """One setting from the environment, a credential or the command line."""

    location: tuple[str, ...]
    value: object
    place: Place


def split_name(dotted: str) -> tuple[str, ...] | None:
    """The location of a dotted name such as ``server.port``; None when no such setting exists.

    The name of a backend or client may itself hold dots: its option is what follows the last.
    """
    parts = tuple(dotted.split("."))
    if parts[0] in ("backends", "clients"):
        parts = (parts[0], ".".join(parts[1:-1]), parts[-1])
        if not (values.is_name(parts[1]) and _OPTION.fullmatch(parts[2])):
            return None
    return parts if setting_kind(parts) else None


def lookup(data: Mapping[str, Any], location: Iterable[str]) -> object | None:
    """The value at ``location``; None where there is none (TOML has no null)."""
    value: object = data
    for part in location:
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def read_value(path: Path) -> str:
    """The text of a small file, without its trailing newline.

    Raises:
        ValueError: it cannot be read; the text says why, to follow the name of the file.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_VALUE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    if len(content) > MAX_VALUE_BYTES:
        raise ValueError(f"is longer than {MAX_VALUE_BYTES} bytes")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None
    return text.removesuffix("\n").removesuffix("\r")


def parse_text(text: str, location: tuple[str, ...], file_value: object | None) -> object:
    """Read ``text`` as the setting's type; what does not fit stays text, for validation to refuse.

    Only the backend knows the type of its options: they take the type that the file gives the
    same option. Without one, a JSON list or object is read as such and all else stays text: the
    serial number of a token may be all digits.
    """
    kind = setting_kind(location)
    if kind is object:
        kind = type(file_value) if file_value is not None else _kind_by_look(text)
    return _parse(text, kind)


def _kind_by_look(text: str) -> type:
    return list if text.startswith(("[", "{")) else str


def _parse(text: str, kind: type | None) -> object:
    if kind is bool:
        return _BOOLEANS.get(text.lower(), text)
    if kind is int and _INTEGER.fullmatch(text):
        return int(text)
    if kind is float and _FLOAT.fullmatch(text):
        return float(text)
    if kind in (list, dict):
        return _parse_json(text)
    return text


def _parse_json(text: str) -> object:
    try:
        return loads(text.encode("utf-8", "surrogateescape"))
    except MalformedJson:
        return text


def overlay(data: Mapping[str, Any], assignments: Iterable[Assignment]) -> dict[str, Any]:
    """A copy of ``data`` with each assignment put in, later ones over earlier ones."""
    merged: dict[str, Any] = copy.deepcopy(dict(data))
    for assignment in assignments:
        _assign(merged, assignment)
    return merged


def _assign(data: dict[str, Any], assignment: Assignment) -> None:
    *tables, last = assignment.location
    table = data
    for name in tables:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            return  # the file has a value where a table belongs: validation reports it
    table[last] = assignment.value
