"""Answers in the description: problems (RFC 9457) by status with their codes, and headers."""

from __future__ import annotations

from collections import defaultdict
from http import HTTPStatus
from typing import Any

from kmsjwks.domain import errors
from kmsjwks.http.context import Overloaded
from kmsjwks.http.openapi.schemas import TEXT, Schema, answer, reference
from kmsjwks.http.problems import MEDIA_TYPE, status_of

# Not of an error of ours: what the router and the server say by themselves.
_OTHERS = ((404, "not-found"), (405, "method-not-allowed"), (408, "request-timeout"))
_HEADERS: dict[int, tuple[str, ...]] = {
    401: ("WWW-Authenticate",),
    403: ("WWW-Authenticate",),
    405: ("Allow",),
    429: ("Retry-After",),
    503: ("Retry-After",),
}


def codes() -> dict[int, list[str]]:
    """The ``code`` of every problem, by status."""
    found = defaultdict(set)
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    for kind in (*kinds, Overloaded):
        if issubclass(kind, errors.KmsJwksError):
            found[int(status_of(kind))].add(kind.code)
    for status, code in _OTHERS:
        found[status].add(code)
    return {status: sorted(found[status]) for status in sorted(found)}


def problem_schema() -> Schema:
    members: dict[str, Schema] = {
        "type": {"type": "string", "pattern": "^urn:kmsjwks:problem:"},
        "title": TEXT,
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What happened, and what to do next."},
        "code": {"type": "string", "enum": sorted(set().union(*codes().values()))},
        "request_id": TEXT,
        "member": {"type": "string", "description": "The claim or header that is to blame."},
        "retry_after": {
            "type": "integer",
            "minimum": 1,
            "description": "Seconds; of an item of a batch, in the place of `Retry-After`.",
        },
    }
    return {**answer(members, ("member", "retry_after")), "description": "RFC 9457."}


def headers() -> dict[str, Any]:
    """By name; a header that every answer has is left to `success` and `problems`."""
    text = {
        "X-Request-Id": "The caller's own where it sent a plain one.",
        "WWW-Authenticate": "A challenge (RFC 6750).",
        "Allow": "The methods of this address.",
        "ETag": "Strong (RFC 9110 section 8.8.3).",
        "Cache-Control": "RFC 9111.",
    }
    whole = {"Retry-After": "Seconds (RFC 9110 section 10.2.3)."}
    return {
        **{name: _header(said, TEXT) for name, said in text.items()},
        **{name: _header(said, {"type": "integer", "minimum": 1}) for name, said in whole.items()},
    }


def _header(description: str, schema: Schema) -> dict[str, Any]:
    return {"description": description, "required": True, "schema": schema}


def _refer(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-Id", *names)}


def problems() -> dict[str, Any]:
    """The responses of all statuses with problems but 500, which is a bug."""
    return {
        f"Problem{status}": {
            "description": f"{HTTPStatus(status).phrase}: `{'`, `'.join(known)}`",
            "headers": _refer(*_HEADERS.get(status, ())),
            "content": {
                MEDIA_TYPE: {
                    "schema": {
                        "allOf": [
                            reference("Problem"),
                            {"properties": {"code": {"enum": known}, "status": {"const": status}}},
                        ]
                    },
                    "example": _example(status, known[0]),
                }
            },
        }
        for status, known in codes().items()
        if status != HTTPStatus.INTERNAL_SERVER_ERROR
    }


def _example(status: int, code: str) -> dict[str, Any]:
    return {
        "type": f"urn:kmsjwks:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": "…",
        "code": code,
        "request_id": "5f0c3a91d2b4e677",
    }


def success(
    schema: str | Schema | None,
    *names: str,
    description: str = "OK",
    media_type: str = "application/json",
) -> dict[str, Any]:
    """``schema`` is one or the name of one, None for no body; ``names`` are headers beside
    ``X-Request-Id``."""
    response = {"description": description, "headers": _refer(*names)}
    if schema is not None:
        found = reference(schema) if isinstance(schema, str) else schema
        response["content"] = {media_type: {"schema": found}}
    return response


def responses(good: dict[str, Any], *statuses: int) -> dict[str, Any]:
    """With problems of ``statuses``."""
    refused = {
        str(status): {"$ref": f"#/components/responses/Problem{status}"} for status in statuses
    }
    return {**good, **refused}
