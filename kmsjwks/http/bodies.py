"""Request bodies: size and media type checked, JSON read strictly, unknown members refused."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from werkzeug.http import parse_options_header
from werkzeug.wsgi import get_content_length

from kmsjwks.domain import strictjson
from kmsjwks.domain.errors import InvalidRequest, RequestTooLarge, UnsupportedMediaType

READING_SINCE = "kmsjwks.reading_since"
"""In the WSGI environ while a body is read: since when, in monotonic seconds."""

UNREAD = "kmsjwks.unread"
"""In the WSGI environ where a body was refused before its end."""

READ = "kmsjwks.read"
"""In the WSGI environ where a body was read to its end."""

_JSON = "application/json"
_LONGEST_CONTENT_TYPE = 256  # characters
_DISCARDED_BYTES, _CHUNK_BYTES = 32 * 1024 * 1024, 256 * 1024


def read_object(
    environ: dict[str, Any],
    allowed: Mapping[str, type | tuple[type, ...]],
    most_bytes: int,
    *,
    optional: bool = False,
) -> dict[str, Any]:
    """The JSON object in the body of a WSGI request, with no other members than ``allowed`` (name
    -> type).

    ``optional``: no body at all is an empty object.

    Raises:
        UnsupportedMediaType, RequestTooLarge, MalformedJson.
        InvalidRequest: not an object, an unknown member, or one of the wrong type.
    """
    # Before any answer: the server closes the connection on an unread body.
    data = _read(environ, most_bytes)
    if optional and not data:
        return {}
    _check_encoding(environ)
    value = strictjson.loads(data)
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.")
    check_members(value, allowed)
    return value


def _check_encoding(environ: Mapping[str, Any]) -> None:
    """
    Raises:
        UnsupportedMediaType
    """
    sent = environ.get("CONTENT_TYPE", "")
    if sent != _JSON:
        _check_media_type(sent)
    if environ.get("HTTP_CONTENT_ENCODING", "identity").lower() != "identity":
        raise UnsupportedMediaType("Send the body as it is, without a Content-Encoding.")


def _check_media_type(sent: str) -> None:
    if len(sent) > _LONGEST_CONTENT_TYPE or "," in sent:
        raise UnsupportedMediaType("Send one Content-Type, application/json.")
    media_type, parameters = parse_options_header(sent)
    if media_type.lower() != _JSON:
        raise UnsupportedMediaType("Send the body as Content-Type: application/json.")
    if parameters.get("charset", "utf-8").lower() != "utf-8":
        raise UnsupportedMediaType("JSON is UTF-8 (RFC 8259 section 8.1).")


def check_members(value: Mapping[str, Any], allowed: Mapping[str, type | tuple[type, ...]]) -> None:
    """
    Raises:
        InvalidRequest: an unknown member, or one of the wrong type.
    """
    for name, member in value.items():
        if name not in allowed:
            raise InvalidRequest(
                f"The member {name[:64]!r} is not known here; known: {', '.join(allowed)}."
            )
        wanted = allowed[name]
        if not isinstance(member, wanted) or (isinstance(member, bool) and wanted is not bool):
            raise InvalidRequest(f"The member {name!r} has the wrong JSON type.")


def _read(environ: dict[str, Any], limit: int) -> bytes:
    """At most ``limit`` bytes, also of a body that does not tell its length.

    Raises:
        RequestTooLarge
        InvalidRequest: it ended before its Content-Length.
    """
    told = get_content_length(environ)
    stream = environ["wsgi.input"]
    environ[READING_SINCE] = time.monotonic()
    try:
        # Not beyond its end: to see that there is no more costs the server another turn.
        size = limit + 1 if told is None else told
        data = b"" if (told or 0) > limit else bytes(stream.read(size))
    finally:
        del environ[READING_SINCE]
    if len(data) > limit or (told or 0) > limit:
        environ[UNREAD] = True
        raise RequestTooLarge(f"The body is larger than {limit} bytes.")
    environ[READ] = True
    if told is not None and told != len(data):
        raise InvalidRequest("The body ended before its Content-Length.")
    return data


def discard(stream: Any) -> None:
    """Read on for a while after the answer: a client that sends it all first would otherwise meet
    a closed connection instead."""
    for _ in range(_DISCARDED_BYTES // _CHUNK_BYTES):
        if not stream.read(_CHUNK_BYTES):
            return
