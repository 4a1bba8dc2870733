"""What the service would say to a request for a token, told without signing one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kmsjwks.config import Settings
from kmsjwks.domain.access import Action, Decision, Principal, decide
from kmsjwks.domain.errors import ClaimRejected, StoreUnavailable
from kmsjwks.domain.narrowing import TokenRequest
from kmsjwks.domain.tokenrules import TokenRules
from kmsjwks.domain.tokens import build_token
from kmsjwks.storage.engine import make_engine
from kmsjwks.storage.keystore import SqlKeyStore


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a caller would send; ``ttl`` in seconds, None for none."""

    claims: Mapping[str, Any]
    ttl: int | None


def decide_token(
    settings: Settings, principal: Principal, keyset: str, wanted: Wanted
) -> tuple[Decision, str]:
    """As the service decides: grants by name, then the keyset's rules, then the narrowing of grants
    on what would be signed. And a note where the rules could not be looked at."""
    named = decide(principal, Action.SIGN, keyset)
    if not named.allowed:
        return named, ""
    rules, note = _rules(settings, keyset)
    if rules is None:
        return decide(principal, Action.SIGN, keyset, _as_sent(wanted)), note
    now = int(time.time())
    try:
        content = build_token(rules, wanted.claims, ttl=wanted.ttl, headers={}, now=now, jti="-")
    except ClaimRejected as error:
        return Decision(False, f"token rules of the keyset {keyset}", str(error), error.member), ""
    signed = TokenRequest(content.claims, content.exp - now)
    return decide(principal, Action.SIGN, keyset, signed), ""


def _rules(settings: Settings, keyset: str) -> tuple[TokenRules | None, str]:
    try:
        known = SqlKeyStore(make_engine(settings.database.url, create=False)).keysets()
    except StoreUnavailable:
        return None, "The database cannot be read, so only the grants were looked at."
    found = next((one for one in known if one.name == keyset), None)
    if found is None:
        return None, f"There is no keyset {keyset}, so only the grants were looked at."
    return found.rules, ""


def _as_sent(wanted: Wanted) -> TokenRequest:
    exp = wanted.claims.get("exp")
    if wanted.ttl is None and isinstance(exp, int):
        return TokenRequest(wanted.claims, exp - int(time.time()))
    return TokenRequest(wanted.claims, wanted.ttl)
