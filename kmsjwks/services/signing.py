"""Sign and verify: grant, token rules, backend, local verification, audit, release."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

from kmsjwks.domain import strictjson
from kmsjwks.domain.access import Action, Permission, Principal, permit, require
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
from kmsjwks.domain.tokens import TokenContent, build_token
from kmsjwks.services.fanout import FanOut
from kmsjwks.services.keytrouble import KeyTroubles
from kmsjwks.services.snapshot import ActiveKey, ReadyKeyset, SnapshotKeeper
from kmsjwks.services.verifying import Verification, verify_token

P = ParamSpec("P")
T = TypeVar("T")
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
class _Draft:
    """A token before its signature; ``message`` is what is signed."""

    content: TokenContent
    payload: bytes
    message: bytes


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
    permission: Permission
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
        using = self._using(permit(caller.principal, Action.SIGN, keyset))
        try:
            made = self._make(caller, request, using)
        except KeyNotFound as error:
            other = self._successor(using, error)
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
        permission = permit(caller.principal, Action.SIGN, keyset)
        until, using = time.monotonic() + BATCH_SECONDS, self._using(permission)
        outcomes = self._make_all(caller, requests, using, until)
        gone = next((one for one in outcomes if isinstance(one, KeyNotFound)), None)
        if gone is not None:
            other = self._successor(using, gone)
            if other is not None:
                # Verifiers do not know the key any more that made the first ones.
                outcomes = self._make_all(caller, requests, other, until)
        self._audit.record_all([one.record for one in outcomes if isinstance(one, _Made)])
        return [one.signed if isinstance(one, _Made) else one for one in outcomes]

    def _make(self, caller: Caller, request: SignRequest, using: _Using) -> _Made:
        draft = self._draft(request, using)
        return self._finish(caller, draft, self._sign(draft, using), using)

    def _make_all(
        self, caller: Caller, requests: Sequence[SignRequest], using: _Using, until: float
    ) -> list[_Made | KmsJwksError]:
        """As ``_make``, but each step for all before the next one: a step that is repeated finds
        its code and data in the CPU's caches, which makes a batch cheaper by a tenth."""
        drafts = [_attempt(self._draft, request, using) for request in requests]
        good = [one for one in drafts if isinstance(one, _Draft)]
        made = iter(
            [
                _attempt(self._finish, caller, draft, signature, using)
                if isinstance(signature, bytes)
                else signature
                for draft, signature in zip(good, self._sign_all(good, using, until), strict=True)
            ]
        )
        return [next(made) if isinstance(one, _Draft) else one for one in drafts]

    def _sign_all(
        self, drafts: Sequence[_Draft], using: _Using, until: float
    ) -> list[bytes | KmsJwksError]:
        outcomes: list[bytes | KmsJwksError | None] = [None] * len(drafts)
        stop: list[BackendError] = []

        def sign(index: int) -> bool:
            outcome = outcomes[index] = _attempt(self._sign, drafts[index], using)
            if isinstance(outcome, BackendError) and not isinstance(outcome, _OF_ONE_MESSAGE):
                stop.append(outcome)
            return not stop

        self._fan_out.run(sign, len(drafts), using.active.concurrency, until)
        missing = stop[0] if stop else _timed_out()
        return [missing if one is None else one for one in outcomes]

    def _successor(self, gone: _Using, error: KeyNotFound) -> _Using | None:
        """A compromised key is destroyed at once, before every replica has looked again. None
        where it is still to be used."""
        key = gone.active.key
        if not self._troubles.was_just_refused(key.kid):
            self._snapshots.refresh()
        other = self._using(gone.permission)
        if other.active.key.kid != key.kid:
            return other
        self._troubles.refused(key, str(error))
        return None

    def _using(self, permission: Permission) -> _Using:
        keyset = permission.keyset
        ready = self._snapshots.for_signing(keyset)
        if ready is None:
            raise KeysetNotFound(f"There is no keyset {keyset}.")
        now = self._clock.now()
        active = ready.active_at(now)
        if active is None:
            raise KeysetUnusable(f"The keyset {keyset} has no active key.", retry_after=30)
        return _Using(active, ready, permission, now)

    def _draft(self, request: SignRequest, using: _Using) -> _Draft:
        now = int(using.now)
        content = build_token(
            using.ready.keyset.rules,
            request.claims,
            ttl=request.ttl,
            headers=request.headers,
            now=now,
            jti=self._new_jti(),
        )
        if using.permission.narrows:
            # What is signed is judged, not what was asked for.
            using.permission.require(TokenRequest(content.claims, content.exp - now))
        payload = strictjson.dumps(content.claims)
        message = using.active.signer.signing_input(content.header, payload)
        return _Draft(content, payload, message)

    def _sign(self, draft: _Draft, using: _Using) -> bytes:
        try:
            signature = using.active.signer.sign(draft.message)
        except (KeyDisabled, BackendDenied) as error:
            self._troubles.refused(using.active.key, str(error))
            raise
        # Here, not when it is finished: in a batch a refusal may have come meanwhile.
        self._troubles.served(using.active.key.kid)
        return signature

    def _finish(self, caller: Caller, draft: _Draft, signature: bytes, using: _Using) -> _Made:
        key, content = using.active.key, draft.content
        token = using.active.signer.seal(draft.message, signature)
        self._snapshots.leases.signed(key.kid, content.exp)
        record = SigningRecord(
            time=using.now,
            principal=caller.principal.name,
            keyset=using.permission.keyset,
            kid=key.kid,
            jti=content.jti,
            exp=content.exp,
            claims_sha256=hashlib.sha256(draft.payload).hexdigest(),
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


def _attempt(step: Callable[P, T], *args: P.args, **named: P.kwargs) -> T | KmsJwksError:
    try:
        return step(*args, **named)
    except KmsJwksError as error:
        return error


def _timed_out() -> BatchTimedOut:
    return BatchTimedOut(
        f"The batch was not signed within {BATCH_SECONDS:.0f} seconds; this item was not. "
        "Send it again, in a smaller batch.",
        retry_after=1,
    )
