"""Quotas: how many requests a principal may send, and which rule says so."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType

PERIODS: Mapping[str, int] = MappingProxyType(
    {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
)
UNLIMITED = "unlimited"
_RATE = re.compile(r"([1-9][0-9]{0,8})/(second|minute|hour|day)")


@dataclass(frozen=True, slots=True)
class Quota:
    """``count`` requests in ``period`` seconds, evenly; ``burst`` of them may come at once."""

    count: int
    period: int
    burst: int

    def __str__(self) -> str:
        unit = next(name for name, seconds in PERIODS.items() if seconds == self.period)
        return f"{self.count}/{unit}"


def parse_quota(text: str, burst: int | None = None) -> Quota | None:
    """``"600/minute"``; None for ``"unlimited"``. Without ``burst`` it is the count.

    Raises:
        ValueError: its text completes "<setting>: ...".
    """
    if text == UNLIMITED:
        return None
    found = _RATE.fullmatch(text)
    if found is None:
        raise ValueError(
            f'must be a number per {", ".join(PERIODS)}, such as "600/minute", or "{UNLIMITED}"'
        )
    count = int(found[1])
    return Quota(count, PERIODS[found[2]], burst or count)


@dataclass(frozen=True, slots=True)
class QuotaRule:
    """``clients`` and ``keysets`` are glob patterns; ``quota`` is None for no limit. ``name`` is
    where the rule is written, such as ``quotas.rules[0]``."""

    clients: tuple[str, ...]
    keysets: tuple[str, ...]
    quota: Quota | None
    name: str

    def covers(self, client: str, keyset: str) -> bool:
        return any(fnmatchcase(client, one) for one in self.clients) and any(
            fnmatchcase(keyset, one) for one in self.keysets
        )


@dataclass(frozen=True, slots=True)
class QuotaPlan:
    """``use`` is what signing and verifying with a keyset has where no rule covers it;
    ``management`` is for all other requests of a principal together."""

    use: Quota | None = None
    management: Quota | None = None
    rules: tuple[QuotaRule, ...] = ()

    def for_use(self, client: str, keyset: str) -> tuple[Quota | None, str]:
        """The quota and where it is written. The first rule that covers both decides."""
        for rule in self.rules:
            if rule.covers(client, keyset):
                return rule.quota, rule.name
        return self.use, "quotas.default"

    @property
    def limits_use(self) -> bool:
        return self.use is not None or any(rule.quota is not None for rule in self.rules)


NO_QUOTAS = QuotaPlan()
