"""The id of a request: the caller's where it is harmless, ours otherwise; and where it is kept."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from itertools import count
from types import MappingProxyType
from typing import Any

REQUEST_ID = "kmsjwks.request_id"  # in the WSGI environ, for whoever answers in a view's place
_HARMLESS = re.compile(r"[A-Za-z0-9._:-]{1,64}")


class RequestIds:
    """One per application. Ours are unique over all processes and need not be secret: counting
    costs a request no system call."""

    def __init__(self) -> None:
        self._process, self._numbers = secrets.token_hex(8), count()

    def take(self, environ: dict[str, Any]) -> str:
        """Choose the request's id, and keep it in its WSGI environ."""
        sent: str | None = environ.get("HTTP_X_REQUEST_ID")
        if sent is not None and _HARMLESS.fullmatch(sent):
            chosen = sent
        else:
            # Of one length: bodies that have it differ in nothing else.
            chosen = f"{self._process}-{next(self._numbers):08x}"
        environ[REQUEST_ID] = chosen
        return chosen


def request_id_of(environ: dict[str, Any]) -> str:
    """What ``RequestIds.take`` chose."""
    chosen: str = environ[REQUEST_ID]
    return chosen


UNSAFE = {"X-Kmsjwks-Unsafe": "rotation.development"}
"""Beside the common headers wherever the floors that protect verifiers do not hold."""


COMMON_HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
)
"""On every response; a ``Cache-Control`` of the response's own goes before this one."""


def common_headers(request_id: str) -> dict[str, str]:
    """``COMMON_HEADERS`` and the id of the request."""
    return {"X-Request-Id": request_id, **COMMON_HEADERS}
