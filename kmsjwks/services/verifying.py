"""Whether a token is one of a keyset's, unexpired; no backend is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kmsjwks.domain import strictjson
from kmsjwks.domain.errors import InvalidRequest
from kmsjwks.domain.jws import read_compact
from kmsjwks.domain.tokens import LEEWAY
from kmsjwks.services.snapshot import ReadyKeyset


@dataclass(frozen=True, slots=True)
class Verification:
    """``reason`` is empty for a valid token; ``claims`` only of a token whose signature held."""

    valid: bool
    kid: str | None
    claims: Mapping[str, Any] | None
    reason: str


def verify_token(ready: ReadyKeyset, token: str, now: int) -> Verification:
    """By the published keys of a keyset; ``now`` in seconds since the epoch."""
    try:
        return _verify(ready, token, now)
    except InvalidRequest as error:
        return Verification(False, None, None, str(error))


def _verify(ready: ReadyKeyset, token: str, now: int) -> Verification:
    header, payload, signing_input, signature = read_compact(token)
    kid = header.get("kid")
    known = ready.verifiers.get(kid) if isinstance(kid, str) else None
    if known is None or not isinstance(kid, str):
        return Verification(False, None, None, "The kid is not one of this keyset's keys.")
    key, verify = known
    if header.get("alg") != key.algorithm.jose:
        return Verification(False, kid, None, "alg is not the algorithm of this key.")
    if "crit" in header or "b64" in header:
        return Verification(False, kid, None, "The header has parameters we never set.")
    if not verify(signing_input, signature):
        return Verification(False, kid, None, "The signature is not valid.")
    claims = strictjson.loads(payload)
    if not isinstance(claims, dict):
        return Verification(False, kid, None, "The payload is not a JSON object.")
    reason = _time_and_issuer(claims, ready.keyset.rules.issuer, now)
    return Verification(not reason, kid, claims, reason)


def _time_and_issuer(claims: Mapping[str, Any], issuer: str, now: int) -> str:
    exp, nbf = claims.get("exp"), claims.get("nbf")
    if not isinstance(exp, int) or exp <= now:
        return "The token has expired."
    if isinstance(nbf, int) and nbf > now + LEEWAY:
        return "The token is not valid yet."
    if claims.get("iss") != issuer:
        return "The token is not from this keyset's issuer."
    return ""
