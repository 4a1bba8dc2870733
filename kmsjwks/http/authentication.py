"""Who is calling: a chain of authenticators, of which bearer tokens are the first."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import Protocol

from flask import Request

from kmsjwks.domain.access import Principal
from kmsjwks.domain.errors import Unauthenticated


class Authenticator(Protocol):
    def authenticate(self, request: Request) -> Principal | None:
        """The caller; None where the request carries no credential of this kind.

        Raises:
            Unauthenticated: it carries one that is not valid.
        """


class BearerTokens:
    """Opaque bearer tokens (RFC 6750), known by their SHA-256."""

    def __init__(self, principals: Mapping[str, Principal]) -> None:
        """``principals`` by lower-case hex SHA-256 of the token."""
        self._principals = {digest.encode(): who for digest, who in principals.items()}

    def authenticate(self, request: Request) -> Principal | None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        presented = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).hexdigest()
        found: Principal | None = None
        for digest, principal in self._principals.items():
            # Every known token is compared, so that the time tells nothing.
            if hmac.compare_digest(digest, presented.encode()):
                found = principal
        if found is None:
            raise Unauthenticated("The bearer token is not known.", presented=True)
        return found


def authenticate(chain: Sequence[Authenticator], request: Request) -> Principal:
    """
    Raises:
        Unauthenticated: no authenticator recognises the caller.
    """
    for authenticator in chain:
        principal = authenticator.authenticate(request)
        if principal is not None:
            return principal
    raise Unauthenticated(
        "Send the client's token as 'Authorization: Bearer ...'.", presented=False
    )
