"""The id of a request: the caller's where it is harmless, ours otherwise; and where it is kept."""

from __future__ import annotations

import re
import secrets

from werkzeug.wrappers import Request

REQUEST_ID = "kmsjwks.request_id"  # in the WSGI environ, for whoever answers in a view's place
_HARMLESS = re.compile(r"[A-Za-z0-9._:-]{1,64}")


def take_request_id(request: Request) -> str:
    sent = request.headers.get("X-Request-Id", "")
    chosen = sent if _HARMLESS.fullmatch(sent) else secrets.token_hex(8)
    request.environ[REQUEST_ID] = chosen
    return chosen


def request_id_of(request: Request) -> str:
    """What ``take_request_id`` chose."""
    return str(request.environ[REQUEST_ID])


UNSAFE = {"X-Kmsjwks-Unsafe": "rotation.development"}
"""Beside the common headers wherever the floors that protect verifiers do not hold."""


def common_headers(request_id: str) -> dict[str, str]:
    """On every response; a ``Cache-Control`` of the response's own goes before this one."""
    return {
        "X-Request-Id": request_id,
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
