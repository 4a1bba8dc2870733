"""Request bodies: size and media type checked, JSON read strictly, unknown members refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Request

from kmsjwks.domain import strictjson
from kmsjwks.domain.errors import InvalidRequest, RequestTooLarge, UnsupportedMediaType


def read_object(request: Request, allowed: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """The JSON object in the body, with no other members than ``allowed`` (name -> type).

    Raises:
        UnsupportedMediaType, RequestTooLarge, MalformedJson.
        InvalidRequest: not an object, an unknown member, or one of the wrong type.
    """
    if request.mimetype != "application/json":
        raise UnsupportedMediaType("Send the body as Content-Type: application/json.")
    if request.mimetype_params.get("charset", "utf-8").lower() != "utf-8":
        raise UnsupportedMediaType("JSON is UTF-8 (RFC 8259 section 8.1).")
    value = strictjson.loads(_read(request))
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.")
    for name, member in value.items():
        if name not in allowed:
            raise InvalidRequest(
                f"The member {name[:64]!r} is not known here; known: {', '.join(allowed)}."
            )
        wanted = allowed[name]
        if not isinstance(member, wanted) or (isinstance(member, bool) and wanted is not bool):
            raise InvalidRequest(f"The member {name!r} has the wrong JSON type.")
    return value


def _read(request: Request) -> bytes:
    """At most ``max_content_length`` bytes, also of a body that does not tell its length."""
    limit = request.max_content_length or 0
    if (request.content_length or 0) <= limit:
        data = bytes(request.environ["wsgi.input"].read(limit + 1))
        if len(data) <= limit:
            return data
    raise RequestTooLarge(f"The body is larger than {limit} bytes.")
