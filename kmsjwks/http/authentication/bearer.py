"""`Authorization: Bearer` (RFC 6750), and the opaque tokens among what it may carry."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from kmsjwks.config import BearerToken
from kmsjwks.domain.access import Principal
from kmsjwks.domain.errors import Unauthenticated
from kmsjwks.domain.ports import Clock

_log = logging.getLogger(__name__)


class BearerKind(Protocol):
    def principal_of(self, token: str) -> Principal | None:
        """Whose token it is; None for one that is not valid, whatever the reason: the caller
        learns none, the log may.

        Raises:
            Unavailable: it cannot be told now.
        """


class BearerScheme:
    """The credential of a request is a bearer token, of one kind or another."""

    def __init__(self, kinds: Sequence[BearerKind]) -> None:
        self._kinds = tuple(kinds)

    def authenticate(self, environ: Mapping[str, Any]) -> Principal | None:
        scheme, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        token = token.strip()
        for kind in self._kinds:
            principal = kind.principal_of(token)
            if principal is not None:
                return principal
        raise Unauthenticated("The bearer token is not valid.", presented=True)


class OpaqueTokens:
    """Tokens that are known by their SHA-256."""

    def __init__(self, tokens: Sequence[tuple[BearerToken, Principal]], clock: Clock) -> None:
        self._tokens = [(token.sha256.encode(), token.expires, owner) for token, owner in tokens]
        self._clock = clock

    def principal_of(self, token: str) -> Principal | None:
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest().encode()
        found: Principal | None = None
        expires: float | None = None
        for known, until, owner in self._tokens:
            # Every known token is compared, so that the time tells nothing.
            if hmac.compare_digest(known, digest):
                found, expires = owner, until
        if found is not None and expires is not None and expires <= self._clock.now():
            _log.warning("The client %s presented a token that has expired.", found.name)
            return None
        return found
