"""The custody report as one self-contained HTML page: no scripts, nothing fetched, prints well."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

# What the members of domain.keys.KeyTimes are to a reader.
_DATES = {
    "created_at": "Created",
    "published_at": "Published",
    "activate_at": "Signs from",
    "deactivated_at": "Deactivated",
    "withdraw_at": "Leaves the JWKS",
    "private_destroyed_at": "Private key destroyed",
    "destroyed_at": "Destroyed",
    "max_exp": "Last token expires",
    "compromised_at": "Compromised",
    "seen_at": "Seen through public URL",
    "exp_bound": "No token expires after",
    "destroy_at": "Destruction is final",
}
_DAY, _HOUR, _MINUTE = 86400, 3600, 60


def custody_page(report: Mapping[str, Any]) -> str:
    """``report`` as ``services.custody`` makes it. Every value in it is escaped."""
    environment = Environment(
        loader=PackageLoader("kmsjwks.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        moment=_moment, date_name=_date_name, duration=_duration, said=_said, compact=_compact
    )
    return environment.get_template("custody.html").render(report=report)


def _date_name(name: str) -> str:
    return _DATES.get(name, name.replace("_", " "))


def _moment(seconds: Any) -> str:
    if not isinstance(seconds, int | float):
        return "\N{EN DASH}"
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return str(seconds)


def _duration(seconds: Any) -> str:
    if not isinstance(seconds, int):
        return "on demand"
    for size, unit in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min")):
        if seconds and seconds % size == 0:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _said(value: Any) -> str:
    """As a person would write it."""
    if value is None or value == "":
        return "\N{EN DASH}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(str(one) for one in value) or "\N{EN DASH}"
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False) if value else "\N{EN DASH}"
    return str(value)


def _compact(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
