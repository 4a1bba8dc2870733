"""Who may do what: principals, grants, decisions. No grant means no."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase

from kmsjwks.domain.errors import Forbidden


class Action(Enum):
    SIGN = "sign"
    VERIFY = "verify"
    READ = "read"
    MANAGE = "manage"
    AUDIT = "audit"


@dataclass(frozen=True, slots=True)
class Grant:
    """Actions on the keysets whose names match one of the glob patterns."""

    actions: frozenset[Action]
    keysets: tuple[str, ...]

    def covers(self, action: Action, keyset: str) -> bool:
        return action in self.actions and any(
            fnmatchcase(keyset, pattern) for pattern in self.keysets
        )


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller."""

    name: str
    grants: tuple[Grant, ...] = ()

    def may(self, action: Action, keyset: str) -> bool:
        return any(grant.covers(action, keyset) for grant in self.grants)


def require(principal: Principal, action: Action, keyset: str) -> None:
    """Decide by the name alone, so that the answer is the same whether the keyset exists or not.

    Raises:
        Forbidden: no grant of the principal covers this.
    """
    if not principal.may(action, keyset):
        raise Forbidden(
            f"{principal.name} has no grant to {action.value} with a keyset of this name. "
            "Ask the operator for one."
        )
