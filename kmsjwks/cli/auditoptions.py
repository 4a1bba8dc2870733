"""Filters of `kmsjwks audit tail` and `search`, and how records are shown."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from kmsjwks.cli.types import Duration
from kmsjwks.domain.auditfilter import RecordFilter
from kmsjwks.services.auditproof import shown

F = TypeVar("F", bound=Callable[..., Any])
_EXACT = ("principal", "keyset", "kid", "jti")
_COLUMNS = (("TIME", 20), ("EVENT", 26), ("PHASE", 8), ("PRINCIPAL", 16), ("KEYSET", 16))


class Moment(click.ParamType[float]):
    """An RFC 3339 time, a date, or how long ago (``15m``) -> seconds since the epoch."""

    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        if isinstance(value, float):
            return value
        try:
            made = datetime.fromisoformat(str(value))
        except ValueError:
            try:
                return time.time() - Duration().convert(value, param, ctx)
            except click.BadParameter:
                self.fail(f"{value!r} is neither 2026-05-01T12:00:00Z nor 15m.", param, ctx)
        return (made if made.tzinfo else made.replace(tzinfo=UTC)).timestamp()


def filter_options(command: F) -> F:
    options = [
        click.option("--directory", type=click.Path(exists=True, file_okay=False, path_type=Path),
                     help="Audit directory. Default: the configured one."),
        *(click.option(f"--{name}", help=f"Only this {name}.") for name in _EXACT),
        click.option("--event", help="Only this event; may be a pattern such as 'lifecycle.*'."),
        click.option("--since", type=Moment(), help="From this time on, or so long ago (15m)."),
        click.option("--until", type=Moment(), help="Before this time."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def chosen(given: dict[str, Any]) -> RecordFilter:
    """``given`` without ``directory``."""
    return RecordFilter(**given)


class Columns:
    """Records as they come, however many: a table, or with ``-o json`` one object a line."""

    def __init__(self, context: click.Context) -> None:
        self._json = context.find_root().params.get("output") == "json"
        self._headed = False

    def show(self, records: Iterable[dict[str, Any]]) -> None:
        for record in records:
            if self._json:
                click.echo(json.dumps(record, ensure_ascii=False))
                continue
            if not self._headed:
                self._headed = True
                click.echo(_row([name for name, _ in _COLUMNS], "DETAILS"))
            click.echo(_row(_cells(record), _details(record)))


def _row(cells: list[str], rest: str) -> str:
    widths = [width for _, width in _COLUMNS]
    padded = (f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))
    return "  ".join((*padded, rest)).rstrip()


def _cells(record: dict[str, Any]) -> list[str]:
    moment = record.get("time")
    when = shown(moment) if isinstance(moment, int | float) else "-"
    return [when, *(_plain(record.get(name)) for name in ("event", "phase", "principal", "keyset"))]


def _details(record: dict[str, Any]) -> str:
    """Whatever else it says but its place, which is for machines."""
    shown_already = {"time", "event", "phase", "principal", "keyset", "chain", "seq", "prev"}
    left = {name: value for name, value in record.items() if name not in shown_already}
    return " ".join(f"{_plain(name)}={_plain(value)}" for name, value in left.items())


def _plain(value: Any) -> str:
    """No control characters: a terminal would obey them."""
    if value is None:
        return "-"
    text = value if isinstance(value, str) else json.dumps(value)
    return "".join(one if one.isprintable() else f"\\x{ord(one):02x}" for one in text)
