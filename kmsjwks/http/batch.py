"""/v1/keysets/{name}/sign/jwt/batch: many tokens, one answer for each."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from flask import Blueprint, Response, request
from werkzeug.wsgi import get_content_length

from kmsjwks.domain import strictjson
from kmsjwks.domain.access import Action, require
from kmsjwks.domain.errors import InvalidRequest, KmsJwksError, RequestTooLarge
from kmsjwks.http.answers import Answer, response_of
from kmsjwks.http.bodies import check_members, read_object
from kmsjwks.http.context import HttpContext
from kmsjwks.http.problems import problem_members
from kmsjwks.http.request_ids import request_id_of
from kmsjwks.http.signing import SIGN_MEMBERS, token_members
from kmsjwks.services.signing import Caller, SignedToken, SignRequest

BATCH_MEMBERS: Mapping[str, type] = MappingProxyType({"items": list})
ITEM_MEMBERS: Mapping[str, type] = MappingProxyType({"reference": str, **SIGN_MEMBERS})
MAX_ITEMS = 1000
MAX_REFERENCE = 128  # characters

_log = logging.getLogger(__name__)
Outcome = SignedToken | KmsJwksError


def blueprint(context: HttpContext) -> Blueprint:
    routes = Blueprint("batch", __name__, url_prefix="/v1/keysets")
    server = context.service.settings.server

    def sign_batch(name: str) -> Answer:
        caller = context.caller(request.environ)
        require(caller.principal, Action.SIGN, name)
        context.count_use(caller, name)  # the first item, so that who may send none is not read
        with context.backend_share(name):  # around the body too: a client may stall
            items = _read_items(request.environ, server.max_batch_bytes)
            long = _may_be_long(request.environ, server.max_body_bytes)
            asked = [_asked(item, server.max_body_bytes if long else None) for item in items]
            outcomes = _sign(context, caller, name, asked)
        request_id = request_id_of(request.environ)
        _tell(context, outcomes, request_id)
        both = zip(items, outcomes, strict=True)
        results = [_result(item, one, request_id) for item, one in both]
        return Answer(strictjson.dumps({"results": results}), "application/json")

    counted = context.refusals_counted(sign_batch)

    @routes.post("/<name>/sign/jwt/batch", endpoint="sign_batch")
    def respond(name: str) -> Response:
        return response_of(counted(name))

    return routes


def _read_items(environ: dict[str, Any], most_bytes: int) -> list[Any]:
    """
    Raises:
        InvalidRequest: also where there are too many.
    """
    body = read_object(environ, BATCH_MEMBERS, most_bytes)
    if "items" not in body:
        raise InvalidRequest("The member 'items' is missing.")
    items: list[Any] = body["items"]
    if len(items) > MAX_ITEMS:
        raise InvalidRequest(f"A batch has at most {MAX_ITEMS} items; this one has {len(items)}.")
    return items


def _may_be_long(environ: dict[str, Any], most_bytes: int) -> bool:
    """Whether an item can be longer than a request of its own might be."""
    told = get_content_length(environ)
    return told is None or told > most_bytes


def _asked(item: Any, most_bytes: int | None) -> SignRequest | KmsJwksError:
    """What an item asks for, or why it cannot."""
    try:
        if not isinstance(item, dict):
            raise InvalidRequest("An item must be a JSON object.")
        check_members(item, ITEM_MEMBERS)
        if "claims" not in item:
            raise InvalidRequest("The member 'claims' is missing.")
        if len(item.get("reference", "")) > MAX_REFERENCE:
            raise InvalidRequest(f"'reference' has at most {MAX_REFERENCE} characters.")
        if most_bytes is not None and len(strictjson.dumps(item)) > most_bytes:
            raise RequestTooLarge(f"The item is larger than {most_bytes} bytes.")
    except KmsJwksError as error:
        return error
    return SignRequest(item["claims"], item.get("ttl"), item.get("headers", {}))


def _sign(
    context: HttpContext, caller: Caller, name: str, asked: Sequence[SignRequest | KmsJwksError]
) -> list[Outcome]:
    """In the order of ``asked``. The quota counts good and bad alike, as it does one by one."""
    more, refusal = context.count_uses(caller, name, max(0, len(asked) - 1))
    counted = [one if refusal is None or i <= more else refusal for i, one in enumerate(asked)]
    good = [one for one in counted if isinstance(one, SignRequest)]
    signed = iter(context.service.signing.sign_batch(caller, name, good))
    return [next(signed) if isinstance(one, SignRequest) else one for one in counted]


def _tell(context: HttpContext, outcomes: Sequence[Outcome], request_id: str) -> None:
    """For the metrics and the log; of the errors of one code the first."""
    refused = [one for one in outcomes if isinstance(one, KmsJwksError)]
    if not refused:
        return
    tally = Counter(one.code for one in refused)
    firsts = {one.code: one for one in reversed(refused)}
    for code, error in firsts.items():
        context.refused(code, tally[code])
        if problem_members(error, request_id)[1] >= 500:
            _log.error("request %s: %s: %s (items: %d)", request_id, code, error, tally[code])


def _result(item: Any, outcome: Outcome, request_id: str) -> dict[str, Any]:
    reference = item.get("reference") if isinstance(item, dict) else None
    if not isinstance(reference, str) or len(reference) > MAX_REFERENCE:
        reference = None
    if isinstance(outcome, SignedToken):
        return {"reference": reference, **token_members(outcome)}
    problem, _, headers = problem_members(outcome, request_id)
    if "Retry-After" in headers:
        problem["retry_after"] = int(headers["Retry-After"])
    return {"reference": reference, "error": problem}
