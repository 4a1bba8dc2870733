"""/v1/keysets/{name}/sign/jwt: claims in, a signed JWT out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from kmsjwks.domain import strictjson
from kmsjwks.domain.access import Action, require
from kmsjwks.domain.errors import InvalidRequest
from kmsjwks.http.answers import Answer
from kmsjwks.http.bodies import read_object
from kmsjwks.http.context import HttpContext
from kmsjwks.services.signing import SignedToken, SignRequest

SIGN_MEMBERS: Mapping[str, type] = MappingProxyType({"claims": dict, "ttl": int, "headers": dict})


def view(context: HttpContext) -> Callable[[dict[str, Any], str], Answer]:
    """Of a WSGI environ and the name of a keyset. What it raises is for ``problems.answer_to``."""
    signing = context.service.signing

    def sign_jwt(environ: dict[str, Any], name: str) -> Answer:
        caller = context.caller(environ)
        require(caller.principal, Action.SIGN, name)
        context.count_use(caller, name)
        with context.backend_share(name):  # around the body too: a client may stall
            body = read_object(environ, SIGN_MEMBERS, context.most_body_bytes)
            if "claims" not in body:
                raise InvalidRequest("The member 'claims' is missing.")
            wanted = SignRequest(body["claims"], body.get("ttl"), body.get("headers", {}))
            signed = signing.sign_jwt(caller, name, wanted)
        return Answer(strictjson.dumps(token_members(signed)), "application/json")

    return context.refusals_counted(sign_jwt)


def token_members(signed: SignedToken) -> dict[str, str | int]:
    """As every answer shows a token."""
    return {
        "token": signed.token,
        "kid": signed.kid,
        "alg": signed.alg,
        "exp": signed.exp,
        "jti": signed.jti,
    }
