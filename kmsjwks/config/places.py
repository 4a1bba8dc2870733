"""Where a setting was written, and what is wrong with it, in one line for the operator."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

Location = tuple[str | int, ...]
"""The path of a setting: names of tables and settings, indices of lists."""

_BARE_NAME = re.compile(r"[A-Za-z0-9_-]+")
_SECRET_NAME = re.compile(r"pin|password|secret|token", re.IGNORECASE)
_URL_WITH_CREDENTIALS = re.compile(r"://.*@", re.DOTALL)
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Place:
    """A file and line, a variable, a credential or the command line.

    ``line`` orders the places in the file before all others. The value of a ``confidential``
    place is never shown: it was read from a file that may be the wrong one.
    """

    label: str
    line: int = 0
    confidential: bool = False


@dataclass(frozen=True, slots=True)
class Problem:
    place: Place
    message: str

    def __str__(self) -> str:
        return f"{self.place.label}: {self.message}"


def setting_name(location: Location) -> str:
    """As TOML writes a dotted key, with ``[0]`` for the first item of a list."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (
                part if _BARE_NAME.fullmatch(part) else json.dumps(part[:_SHOWN_CHARACTERS])
            )
    return text


def is_secret(location: Location) -> bool:
    """Whether the value of a setting may be a secret, judged by its name."""
    return location[:2] == ("database", "url") or any(
        isinstance(part, str) and _SECRET_NAME.search(part) for part in location
    )


def shown(location: Location, value: object, place: Place) -> str:
    """The value for a message, or nothing when it may be a secret or is no single value."""
    if place.confidential or is_secret(location):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value) if abs(value) < 10**20 else "a number beyond all bounds"
    if isinstance(value, str) and not _may_hold_secret(value):
        cut = value if len(value) <= _SHOWN_CHARACTERS else value[:_SHOWN_CHARACTERS] + "..."
        return json.dumps(cut, ensure_ascii=False)
    return ""


def _may_hold_secret(text: str) -> bool:
    """A value in the wrong place, such as a PKCS#11 URI with its ``pin-value``."""
    return bool(_SECRET_NAME.search(text) or _URL_WITH_CREDENTIALS.search(text))
