"""What the views share: the services, the authentication chain, the bulkhead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec

from flask import Response
from werkzeug.wrappers import Request

from kmsjwks.bootstrap import Service
from kmsjwks.domain.access import Principal
from kmsjwks.domain.errors import QuotaExceeded, Unavailable
from kmsjwks.http.answers import Answer
from kmsjwks.http.authentication import Authenticator, authenticate
from kmsjwks.http.problems import code_of
from kmsjwks.http.quotas import Quotas
from kmsjwks.http.request_ids import request_id_of
from kmsjwks.services.signing import Caller

P = ParamSpec("P")
Refused = Callable[[str, int], None]
"""Told the code of a problem, and how many tokens were not signed for it."""


class Overloaded(Unavailable):
    code = "overloaded"
    title = "Too many requests at once"


class HttpContext:
    """One per application. Thread-safe."""

    def __init__(self, service: Service, chain: Sequence[Authenticator], refused: Refused) -> None:
        self.service, self._chain, self.refused = service, chain, refused
        self._quotas = Quotas(service.settings.quotas, self._is_keyset)
        self.most_body_bytes = service.settings.server.max_body_bytes
        most = service.settings.server.max_concurrency
        self._place = _Place(
            most, "This worker already serves as many requests as it may. Try again."
        )
        # A slow backend must leave places for the keysets of the others.
        several, share = len(service.backends) > 1, max(1, most * 3 // 4)
        when_none = "This worker waits for the signing backend as often as it may."
        names = service.backends if several else ()
        self._shares = {name: _Place(share, when_none) for name in names}

    def principal(self, request: Request) -> Principal:
        """Who asks for something other than a token; the request counts against his quota.

        Raises:
            Unauthenticated, QuotaExceeded.
        """
        found = self.reader(request.environ)
        self._quotas.count_management(found.name)
        return found

    def reader(self, environ: Mapping[str, Any]) -> Principal:
        """Who asks for a document, by the WSGI environ; nothing is counted.

        Raises:
            Unauthenticated
        """
        return authenticate(self._chain, environ)

    def caller(self, environ: dict[str, Any]) -> Caller:
        """Who asks for a token to be signed or verified; see ``count_use``.

        Raises:
            Unauthenticated
        """
        return Caller(self.reader(environ), request_id_of(environ))

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

    def refusals_counted(self, view: Callable[P, Answer]) -> Callable[P, Answer]:
        """A view of signing that tells ``refused`` of what it raises."""

        @wraps(view)
        def run(*args: P.args, **kwargs: P.kwargs) -> Answer:
            try:
                return view(*args, **kwargs)
            except Exception as error:
                self.refused(code_of(error), 1)
                raise

        return run

    def bounded(self, view: Callable[P, Response]) -> Callable[P, Response]:
        """A view that as a whole counts as waiting for a device or a client."""

        @wraps(view)
        def run(*args: P.args, **kwargs: P.kwargs) -> Response:
            with self.bulkhead():
                return view(*args, **kwargs)

        return run

    def bulkhead(self) -> AbstractContextManager[None]:
        """At most ``max_concurrency`` requests wait for a device or a client, whatever these do;
        the server has more threads than that, and they are for the JWKS and health.

        Raises:
            Overloaded: on entering.
        """
        return self._place

    @contextmanager
    def _shared(self, share: _Place) -> Iterator[None]:
        with share, self._place:
            yield

    def backend_share(self, keyset: str) -> AbstractContextManager[None]:
        """The bulkhead, and in it at most three quarters for those who wait for the backend that
        the keyset signs in, where there are several.

        Raises:
            Overloaded: on entering.
        """
        share = self._shares.get(self._backend_of(keyset)) if self._shares else None
        return self._place if share is None else self._shared(share)

    def _backend_of(self, keyset: str) -> str:
        snapshot = self.service.snapshots.known()
        ready = snapshot.keysets.get(keyset) if snapshot else None
        active = ready.active_at(self.service.clock.now()) if ready else None
        return active.key.backend if active else ""


class _Place:
    """One of a number of places, taken without waiting; the same object for all who take one. A
    queue of what is free: threading's semaphores take twenty times as long."""

    def __init__(self, places: int, when_none: str) -> None:
        self._when_none = when_none
        self._free: SimpleQueue[None] = SimpleQueue()
        for _ in range(places):
            self._free.put(None)

    def __enter__(self) -> None:
        try:
            self._free.get_nowait()
        except Empty:
            raise Overloaded(self._when_none) from None

    def __exit__(self, *_: object) -> None:
        self._free.put(None)
