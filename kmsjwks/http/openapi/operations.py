"""The operations of the API, by path and method."""

from __future__ import annotations

from typing import Any

from kmsjwks.domain.access import Action
from kmsjwks.domain.documents import JWKS_MEDIA_TYPE
from kmsjwks.http.lifecycle import ACTS
from kmsjwks.http.openapi.responses import responses, success
from kmsjwks.http.openapi.schemas import ANYTHING, KEYSET, TEXT, Schema, reference
from kmsjwks.services.auditsearch import MAX_LIMIT

Operation = dict[str, Any]
_AUTHENTICATED: list[dict[str, list[str]]] = [{"client": []}]
_KEYSET, _KEY = "/v1/keysets/{name}", "/v1/keysets/{name}/keys/{kid}"
_NEEDED = ("ApproveRequest", "MigrateRequest")
_ACTS_DO = {
    "deactivate": "The spare takes over from this key as soon as verifiers may be taken to know it",
    "compromise": "Out of the JWKS at once; the private half is destroyed",
    "undo-compromise": "Take a declaration of compromise back, before the destruction",
    "hold": "Stop every transition of the key but its compromise",
    "release": "Allow transitions again",
    "destroy": "Begin the waiting window before destruction",
    "cancel-destroy": "End the waiting window without destruction",
}


def _in_path(name: str, schema: Schema, description: str = "") -> dict[str, Any]:
    found = {"name": name, "in": "path", "required": True, "schema": schema}
    return {**found, "description": description} if description else found


_NAME = _in_path("name", KEYSET, "The keyset.")
_KID = _in_path("kid", {"type": "string", "minLength": 1}, "RFC 7638 thumbprint of the key.")


def _operation(
    tag: str, summary: str, good: dict[str, Any], *parameters: Any, granted: Action | None = None
) -> Operation:
    """Of a client with a grant; of anybody without ``granted``."""
    found: Operation = {"tags": [tag], "summary": summary, "responses": good}
    if parameters:
        found["parameters"] = list(parameters)
    if granted is None:
        return {**found, "security": []}
    return {
        **found,
        "description": f"Needs a grant `{granted.value}`.",
        "security": _AUTHENTICATED,
    }


def _with_body(operation: Operation, schema: str, *, required: bool = True) -> Operation:
    content = {"application/json": {"schema": reference(schema)}}
    refused = responses({}, 400, 408, 413, 415)
    return {
        **operation,
        "requestBody": {"required": required, "content": content},
        "responses": {**operation["responses"], **refused},
    }


def _tokens() -> dict[str, Any]:
    answers = responses({"200": success("SignedToken")}, 401, 403, 404, 422, 429, 503)
    sign = _operation("Tokens", "Sign a JWT", answers, _NAME, granted=Action.SIGN)
    answers = responses({"200": success("BatchResult")}, 401, 403, 404, 429, 503)
    batch = _operation("Tokens", "Sign many JWTs", answers, _NAME, granted=Action.SIGN)
    answers = responses({"200": success("Verification")}, 401, 403, 404, 429, 503)
    verify = _operation("Tokens", "Verify a JWT", answers, _NAME, granted=Action.VERIFY)
    return {
        f"{_KEYSET}/sign/jwt": {"post": _with_body(sign, "SignRequest")},
        f"{_KEYSET}/sign/jwt/batch": {"post": _with_body(batch, "BatchRequest")},
        f"{_KEYSET}/verify": {"post": _with_body(verify, "VerifyRequest")},
    }


def _act(summary: str, action: Action, *parameters: Any, request: str = "ActRequest") -> Operation:
    done = {"200": success("Act"), "202": success("Act", description="Waits for a second person")}
    answers = responses(done, 401, 403, 404, 409, 429, 503)
    operation = _operation("Keys", summary, answers, *parameters, granted=action)
    return _with_body(operation, request, required=request in _NEEDED)


def _read(tag: str, summary: str, schema: str, *parameters: Any, statuses: tuple[int, ...]) -> Any:
    answers = responses({"200": success(schema)}, 401, 429, 503, *statuses)
    return {"get": _operation(tag, summary, answers, *parameters, granted=Action.READ)}


