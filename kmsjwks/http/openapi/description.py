"""The whole description, as OpenAPI 3.1 has it."""

from __future__ import annotations

from typing import Any

from kmsjwks import __version__
from kmsjwks.http.openapi.operations import all_paths
from kmsjwks.http.openapi.responses import headers, problem_schema, problems
from kmsjwks.http.openapi.schemas import all_schemas

_ABOUT = """\
Claims in, signed JWT out; the private keys stay in an HSM or KMS. A JWKS for verifiers.

Every answer carries `X-Request-Id`. Errors are `application/problem+json` (RFC 9457) with a stable
`code`; new codes may come. Unknown members of a request are refused, and answers may get new ones.
A service with `rotation.development` marks every answer with `X-Kmsjwks-Unsafe`.
"""


def describe() -> dict[str, Any]:
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kmsjwks",
            "version": __version__,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": ".."}],  # relative to this document, so that a proxy may add a path
        "tags": [
            {"name": name}
            for name in (
                "Tokens", "Keysets", "Keys", "For verifiers", "Operations", "Description",
            )
        ],
        "paths": all_paths(),
        "components": {
            "schemas": {**all_schemas(), "Problem": problem_schema()},
            "responses": problems(),
            "headers": headers(),
            "securitySchemes": {
                "client": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A client token, or a JWT of an issuer that is trusted. A "
                    "certificate (mutual TLS) does instead where the service is set up for it.",
                }
            },
        },
    }  # fmt: skip
