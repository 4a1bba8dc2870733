"""Sign and verify: grant, token rules, backend, local verification, audit, release."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kmsjwks.domain import strictjson
from kmsjwks.domain.access import Action, Principal, require
from kmsjwks.domain.audit import SigningRecord
from kmsjwks.domain.errors import (
    BackendDenied,
    InvalidRequest,
    KeyDisabled,
    KeyNotFound,
    KeysetNotFound,
    KeysetUnusable,
)
from kmsjwks.domain.jws import read_compact
from kmsjwks.domain.narrowing import TokenRequest
from kmsjwks.domain.ports import AuditSink, Clock
from kmsjwks.domain.tokens import LEEWAY, build_token
from kmsjwks.services.keytrouble import KeyTroubles
from kmsjwks.services.snapshot import ActiveKey, ReadyKeyset, SnapshotKeeper


@dataclass(frozen=True, slots=True)
class SignRequest:
    """``ttl`` is the wanted lifetime in seconds."""

    claims: Mapping[str, Any]
    ttl: int | None = None
    headers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SignedToken:
    token: str
    kid: str
    alg: str
    exp: int
    jti: str


@dataclass(frozen=True, slots=True)
class Verification:
    """``reason`` is empty for a valid token; ``claims`` only of a token whose signature held."""

    valid: bool
    kid: str | None
    claims: Mapping[str, Any] | None
    reason: str


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and under which request id it is recorded."""

    principal: Principal
    request_id: str


class SigningService:
    """Thread-safe; reads no database. ``troubles`` learns which keys are refused and which are
    not."""

    def __init__(
        self,
        snapshots: SnapshotKeeper,
        audit: AuditSink,
        clock: Clock,
        new_jti: Callable[[], str],
        troubles: KeyTroubles | None = None,
    ) -> None:
        self._snapshots, self._audit = snapshots, audit
        self._clock, self._new_jti = clock, new_jti
        self._troubles = troubles or KeyTroubles(clock)

    def sign_jwt(self, caller: Caller, keyset: str, request: SignRequest) -> SignedToken:
        """A signed JWT (RFC 7519), recorded before it is returned.

        Raises:
            Forbidden: no grant, whether the keyset exists or not.
            NotGranted: a grant, but not for such a token.
            KeysetNotFound, KeysetUnusable, ClaimRejected, BackendError, AuditUnavailable.
        """
        require(caller.principal, Action.SIGN, keyset)
        active, ready, now = self._active(keyset)
        try:
            return self._sign(caller, request, active, ready, now)
        except KeyNotFound as error:
            # A compromised key is destroyed at once, before every replica has looked again.
            if not self._troubles.was_just_refused(active.key.kid):
                self._snapshots.refresh()
            other, ready, now = self._active(keyset)
            if other.key.kid == active.key.kid:
                self._troubles.refused(active.key, str(error))
                raise
        return self._sign(caller, request, other, ready, now)

    def _active(self, keyset: str) -> tuple[ActiveKey, ReadyKeyset, float]:
        ready = self._snapshots.for_signing(keyset)
        if ready is None:
            raise KeysetNotFound(f"There is no keyset {keyset}.")
        now = self._clock.now()
        active = ready.active_at(now)
        if active is None:
            raise KeysetUnusable(f"The keyset {keyset} has no active key.", retry_after=30)
        return active, ready, now

    def _sign(
        self,
        caller: Caller,
        request: SignRequest,
        active: ActiveKey,
        ready: ReadyKeyset,
        now: float,
    ) -> SignedToken:
        content = build_token(
            ready.keyset.rules,
            request.claims,
            ttl=request.ttl,
            headers=request.headers,
            now=int(now),
            jti=self._new_jti(),
        )
        # What is signed is judged, not what was asked for.
        narrowed = TokenRequest(content.claims, content.exp - int(now))
        require(caller.principal, Action.SIGN, ready.keyset.name, narrowed)
        payload = strictjson.dumps(content.claims)
        key = active.key
        try:
            token = active.signer.compact(content.header, payload)
        except (KeyDisabled, BackendDenied) as error:
            self._troubles.refused(key, str(error))
            raise
        self._troubles.served(key.kid)
        self._snapshots.leases.signed(key.kid, content.exp)
        self._audit.record(
            SigningRecord(
                time=now,
                principal=caller.principal.name,
                keyset=ready.keyset.name,
                kid=key.kid,
                jti=content.jti,
                exp=content.exp,
                claims_sha256=hashlib.sha256(payload).hexdigest(),
                request_id=caller.request_id,
            )
        )
        return SignedToken(token, key.kid, key.algorithm.jose, content.exp, content.jti)

    def verify(self, caller: Caller, keyset: str, token: str) -> Verification:
        """Check a token against the published keys of one keyset; asks no backend.

        Raises:
            Forbidden: no grant, whether the keyset exists or not.
            KeysetNotFound: granted, but there is none.
        """
        require(caller.principal, Action.VERIFY, keyset)
        ready = self._snapshots.keyset(keyset)
        if ready is None:
            raise KeysetNotFound(f"There is no keyset {keyset}.")
        try:
            return _verify(ready, token, int(self._clock.now()))
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
