"""Tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click


def emit(context: click.Context, value: Any) -> None:
    """Print a mapping or a list of mappings in the format that ``-o`` asked for."""
    if context.find_root().params.get("output") == "json":
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))
    elif isinstance(value, Mapping):
        _print_members(value)
    else:
        _print_table(value)


def shown_time(seconds: int | None) -> str:
    """RFC 3339 in UTC; a dash where there is none."""
    if seconds is None:
        return "-"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def shown_duration(seconds: int) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _print_members(value: Mapping[str, Any]) -> None:
    width = max((len(name) for name in value), default=0)
    nested = []
    for name, member in value.items():
        if isinstance(member, list) and member and isinstance(member[0], Mapping):
            nested.append((name, member))
        else:
            click.echo(f"{name:<{width}}  {_cell(member)}")
    for name, rows in nested:
        click.echo(f"\n{name}:")
        _print_table(rows)


def _print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        click.echo("none", err=True)
        return
    columns = list(rows[0])
    cells = [[name.upper() for name in columns]]
    cells += [[_cell(row[name]) for name in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        click.echo("  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(str(one) for one in value) or "-"
    return str(value)
