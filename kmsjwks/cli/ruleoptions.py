"""The options that say what a keyset's tokens must look like."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from kmsjwks.cli.types import Duration
from kmsjwks.domain import strictjson
from kmsjwks.domain.errors import InvalidRequest, MalformedJson
from kmsjwks.domain.tokenrules import (
    JTI_POLICIES,
    NBF_POLICIES,
    PROFILES,
    TokenRules,
    complete,
)

_DEFAULT_LIFETIME = 300  # seconds

RULE_OPTIONS: tuple[Any, ...] = (
    click.option(
        "--audience",
        "audiences",
        multiple=True,
        help="An allowed aud; repeatable. '*' (default) allows any.",
    ),
    click.option(
        "--profile",
        type=click.Choice(list(PROFILES)),
        help="A preset of rules; at+jwt: JWT access tokens (RFC 9068).",
    ),
    click.option("--typ", help="The typ header. Default: JWT, or the profile's."),
    click.option("--max-lifetime", type=Duration(), default="1h", show_default=True),
    click.option(
        "--default-lifetime", type=Duration(), help="Default: 5m, or the maximum if less."
    ),
    click.option("--require", "required", multiple=True, help="A claim that must be sent."),
    click.option("--forbid", "forbidden", multiple=True, help="A claim that must not."),
    click.option(
        "--fix",
        "fixed",
        multiple=True,
        metavar="CLAIM=VALUE",
        help="A claim that the service sets; VALUE is JSON, or else a string.",
    ),
    click.option(
        "--allow",
        "allowed",
        multiple=True,
        help="A claim that may be sent; repeatable. Default: any that is not forbidden.",
    ),
    click.option(
        "--nbf",
        type=click.Choice(NBF_POLICIES),
        default="allowed",
        show_default=True,
        help="Who sets nbf.",
    ),
    click.option(
        "--jti",
        type=click.Choice(JTI_POLICIES),
        default="allowed",
        show_default=True,
        help="Who sets jti.",
    ),
)


def rules_from(options: dict[str, Any], issuer: str) -> TokenRules:
    """
    Raises:
        InvalidRequest
    """
    maximum = options["max_lifetime"]
    return complete(
        TokenRules(
            issuer=issuer,
            audiences=options["audiences"] or ("*",),
            typ=options["typ"] or "",
            max_lifetime=maximum,
            default_lifetime=options["default_lifetime"] or min(_DEFAULT_LIFETIME, maximum),
            required=options["required"],
            forbidden=options["forbidden"],
            fixed=_fixed(options["fixed"]),
            allowed=options["allowed"],
            nbf=options["nbf"],
            jti=options["jti"],
            profile=options["profile"] or "",
        )
    )


def _fixed(given: Iterable[str]) -> dict[str, Any]:
    fixed: dict[str, Any] = {}
    for one in given:
        name, equals, text = one.partition("=")
        if not equals or name in fixed:
            raise InvalidRequest(
                f"--fix {one!r}: write each claim once, as CLAIM=VALUE, such as "
                "tenant=acme or level=3."
            )
        fixed[name] = _value(text)
    return fixed


def _value(text: str) -> Any:
    try:
        return strictjson.loads(text.encode("utf-8", "surrogateescape"))
    except MalformedJson:
        return text
