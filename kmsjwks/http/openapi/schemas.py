"""JSON schemas (2020-12) of what the API takes and gives, by name.

Members of requests come from the tables that the views check bodies against.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Any

from kmsjwks.domain.algorithms import ALGORITHMS
from kmsjwks.domain.approvals import ApprovalState, ProtectedAct
from kmsjwks.domain.keys import KEYSET_NAME, KeyState
from kmsjwks.domain.tokenrules import JTI_POLICIES, NBF_POLICIES
from kmsjwks.http.acts import DRY_RUN, Members
from kmsjwks.http.batch import BATCH_MEMBERS, ITEM_MEMBERS, MAX_ITEMS, MAX_REFERENCE
from kmsjwks.http.keysets import VERIFY_MEMBERS
from kmsjwks.http.lifecycle import APPROVE_MEMBERS, PUT_MEMBERS, STANDBY_MEMBERS
from kmsjwks.http.moves import FAILOVER_MEMBERS, MIGRATE_MEMBERS
from kmsjwks.http.rulemembers import RULE_MEMBERS
from kmsjwks.http.signing import SIGN_MEMBERS

Schema = dict[str, Any]

_TYPES: Mapping[type, str] = {
    bool: "boolean", dict: "object", int: "integer", list: "array", str: "string",
    NoneType: "null",
}  # fmt: skip

TEXT: Schema = {"type": "string"}
TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
TEXTS: Schema = {"type": "array", "items": TEXT}
COUNT: Schema = {"type": "integer", "minimum": 0}
YES_OR_NO: Schema = {"type": "boolean"}
ANYTHING: Schema = {"type": "object", "additionalProperties": True}
WHEN: Schema = {"type": "integer", "description": "Seconds since the epoch."}
WHEN_OR_NULL: Schema = {"type": ["integer", "null"], "description": "Seconds since the epoch."}
SECONDS_OR_NULL: Schema = {"type": ["integer", "null"], "description": "Seconds."}
KEYSET: Schema = {"type": "string", "pattern": f"^{KEYSET_NAME.pattern}$"}
STATE: Schema = {"type": "string", "enum": [state.value for state in KeyState]}
ALGORITHM: Schema = {"type": "string", "enum": [algorithm.id for algorithm in ALGORITHMS]}
JOSE: Schema = {
    "type": "string",
    "enum": sorted({algorithm.jose for algorithm in ALGORITHMS}),
    "description": "`alg` (RFC 7515 section 4.1.1).",
}
UNSAFE: Schema = {
    "type": "string",
    "description": "Only of a service with `rotation.development`: it does not protect verifiers.",
}
_DETAILS: Mapping[str, Schema] = {
    "algorithm": {"description": "Such as `ES256`, `RS256-3072` or `Ed448`."},
    "claims": {"description": "RFC 7519 section 4. `iss` and `iat` are the service's to set."},
    "items": {
        "maxItems": MAX_ITEMS,
        "items": {"$ref": "#/components/schemas/BatchItem"},
    },
    "reference": {
        "maxLength": MAX_REFERENCE,
        "description": "The caller's own, given back; need not be unique.",
    },
    "headers": {
        "properties": {"cty": TEXT, "typ": TEXT},
        "additionalProperties": False,
        "description": "`typ` only if it is the keyset's.",
    },
    "issuer": {"description": "The `iss` URL; default: the service's own."},
    "audiences": {"items": TEXT, "description": "Allowed `aud`; `*` for any."},
    "required_claims": {"items": TEXT},
    "forbidden_claims": {"items": TEXT},
    "allowed_claims": {"items": TEXT},
    "nbf": {"enum": list(NBF_POLICIES)},
    "jti": {"enum": list(JTI_POLICIES)},
    "profile": {"enum": ["", "at+jwt"], "description": "`at+jwt`: RFC 9068."},
    "ttl": {"minimum": 1, "description": "Lifetime in seconds, at most the keyset's."},
    "dry_run": {"description": "Check and tell, and change nothing."},
    **{
        name: {"description": "Seconds."}
        for name in (
            "max_lifetime", "default_lifetime", "rotation_period", "propagation", "leeway",
            "destroy_after", "destroy_window", "failover_after", "failback_after",
        )
    },
}  # fmt: skip


def answer(members: Mapping[str, Schema], optional: tuple[str, ...] = ()) -> Schema:
    """An object that may get more members in later versions."""
    required = [name for name in members if name not in optional]
    return {"type": "object", "properties": dict(members), "required": required}


def body(
    members: Members, required: tuple[str, ...] = (), details: Mapping[str, Schema] = _DETAILS
) -> Schema:
    """An object as `bodies.check_members` checks it: with no other members."""
    return {
        "type": "object",
        "properties": {
            name: {"type": _types(kinds), **details.get(name, {})}
            for name, kinds in members.items()
        },
        "required": list(required),
        "additionalProperties": False,
    }


def _types(kinds: type | tuple[type, ...]) -> str | list[str]:
    if isinstance(kinds, tuple):
        return [_TYPES[kind] for kind in kinds]
    return _TYPES[kinds]


def reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _requests() -> dict[str, Schema]:
    standby = {
        "type": ["object", "null"],
        **{k: v for k, v in body(STANDBY_MEMBERS, ("backend",)).items() if k != "type"},
    }
    put = body(PUT_MEMBERS, ("algorithm", "backend"))
    put["properties"]["standby"] = standby
    return {
        "SignRequest": body(SIGN_MEMBERS, ("claims",)),
        "BatchRequest": body(BATCH_MEMBERS, ("items",)),
        "BatchItem": body(ITEM_MEMBERS, ("claims",)),
        "VerifyRequest": body(VERIFY_MEMBERS, ("token",)),
        "KeysetRequest": put,
        "ActRequest": body(DRY_RUN),
        "ApproveRequest": body(APPROVE_MEMBERS, ("proposal",)),
        "FailoverRequest": body(FAILOVER_MEMBERS),
        "MigrateRequest": body(MIGRATE_MEMBERS),
    }


def _tokens() -> dict[str, Schema]:
    signed = {"token": TEXT, "kid": TEXT, "alg": JOSE, "exp": WHEN, "jti": TEXT}
    claims = {"type": ["object", "null"], "additionalProperties": True}
    verified = {"valid": YES_OR_NO, "kid": TEXT_OR_NULL, "claims": claims, "reason": TEXT}
    result = {"reference": TEXT_OR_NULL, **signed, "error": reference("Problem")}
    either = {"oneOf": [{"required": ["error"]}, {"required": list(signed)}]}
    outcome = {**answer(result, (*signed, "error")), **either}
    return {
        "SignedToken": answer(signed),
        "BatchResult": answer({"results": {"type": "array", "items": outcome}}),
        "Verification": answer(verified),
    }


def _keysets() -> dict[str, Schema]:
    rules = {
        name: {"type": _types(kind), **_DETAILS.get(name, {})}
        for name, kind in RULE_MEMBERS.items()
    }
    delays = dict.fromkeys(("failover_after", "failback_after"), SECONDS_OR_NULL)
    standby = {**answer({"backend": TEXT, **delays}), "type": ["object", "null"]}
    keyset = {
        "name": KEYSET,
        "algorithm": ALGORITHM,
        "backend": TEXT,
        "standby": standby,
        "signs_in": TEXT_OR_NULL,
        **rules,
        "jwks_uri": TEXT,
        "active_kid": TEXT_OR_NULL,
        "created_at": WHEN,
    }
    times = ("published_at", "activate_at", "deactivated_at", "withdraw_at", "destroyed_at")
    key = {
        "kid": TEXT,
        "algorithm": ALGORITHM,
        "state": STATE,
        "backend": TEXT,
        "ref": TEXT,
        "jwk": reference("Jwk"),
        "created_at": WHEN,
        **dict.fromkeys(times, WHEN_OR_NULL),
    }
    keys = {"type": "array", "items": reference("Key")}
    return {
        "Keyset": answer(keyset),
        "KeysetWithKeys": answer({**keyset, "keys": keys}),
        "Keysets": answer({"keysets": {"type": "array", "items": reference("Keyset")}}),
        "Key": answer(key),
        "KeysetAct": answer(
            {"name": KEYSET, "dry_run": YES_OR_NO, "unsafe": UNSAFE}, ("unsafe",)
        ),
    }  # fmt: skip


def _acts() -> dict[str, Schema]:
    change = {
        "kid": TEXT,
        "state": STATE,
        "hold": YES_OR_NO,
        **dict.fromkeys(("activate_at", "withdraw_at", "destroy_at"), WHEN_OR_NULL),
    }
    act = {
        "dry_run": YES_OR_NO,
        "event": TEXT,
        "says": TEXTS,
        "changes": {"type": "array", "items": answer(change)},
        "proposal": reference("Proposal"),
        "unsafe": UNSAFE,
    }
    proposal = {
        "id": TEXT,
        "act": {"type": "string", "enum": [act.value for act in ProtectedAct]},
        "keyset": TEXT,
        "kid": TEXT,
        "key_version": COUNT,
        "proposed_by": TEXT,
        "proposed_at": WHEN,
        "expires_at": WHEN,
        "state": {"type": "string", "enum": [state.value for state in ApprovalState]},
        "approved_by": TEXT_OR_NULL,
        "approved_at": WHEN_OR_NULL,
    }
    proposals = {"type": "array", "items": reference("Proposal")}
    evidence = {
        "ref": TEXT,
        "custody": {"type": "object", "additionalProperties": TEXT},
        "attributes": {
            "type": "object",
            "additionalProperties": {"type": ["boolean", "string", "null"]},
        },
        "extraction_refused": YES_OR_NO,
        "findings": TEXTS,
        "sound": {"type": "boolean", "description": "The key cannot be extracted."},
        "unsafe": UNSAFE,
    }
    return {
        "Act": answer(act, ("proposal", "unsafe")),
        "Proposal": {**answer(proposal), "description": "What waits for a second person."},
        "Proposals": answer({"proposals": proposals, "unsafe": UNSAFE}, ("unsafe",)),
        "Evidence": answer(evidence, ("unsafe",)),
    }


def _operations() -> dict[str, Schema]:
    left = {
        "kid": TEXT,
        "backend": TEXT,
        "state": STATE,
        "published": YES_OR_NO,
        **dict.fromkeys(("withdraw_at", "irreversible_at"), WHEN_OR_NULL),
    }
    stages = ["no-key-yet", "published", "scheduled", "retiring", "settled"]
    migration = {
        "stage": {"type": "string", "enum": stages},
        "done": YES_OR_NO,
        "backend": TEXT,
        "signs_in": TEXT_OR_NULL,
        "next_kid": TEXT_OR_NULL,
        "takes_over_at": WHEN_OR_NULL,
        "left_behind": {"type": "array", "items": answer(left)},
        "unsafe": UNSAFE,
    }
    refused = answer({"keyset": TEXT, "kid": TEXT, "since": WHEN, "reason": TEXT})
    backend = {
        "name": TEXT,
        "type": TEXT,
        "available": YES_OR_NO,
        "since": WHEN,
        "reason": TEXT,
        **dict.fromkeys(("keysets", "signing", "cannot_sign"), TEXTS),
        "refused_keys": {"type": "array", "items": refused},
    }
    down = answer({"since": WHEN, "keysets_that_cannot_sign": COUNT})
    ready = {
        "status": {"type": "string", "enum": ["ok", "degraded"]},
        "keysets": COUNT,
        "backends_down": {"type": "object", "additionalProperties": down},
        "keysets_that_cannot_sign": COUNT,
    }
    records = {
        "records": {"type": "array", "items": reference("AuditRecord")},
        "before": {**TEXT_OR_NULL, "description": "For the next page; null on the last one."},
    }
    return {
        "Migration": answer(migration, ("unsafe",)),
        "Backends": answer({"backends": {"type": "array", "items": answer(backend)}}),
        "AuditRecords": answer(records),
        "AuditRecord": {**ANYTHING, **_audit_record()},
        "Alive": answer({"status": {"const": "ok"}}),
        "Ready": answer(ready),
    }


def _audit_record() -> Schema:
    place = {
        "event": TEXT,
        "time": {"type": "number", "description": "Seconds since the epoch."},
        "chain": TEXT,
        "seq": COUNT,
        "prev": {"type": "string", "description": "SHA-256 of the line before, in hex."},
    }
    return answer(place)


def _verifiers() -> dict[str, Schema]:
    components = dict.fromkeys(("crv", "x", "y", "n", "e", "pub"), TEXT)
    jwk = {"kty": TEXT, "kid": TEXT, "alg": JOSE, "use": {"const": "sig"}, **components}
    metadata = {
        "issuer": TEXT,
        "jwks_uri": TEXT,
        **dict.fromkeys(("response_types_supported", "subject_types_supported"), TEXTS),
        "id_token_signing_alg_values_supported": {"type": "array", "items": JOSE},
    }
    return {
        "Jwk": {**answer(jwk, tuple(components)), "description": "RFC 7517; public members only."},
        "Jwks": answer({"keys": {"type": "array", "items": reference("Jwk")}}),
        "Metadata": answer(metadata),
    }


def all_schemas() -> dict[str, Schema]:
    """All but that of problems."""
    return {
        **_requests(), **_tokens(), **_keysets(), **_acts(), **_operations(), **_verifiers(),
    }  # fmt: skip
