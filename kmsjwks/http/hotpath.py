"""Signing and the JWKS without Flask's dispatch, which costs more than all that they do themselves.

A route here is one of Flask's with the same view, so this module decides nothing but which requests
skip the rest: those whose path and method are exactly these. Whatever is a little different (HEAD,
OPTIONS, an upgrade, a doubled slash) is Flask's business. docs/performance.md says what it
gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from kmsjwks.http import problems, publication, signing
from kmsjwks.http.answers import headers_of
from kmsjwks.http.context import HttpContext
from kmsjwks.http.request_ids import RequestIds

_SIGN_BEFORE, _SIGN_AFTER = "/v1/keysets/", "/sign/jwt"
_JWKS = "/.well-known/jwks.json"
_STATUS_LINES: Mapping[int, str] = MappingProxyType(
    {one.value: f"{one.value} {one.phrase}" for one in HTTPStatus}
)

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class HotPath:
    """WSGI middleware. Thread-safe."""

    def __init__(
        self, rest: Wsgi, context: HttpContext, ids: RequestIds, always: Mapping[str, str]
    ) -> None:
        """``rest`` answers all other requests; ``always`` are headers of every answer."""
        self._rest, self._ids, self._always = rest, ids, always
        self._sign = signing.view(context)
        self._document = publication.view(context)

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        keyset = signed_keyset(path) if method == "POST" else None
        is_hot = keyset is not None or (method == "GET" and is_jwks(path))
        if not is_hot or "HTTP_UPGRADE" in environ:
            return self._rest(environ, start_response)
        request_id = self._ids.take(environ)
        try:
            answer = self._document(environ) if keyset is None else self._sign(environ, keyset)
        except Exception as error:  # as Flask does: no request ends without an answer
            answer = problems.answer_to(error, request_id)
        start_response(_STATUS_LINES[answer.status], headers_of(answer, request_id, self._always))
        return (answer.body,)


def signed_keyset(path: str) -> str | None:
    """The keyset of ``/v1/keysets/<name>/sign/jwt``; None for any other path."""
    if not (path.startswith(_SIGN_BEFORE) and path.endswith(_SIGN_AFTER)):
        return None
    name = path[len(_SIGN_BEFORE) : -len(_SIGN_AFTER)]
    # Others are decoded first, and no keyset has such a name (RFC 3986 section 2.5).
    return name if name.isascii() and name.isprintable() and name and "/" not in name else None


def is_jwks(path: str) -> bool:
    """``/.well-known/jwks.json``, or that below the path of an issuer."""
    return path.endswith(_JWKS) and path.isascii() and path.isprintable() and path[:2] != "//"
