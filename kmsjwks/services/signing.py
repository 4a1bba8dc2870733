"""Sign and verify: grant, token rules, backend, local verification, audit, release."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kmsjwks.domain import strictjson
from kmsjwks.domain.access import Action, Principal, require
from kmsjwks.domain.audit import SigningRecord
from kmsjwks.domain.errors import (
    BackendDenied,
    BackendError,
    BackendProtocolError,
    BatchTimedOut,
    KeyDisabled,
    KeyNotFound,
    KeysetNotFound,
    KeysetUnusable,
    KmsJwksError,
    MessageTooLarge,
)
from kmsjwks.domain.narrowing import TokenRequest
from kmsjwks.domain.ports import AuditSink, Clock
from kmsjwks.domain.tokens import build_token
from kmsjwks.services.fanout import FanOut
from kmsjwks.services.keytrouble import KeyTroubles
from kmsjwks.services.snapshot import ActiveKey, ReadyKeyset, SnapshotKeeper
from kmsjwks.services.verifying import Verification, verify_token

BATCH_SECONDS = 10.0
"""How long a batch may take. Far below what the leases of a key outlive its last use by."""

_OF_ONE_MESSAGE = (BackendProtocolError, MessageTooLarge)  # the next one may well be signed


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
class _Made:
    """A token that must not be released before its record is durable."""

    signed: SignedToken
    record: SigningRecord


@dataclass(frozen=True, slots=True)
class _Using:
    """What a request is signed with; ``now`` in seconds since the epoch."""

    active: ActiveKey
    ready: ReadyKeyset
    now: float


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
        self._fan_out = FanOut()
        self._troubles = troubles or KeyTroubles(clock)

    def sign_jwt(self, caller: Caller, keyset: str, request: SignRequest) -> SignedToken:
        """A signed JWT (RFC 7519), recorded before it is returned.

        Raises:
            Forbidden: no grant, whether the keyset exists or not.
            NotGranted: a grant, but not for such a token.
            KeysetNotFound, KeysetUnusable, ClaimRejected, BackendError, AuditUnavailable.
        """
        require(caller.principal, Action.SIGN, keyset)
        using = self._active(keyset)
        try:
            made = self._make(caller, request, using)
        except KeyNotFound as error:
            other = self._successor(keyset, using, error)
            if other is None:
                raise
            made = self._make(caller, request, other)
        self._audit.record(made.record)
        return made.signed

    def sign_batch(
        self, caller: Caller, keyset: str, requests: Sequence[SignRequest]
    ) -> list[SignedToken | KmsJwksError]:
        """As ``sign_jwt``, for several: for each, in their order, a token or why there is none.
        All are signed with one key, and recorded together before any is returned.

        Once the backend fails, it is asked no more for this batch.

        Raises:
            Forbidden: no grant, whether the keyset exists or not.
            AuditUnavailable: no token is returned.
            KeysetNotFound, KeysetUnusable, StoreUnavailable.
        """
        require(caller.principal, Action.SIGN, keyset)
        until, using = time.monotonic() + BATCH_SECONDS, self._active(keyset)
        outcomes = self._make_all(caller, requests, using, until)
        gone = next((one for one in outcomes if isinstance(one, KeyNotFound)), None)
        if gone is not None:
            other = self._successor(keyset, using, gone)
            if other is not None:
                # Verifiers do not know the key any more that made the first ones.
                outcomes = self._make_all(caller, requests, other, until)
        self._audit.record_all([one.record for one in outcomes if isinstance(one, _Made)])
        return [one.signed if isinstance(one, _Made) else one for one in outcomes]

    def _make_all(
        self, caller: Caller, requests: Sequence[SignRequest], using: _Using, until: float
    ) -> list[_Made | KmsJwksError]:
        outcomes: list[_Made | KmsJwksError | None] = [None] * len(requests)
        stop: list[BackendError] = []

        def make(index: int) -> bool:
            try:
                outcomes[index] = self._make(caller, requests[index], using)
            except KmsJwksError as error:
                outcomes[index] = error
                if isinstance(error, BackendError) and not isinstance(error, _OF_ONE_MESSAGE):
                    stop.append(error)
            return not stop

        self._fan_out.run(make, len(requests), using.active.concurrency, until)
        missing = stop[0] if stop else _timed_out()
        return [missing if one is None else one for one in outcomes]

    def _successor(self, keyset: str, gone: _Using, error: KeyNotFound) -> _Using | None:
        """A compromised key is destroyed at once, before every replica has looked again. None
        where it is still to be used."""
        key = gone.active.key
        if not self._troubles.was_just_refused(key.kid):
            self._snapshots.refresh()
        other = self._active(keyset)
        if other.active.key.kid != key.kid:
            return other
        self._troubles.refused(key, str(error))
        return None

    def _active(self, keyset: str) -> _Using:
        ready = self._snapshots.for_signing(keyset)
        if ready is None:
            raise KeysetNotFound(f"There is no keyset {keyset}.")
        now = self._clock.now()
        active = ready.active_at(now)
        if active is None:
            raise KeysetUnusable(f"The keyset {keyset} has no active key.", retry_after=30)
        return _Using(active, ready, now)

    def _make(self, caller: Caller, request: SignRequest, using: _Using) -> _Made:
        active, ready, now = using.active, using.ready, using.now
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
        record = SigningRecord(
            time=now,
            principal=caller.principal.name,
            keyset=ready.keyset.name,
            kid=key.kid,
            jti=content.jti,
            exp=content.exp,
            claims_sha256=hashlib.sha256(payload).hexdigest(),
            request_id=caller.request_id,
        )
        signed = SignedToken(token, key.kid, key.algorithm.jose, content.exp, content.jti)
        return _Made(signed, record)

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
        return verify_token(ready, token, int(self._clock.now()))


def _timed_out() -> BatchTimedOut:
    return BatchTimedOut(
        f"The batch was not signed within {BATCH_SECONDS:.0f} seconds; this item was not. "
        "Send it again, in a smaller batch.",
        retry_after=1,
    )
