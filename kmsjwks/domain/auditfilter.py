"""Which audit records somebody wants to see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from kmsjwks.domain import strictjson


@dataclass(frozen=True, slots=True)
class RecordFilter:
    """None wants all. ``event`` may be a pattern such as ``lifecycle.*``; ``since`` (included) and
    ``until`` (not included) in seconds since the epoch."""

    principal: str | None = None
    keyset: str | None = None
    kid: str | None = None
    jti: str | None = None
    event: str | None = None
    since: float | None = None
    until: float | None = None

    def matches(self, record: Mapping[str, Any]) -> bool:
        if any(record.get(name) != value for name, value in self._exact()):
            return False
        if self.event is not None and not fnmatchcase(str(record.get("event")), self.event):
            return False
        if self.since is None and self.until is None:
            return True
        time = record.get("time")
        if not isinstance(time, int | float):
            return False
        late_enough = self.since is None or time >= self.since
        return late_enough and (self.until is None or time < self.until)

    def needles(self) -> tuple[bytes, ...]:
        """What the line of a wanted record holds in any case: quicker to look for than to parse."""
        return tuple(strictjson.dumps(value) for _, value in self._exact())

    def _exact(self) -> Iterator[tuple[str, str]]:
        for name in ("principal", "keyset", "kid", "jti"):
            value = getattr(self, name)
            if value is not None:
                yield name, value
