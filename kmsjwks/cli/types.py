"""Parameter types: durations and delays, JSON claims from an argument, a file or stdin."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import click

from kmsjwks.domain import strictjson
from kmsjwks.domain.errors import MalformedJson

NEVER = "never"
_DURATION = re.compile(r"(\d{1,9})([smhd]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class Duration(click.ParamType[int]):
    """``90``, ``90s``, ``15m``, ``1h``, ``30d`` -> seconds."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        if isinstance(value, int):
            return value
        match = _DURATION.fullmatch(str(value))
        if match is None:
            self.fail(f"{value!r} is not a duration such as 90s, 15m, 1h or 30d.", param, ctx)
        return int(match[1]) * _SECONDS[match[2]]


class Delay(Duration):
    """A duration, or ``never``, which stays that word."""

    name = "duration|never"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return value if value == NEVER else super().convert(value, param, ctx)


class JsonObject(click.ParamType[dict[str, Any]]):
    """A JSON object; ``@FILE`` reads it from a file and ``-`` from standard input."""

    name = "json"

    def convert(self, value: Any, param: Any, ctx: Any) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        try:
            parsed = strictjson.loads(_source(value))
        except MalformedJson as error:
            self.fail(str(error), param, ctx)
        except OSError as error:
            self.fail(f"{value[1:]}: {error.strerror}", param, ctx)
        if not isinstance(parsed, dict):
            self.fail("must be a JSON object.", param, ctx)
        return parsed


def _source(value: str) -> bytes:
    if value == "-":
        return sys.stdin.buffer.read()
    if value.startswith("@"):
        return Path(value[1:]).read_bytes()
    return value.encode("utf-8", "surrogatepass")