def _keysets() -> dict[str, Any]:
    answers = responses({"200": success("KeysetAct")}, 401, 403, 404, 409, 429, 503)
    put = _operation(
        "Keysets", "Create a keyset, or bring its settings in line with the body", answers, _NAME,
        granted=Action.MANAGE,
    )  # fmt: skip
    show = _read("Keysets", "A keyset and its keys", "KeysetWithKeys", _NAME, statuses=(403, 404))
    failover = "Sign with the published spare in the other backend at once"
    migrate = "Move to another backend for good, or stop moving"
    found = {
        "/v1/keysets": _read("Keysets", "The keysets that you may read", "Keysets", statuses=()),
        _KEYSET: {**show, "put": _with_body(put, "KeysetRequest")},
        f"{_KEYSET}/rotate": {
            "post": _act("The spare takes over from the active key", Action.ROTATE, _NAME)
        },
        f"{_KEYSET}/failover": {
            "post": _act(failover, Action.ROTATE, _NAME, request="FailoverRequest")
        },
        f"{_KEYSET}/migrate": {
            "post": _act(migrate, Action.MANAGE, _NAME, request="MigrateRequest")
        },
        f"{_KEYSET}/migration": _read(
            "Keysets", "How far a migration has come", "Migration", _NAME, statuses=(403, 404)
        ),
        f"{_KEY}/evidence": _read(
            "Keys", "What the device says about the custody of the private half", "Evidence",
            _NAME, _KID, statuses=(403, 404),
        ),
    }  # fmt: skip
    found[f"{_KEYSET}/proposals"] = _read(
        "Keys", "What waits for a second person", "Proposals", _NAME, statuses=(403, 404)
    )
    found[f"{_KEY}/approve"] = {
        "post": _act(
            "Approve what somebody else proposed",
            Action.DESTROY,
            _NAME,
            _KID,
            request="ApproveRequest",
        )
    }
    for act, action in ACTS.items():
        found[f"{_KEY}/{act}"] = {"post": _act(_ACTS_DO[act], action, _NAME, _KID)}
    return found


def _query(name: str, schema: Schema, description: str = "") -> dict[str, Any]:
    found = {"name": name, "in": "query", "schema": schema}
    return {**found, "description": description} if description else found


def _operations() -> dict[str, Any]:
    text = {"type": "string", "minLength": 1, "maxLength": 256}
    filters = [_query(name, text) for name in ("principal", "keyset", "kid", "jti")]
    time = {"type": "string", "format": "date-time"}
    limit = {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": 100}
    parameters = (
        *filters,
        _query("event", text, "Or a pattern such as `lifecycle.*`."),
        _query("since", time, "RFC 3339; included."),
        _query("until", time, "RFC 3339; not included."),
        _query("limit", limit),
        _query("before", text, "`before` of the page before."),
    )
    answers = responses({"200": success("AuditRecords")}, 400, 401, 403, 429, 503)
    records = _operation(
        "Operations", "Records of the audit trail, newest first", answers, *parameters,
        granted=Action.AUDIT,
    )  # fmt: skip
    backends = _read("Operations", "How the backends do", "Backends", statuses=(403,))
    alive = _operation("Operations", "The process lives", {"200": success("Alive")})
    ready = responses({"200": success("Ready")}, 503)
    return {
        "/v1/backends": backends,
        "/v1/audit": {"get": records},
        "/healthz": {"get": alive},
        "/readyz": {"get": _operation("Operations", "The JWKS can be served", ready)},
    }


def _document(summary: str, schema: str, media_type: str, *parameters: Any) -> dict[str, Any]:
    cached = ("ETag", "Cache-Control")
    answers = responses(
        {
            "200": success(schema, *cached, media_type=media_type),
            "304": success(None, *cached, description="`If-None-Match` holds the ETag"),
        },
        401, 404, 503,
    )  # fmt: skip
    etag = {"name": "If-None-Match", "in": "header", "schema": TEXT}
    get = _operation("For verifiers", summary, answers, *parameters, etag)
    # Issuers whose access is "authenticated" answer clients only.
    get["security"] = [{}, *_AUTHENTICATED]
    allowed = responses({"204": success(None, description="Methods and headers")}, 404, 503)
    preflight = _operation("For verifiers", "CORS preflight", allowed, *parameters)
    return {"get": get, "options": preflight}


def _verifiers() -> dict[str, Any]:
    issuer = _in_path(
        "issuer",
        {"type": "string", "minLength": 1},
        "The path of the issuer's URL, slashes included; or `keysets/{name}` for one keyset.",
    )
    jwks = ("JWKS (RFC 7517)", "Jwks", JWKS_MEDIA_TYPE)
    openid = ("Metadata, OpenID Connect Discovery", "Metadata", "application/json")
    server = ("Metadata, at the place of RFC 8414", "Metadata", "application/json")
    return {
        "/.well-known/jwks.json": _document(*jwks),
        "/{issuer}/.well-known/jwks.json": _document(*jwks, issuer),
        "/.well-known/openid-configuration": _document(*openid),
        "/{issuer}/.well-known/openid-configuration": _document(*openid, issuer),
        "/.well-known/oauth-authorization-server": _document(*server),
        "/.well-known/oauth-authorization-server/{issuer}": _document(*server, issuer),
    }


def _description() -> dict[str, Any]:
    page = {"200": success(TEXT, media_type="text/html")}
    return {
        "/openapi/": {"get": _operation("Description", "A page to try the API", page)},
        "/openapi/openapi.json": {
            "get": _operation("Description", "This description", {"200": success(ANYTHING)})
        },
    }


def all_paths() -> dict[str, Any]:
    return {
        **_tokens(), **_keysets(), **_operations(), **_verifiers(), **_description(),
    }  # fmt: skip
