"""Errors as `application/problem+json` (RFC 9457)."""

from __future__ import annotations

import logging
import math
from http import HTTPStatus
from typing import Any

from werkzeug.exceptions import HTTPException

from kmsjwks.domain import errors, strictjson
from kmsjwks.http.answers import Answer

MEDIA_TYPE = "application/problem+json"
_log = logging.getLogger(__name__)

# The first class that an error is an instance of decides.
_STATUS: tuple[tuple[type[errors.KmsJwksError], HTTPStatus], ...] = (
    (errors.ClaimRejected, HTTPStatus.UNPROCESSABLE_ENTITY),
    (errors.RequestTooLarge, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    (errors.UnsupportedMediaType, HTTPStatus.UNSUPPORTED_MEDIA_TYPE),
    (errors.InvalidRequest, HTTPStatus.BAD_REQUEST),
    (errors.Unauthenticated, HTTPStatus.UNAUTHORIZED),
    (errors.Forbidden, HTTPStatus.FORBIDDEN),
    (errors.QuotaExceeded, HTTPStatus.TOO_MANY_REQUESTS),
    (errors.NotFound, HTTPStatus.NOT_FOUND),
    (errors.Conflict, HTTPStatus.CONFLICT),
    (errors.BackendThrottled, HTTPStatus.TOO_MANY_REQUESTS),
    (errors.Unavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (errors.BackendError, HTTPStatus.SERVICE_UNAVAILABLE),
)
_BACKEND_RETRY_AFTER = 30  # seconds, where an operator has to act first


def status_of(error: type[errors.KmsJwksError]) -> HTTPStatus:
    for kind, status in _STATUS:
        if issubclass(error, kind):
            return status
    return HTTPStatus.INTERNAL_SERVER_ERROR


def _members(code: str, title: str, status: int, detail: str, **more: str) -> dict[str, Any]:
    """Of a problem document; ``type`` is a URN because the codes are stable and need no page."""
    return {
        "type": f"urn:kmsjwks:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        **more,
    }


def problem_body(code: str, title: str, status: int, detail: str, **members: str) -> bytes:
    """A problem document."""
    return strictjson.dumps(_members(code, title, status, detail, **members))


def problem_of(error: errors.KmsJwksError, request_id: str) -> tuple[bytes, int, dict[str, str]]:
    """Body, status and headers for an error."""
    members, status, headers = problem_members(error, request_id)
    return strictjson.dumps(members), status, headers


def problem_members(
    error: errors.KmsJwksError, request_id: str
) -> tuple[dict[str, Any], int, dict[str, str]]:
    """Members, status and headers of the document for an error. What a backend said stays in the
    log: it may name devices and paths. That a token is too long for it is the caller's business."""
    status, headers, detail = status_of(type(error)), {"Content-Type": MEDIA_TYPE}, str(error)
    members = {"request_id": request_id}
    if isinstance(error, errors.BackendThrottled):
        detail = (
            "More signatures are asked for than the quota of the signing backend allows. Nothing "
            "was signed; try again later."
        )
    elif isinstance(error, errors.BackendError) and not isinstance(error, errors.MessageTooLarge):
        detail = (
            "The signing backend cannot be used right now. Nothing was signed; try again later."
        )
    elif status is HTTPStatus.INTERNAL_SERVER_ERROR:
        detail = "The service failed. Nothing was signed. Report the request id to the operator."
    if isinstance(error, errors.ClaimRejected | errors.NotGranted):
        members["member"] = error.member
    if status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
        seconds = (
            error.retry_after if isinstance(error, errors.Unavailable) else _BACKEND_RETRY_AFTER
        )
        headers["Retry-After"] = str(max(1, math.ceil(seconds)))
    if isinstance(error, errors.QuotaExceeded):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if isinstance(error, errors.Unauthenticated):
        # RFC 6750 section 3: no error code where the request carried no credential at all.
        given = 'realm="kmsjwks", error="invalid_token"' if error.presented else 'realm="kmsjwks"'
        headers["WWW-Authenticate"] = f"Bearer {given}"
    if isinstance(error, errors.Forbidden):
        headers["WWW-Authenticate"] = 'Bearer realm="kmsjwks", error="insufficient_scope"'
    return _members(error.code, error.title, status, detail, **members), status, headers


def answer_to(error: Exception, request_id: str) -> Answer:
    """The problem document for whatever a view raised, and a line in the log where the service is
    at fault."""
    if isinstance(error, errors.KmsJwksError):
        if status_of(type(error)) >= HTTPStatus.INTERNAL_SERVER_ERROR:
            _log.error("request %s: %s: %s", request_id, error.code, error)
        return _answer(*problem_of(error, request_id))
    if isinstance(error, HTTPException):
        return _answer_of_server(error, request_id)
    # The type and the place, not the text: it could quote a claim.
    _log.error("request %s: unexpected %s at %s", request_id, type(error).__name__, _place(error))
    return _answer(*problem_of(errors.KmsJwksError(), request_id))


def code_of(error: Exception) -> str:
    """The code in the problem document for what a view of ours raised."""
    return error.code if isinstance(error, errors.KmsJwksError) else errors.KmsJwksError.code


def _answer(body: bytes, status: int, headers: dict[str, str]) -> Answer:
    content_type = headers.pop("Content-Type")
    return Answer(body, content_type, status, headers)


def _answer_of_server(error: HTTPException, request_id: str) -> Answer:
    """What Flask or Werkzeug found wrong."""
    status = HTTPStatus(error.code or 500)
    code = status.phrase.lower().replace(" ", "-")
    body = problem_body(
        code,
        status.phrase,
        status,
        _DETAILS.get(status, status.description or status.phrase),
        request_id=request_id,
    )
    headers = {
        name: value for name, value in error.get_headers() if name in ("Allow", "Retry-After")
    }
    return Answer(body, MEDIA_TYPE, status, headers)


_DETAILS = {
    HTTPStatus.NOT_FOUND: "There is nothing at this address.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This address does not take this method; see Allow.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is larger than this service accepts.",
}


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "unknown"
    return f"{trace.tb_frame.f_code.co_qualname}:{trace.tb_lineno}"
