"""One WSGI request under granian: who may still answer it when its thread does not."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

from kmsjwks.domain.errors import AuditUnavailable, BackendUnavailable, KmsJwksError
from kmsjwks.http.bodies import READ, READING_SINCE, UNREAD, discard
from kmsjwks.http.problems import MEDIA_TYPE, problem_body, problem_of
from kmsjwks.http.request_ids import REQUEST_ID, common_headers

_log = logging.getLogger(__name__)
_NONE: Mapping[str, str] = MappingProxyType({})
_BODY_PATIENCE = 10.0  # seconds for a body to arrive

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Any]


class Reply(Protocol):
    """Granian's handle for one response; only the first answer counts."""

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None: ...


class InFlight:
    """Which thread is serving which response. One dict operation a request; the GIL is the lock."""

    def __init__(self, headers: Mapping[str, str] = _NONE) -> None:
        """``headers`` are on every answer given in a request's place."""
        self._headers = headers
        self._replies: dict[int, tuple[Reply, dict[str, Any]]] = {}

    def begin(self, reply: Reply, environ: dict[str, Any]) -> int:
        ident = threading.get_ident()
        self._replies[ident] = reply, environ
        return ident

    def end(self, ident: int) -> None:
        self._replies.pop(ident, None)

    def answer_for(self, ident: int) -> None:
        """503 for a request whose thread does not come back from a device; what the thread says
        later is dropped by the server."""
        stuck = BackendUnavailable("The backend does not answer.", retry_after=2)
        self._answer(ident, stuck)

    def answer_for_audit(self, ident: int) -> None:
        """As ``answer_for``, for a thread that the audit trail holds up."""
        stuck = AuditUnavailable(
            "The audit trail does not take records in time, so the token was not released. "
            "The operator must look at the audit directory's disk.",
            retry_after=5,
        )
        self._answer(ident, stuck)

    def _answer(self, ident: int, stuck: KmsJwksError) -> None:
        found = self._replies.pop(ident, None)
        if found is not None:
            reply, environ = found
            request_id = str(environ.get(REQUEST_ID, ""))
            body, status, headers = problem_of(stuck, request_id)
            _log.error("request %s: %s: %s", request_id, stuck.code, stuck)
            headers |= {**common_headers(request_id), **self._headers}
            reply.response_bytes(status, list(headers.items()), body)

    def answer_stalled_senders(self) -> None:
        """408 for requests whose bodies do not arrive."""
        now = time.monotonic()
        for ident, (reply, environ) in list(self._replies.items()):
            since = environ.get(READING_SINCE)
            if since is not None and now - since > _BODY_PATIENCE:
                self._replies.pop(ident, None)
                request_id = str(environ.get(REQUEST_ID, ""))
                body = problem_body(
                    "request-timeout",
                    "Request Timeout",
                    408,
                    f"The body did not arrive within {_BODY_PATIENCE:.0f} seconds.",
                    request_id=request_id,
                )
                headers = {
                    **common_headers(request_id),
                    **self._headers,
                    "Content-Type": MEDIA_TYPE,
                }
                reply.response_bytes(408, [*headers.items(), ("Connection", "close")], body)


class _Response:
    """The ``start_response`` of PEP 3333."""

    __slots__ = ("headers", "status")

    def __init__(self) -> None:
        self.status, self.headers = 200, list[tuple[str, str]]()

    def __call__(
        self, status: str, headers: list[tuple[str, str]], _exc_info: object = None
    ) -> Callable[[bytes], object]:
        self.status, self.headers = int(status[:3]), headers
        return lambda _: None


def wsgi_callback(app: WsgiApp, in_flight: InFlight) -> Callable[[Reply, dict[str, Any]], None]:
    """What granian calls for each request, in a thread of its pool."""
    base = {
        "SCRIPT_NAME": "",
        "SERVER_SOFTWARE": "kmsjwks",
        "wsgi.errors": _Discard(),
        "wsgi.input_terminated": True,
        "wsgi.multiprocess": True,
        "wsgi.multithread": True,
        "wsgi.run_once": False,
        "wsgi.version": (1, 0),
    }

    def serve(reply: Reply, scope: dict[str, Any]) -> None:
        environ = base | scope
        ident = in_flight.begin(reply, environ)
        try:
            response = _Response()
            body = app(environ, response)
            try:
                data = b"".join(body)
            finally:
                close = getattr(body, "close", None)
                if close is not None:
                    close()
        finally:
            in_flight.end(ident)
        if READ not in environ and _has_body(environ):
            # The server closes such a connection, and whoever sends the next request must know.
            response.headers.append(("Connection", "close"))
        reply.response_bytes(response.status, response.headers, data)
        if UNREAD in environ:
            discard(environ["wsgi.input"])

    return serve


def _has_body(environ: Mapping[str, Any]) -> bool:
    length = environ.get("CONTENT_LENGTH") or "0"
    return length != "0" or "HTTP_TRANSFER_ENCODING" in environ


class _Discard:
    """``wsgi.errors``: everything worth saying goes through logging."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass
