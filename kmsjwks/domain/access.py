"""Who may do what: principals, grants, decisions. No grant means no."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase

from kmsjwks.domain.errors import Forbidden, NotGranted
from kmsjwks.domain.narrowing import NOT_NARROWED, Narrowing, TokenRequest

_MOST_REMEMBERED = 4096  # decisions of one principal; callers choose the names

SCHEDULER = "scheduler"
"""Who does what is due by itself; no client has this name."""


class Action(Enum):
    """Each is granted on its own: none includes another."""

    SIGN = "sign"
    VERIFY = "verify"
    READ = "read"
    ROTATE = "rotate"
    MANAGE = "manage"
    DESTROY = "destroy"
    AUDIT = "audit"


@dataclass(frozen=True, slots=True)
class Grant:
    """Actions on the keysets whose names match one of the glob patterns.

    ``narrowing`` is what signed tokens must look like beyond the keyset's rules. ``rule`` is where
    the grant is written, such as ``clients.billing.grants[0]``.
    """

    actions: frozenset[Action]
    keysets: tuple[str, ...]
    narrowing: Narrowing = NOT_NARROWED
    rule: str = ""

    def covers(self, action: Action, keyset: str) -> bool:
        return action in self.actions and any(
            fnmatchcase(keyset, pattern) for pattern in self.keysets
        )


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller."""

    name: str
    grants: tuple[Grant, ...] = ()
    _covering: dict[tuple[Action, str], tuple[Grant, ...]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    def covering(self, action: Action, keyset: str) -> tuple[Grant, ...]:
        """The grants that concern both, whatever they narrow. Remembered: grants do not change."""
        found = self._covering.get((action, keyset))
        if found is None:
            found = tuple([grant for grant in self.grants if grant.covers(action, keyset)])
            if len(self._covering) >= _MOST_REMEMBERED:
                self._covering.clear()
            self._covering[action, keyset] = found
        return found

    def may(self, action: Action, keyset: str, request: TokenRequest | None = None) -> bool:
        return _allow(self.covering(action, keyset), request)


def _allow(covering: tuple[Grant, ...], request: TokenRequest | None) -> bool:
    """One is enough, and has to allow all of it."""
    if request is None:
        return bool(covering)
    return any(grant.narrowing.breach(request) is None for grant in covering)


@dataclass(frozen=True, slots=True)
class Permission:
    """That a principal may do something with a keyset, so far as no narrowing is in the way:
    for many tokens, each of which is then asked about. Made by ``permit``."""

    principal: Principal
    action: Action
    keyset: str
    covering: tuple[Grant, ...]

    def require(self, request: TokenRequest) -> None:
        """
        Raises:
            NotGranted: none of the grants allows such a token.
        """
        if not _allow(self.covering, request):
            raise _refusal(self.principal, self.action, self.keyset, request)

    @property
    def narrows(self) -> bool:
        """Whether ``require`` can refuse anything."""
        return not any(grant.narrowing is NOT_NARROWED for grant in self.covering)


@dataclass(frozen=True, slots=True)
class Decision:
    """``rule`` is the grant that made it, empty where none covers the action; ``why`` is one
    sentence; ``member`` the claim (or ``ttl``) that is in the way, empty where none is."""

    allowed: bool
    rule: str
    why: str
    member: str = ""


def decide(
    principal: Principal, action: Action, keyset: str, request: TokenRequest | None = None
) -> Decision:
    """One grant is enough, and has to allow all of it: grants do not add up.

    Depends on names alone, so that the answer is the same whether the keyset exists or not.
    ``request`` is what would be signed, for ``SIGN`` only; without it the narrowing of grants is
    not looked at.
    """
    refused: Decision | None = None
    for grant in principal.grants:
        if not grant.covers(action, keyset):
            continue
        breach = None if request is None else grant.narrowing.breach(request)
        if breach is None:
            return Decision(True, grant.rule, _allows(grant, action, request))
        refused = refused or Decision(False, grant.rule, breach.why, breach.member)
    return refused or Decision(
        False, "", f"{principal.name} has no grant to {action.value} with a keyset of this name."
    )


def _allows(grant: Grant, action: Action, request: TokenRequest | None) -> str:
    text = f"It allows {action.value} with keysets named {' or '.join(grant.keysets)}."
    narrowed = grant.narrowing.described()
    if action is not Action.SIGN or not narrowed:
        return text
    if request is None:
        return f"{text} Tokens must have {'; '.join(narrowed)}."
    if request.lifetime is None and grant.narrowing.max_lifetime is not None:
        return f"{text} The claims are allowed; the lifetime was not judged, give one."
    return f"{text} The token is what it allows: {'; '.join(narrowed)}."


def require(
    principal: Principal, action: Action, keyset: str, request: TokenRequest | None = None
) -> None:
    """As ``decide``.

    Raises:
        Forbidden: no grant of the principal covers this.
        NotGranted: one does, but not for such a token.
    """
    if not principal.may(action, keyset, request):
        raise _refusal(principal, action, keyset, request)


def permit(principal: Principal, action: Action, keyset: str) -> Permission:
    """
    Raises:
        Forbidden: no grant of the principal covers this.
    """
    covering = principal.covering(action, keyset)
    if not covering:
        raise _refusal(principal, action, keyset, None)
    return Permission(principal, action, keyset, covering)


def _refusal(
    principal: Principal, action: Action, keyset: str, request: TokenRequest | None
) -> Forbidden | NotGranted:
    decision = decide(principal, action, keyset, request)
    if not decision.rule and not decision.member:
        return Forbidden(f"{decision.why} Ask the operator for one.")
    where = f" (rule {decision.rule})" if decision.rule else ""
    return NotGranted(
        f"The grant of {principal.name}{where} does not allow this token: {decision.why}",
        member=decision.member,
    )
