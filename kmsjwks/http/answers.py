"""An answer to a request, before it becomes a response: what views give that need no Flask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from flask import Response

from kmsjwks.http.request_ids import COMMON_HEADERS, common_headers

_NONE: Mapping[str, str] = MappingProxyType({})
_COMMON = tuple(COMMON_HEADERS.items())


@dataclass(frozen=True, slots=True)
class Answer:
    """``content_type`` is empty where there is no content; ``headers`` go before those that every
    response has."""

    body: bytes
    content_type: str
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: _NONE)


def response_of(answer: Answer) -> Response:
    """For Flask, which adds the common headers to all responses (``app.py``)."""
    return Response(
        answer.body,
        status=answer.status,
        headers=dict(answer.headers),
        content_type=answer.content_type or None,
    )


def headers_of(
    answer: Answer, request_id: str, always: Mapping[str, str] = _NONE
) -> list[tuple[str, str]]:
    """All headers, for a server that is answered without Flask."""
    if answer.headers:
        own = {**common_headers(request_id), **always, **answer.headers}
        headers = list(own.items())
    else:
        headers = [("X-Request-Id", request_id), *_COMMON, *always.items()]
    if answer.content_type:
        headers += (
            ("Content-Type", answer.content_type),
            ("Content-Length", str(len(answer.body))),
        )
    return headers
