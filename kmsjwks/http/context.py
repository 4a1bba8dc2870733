"""What the views share: the services, the authentication chain, the bulkhead."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec

from flask import Request, Response, g

from kmsjwks.bootstrap import Service
from kmsjwks.domain.access import Principal
from kmsjwks.domain.errors import QuotaExceeded, Unavailable
from kmsjwks.http.authentication import Authenticator, authenticate
from kmsjwks.http.quotas import Quotas
from kmsjwks.services.signing import Caller

P = ParamSpec("P")


class Overloaded(Unavailable):
    code = "overloaded"
    title = "Too many requests at once"


class HttpContext:
    """One per application. Thread-safe."""

    def __init__(self, service: Service, chain: Sequence[Authenticator]) -> None:
        self.service, self._chain = service, chain
        self._quotas = Quotas(service.settings.quotas, self._is_keyset)
        most = service.settings.server.max_concurrency
        self._signing = threading.BoundedSemaphore(most)
        # A slow backend must leave places for the keysets of the others.
        share = max(1, most * 3 // 4) if len(service.backends) > 1 else most
        self._shares = {name: threading.BoundedSemaphore(share) for name in service.backends}

    def principal(self, request: Request) -> Principal:
        """Who asks for something other than a token; the request counts against his quota.

        Raises:
            Unauthenticated, QuotaExceeded.
        """
        found = self.reader(request)
        self._quotas.count_management(found.name)
        return found

    def reader(self, request: Request) -> Principal:
        """Who asks for a document; nothing is counted.

        Raises:
            Unauthenticated
        """
        return authenticate(self._chain, request)

    def caller(self, request: Request) -> Caller:
        """Who asks for a token to be signed or verified; see ``count_use``.

        Raises:
            Unauthenticated
        """
        return Caller(self.reader(request), g.request_id)

    def count_use(self, caller: Caller, keyset: str) -> None:
        """To be called once the caller is known to have a grant.

        Raises:
            QuotaExceeded, StoreUnavailable
        """
        self._quotas.count_use(caller.principal.name, keyset)

    def count_uses(
        self, caller: Caller, keyset: str, times: int
    ) -> tuple[int, QuotaExceeded | None]:
        """``count_use`` for several: how many may be signed, and why no more."""
        return self._quotas.count_uses(caller.principal.name, keyset, times)

    def _is_keyset(self, name: str) -> bool:
        return self.service.snapshots.keyset(name) is not None

    def bounded(self, view: Callable[P, Response]) -> Callable[P, Response]:
        """A view that as a whole counts as waiting for a device or a client."""

        @wraps(view)
        def run(*args: P.args, **kwargs: P.kwargs) -> Response:
            with self.bulkhead():
                return view(*args, **kwargs)

        return run

    @contextmanager
    def bulkhead(self) -> Iterator[None]:
        """At most ``max_concurrency`` requests wait for a device or a client, whatever these do;
        the server has more threads than that, and they are for the JWKS and health.

        Raises:
            Overloaded
        """
        if not self._signing.acquire(blocking=False):
            raise Overloaded("This worker already serves as many requests as it may. Try again.")
        try:
            yield
        finally:
            self._signing.release()

    @contextmanager
    def backend_share(self, keyset: str) -> Iterator[None]:
        """The bulkhead, and in it at most three quarters for those who wait for the backend that
        the keyset signs in.

        Raises:
            Overloaded
        """
        share = self._shares.get(self._backend_of(keyset))
        if share is not None and not share.acquire(blocking=False):
            raise Overloaded("This worker waits for the signing backend as often as it may.")
        try:
            with self.bulkhead():
                yield
        finally:
            if share is not None:
                share.release()

    def _backend_of(self, keyset: str) -> str:
        snapshot = self.service.snapshots.known()
        ready = snapshot.keysets.get(keyset) if snapshot else None
        active = ready.active_at(self.service.clock.now()) if ready else None
        return active.key.backend if active else ""
