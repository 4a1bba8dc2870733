"""`kmsjwks sign` and `kmsjwks verify`, through the same services as the HTTP API."""

from __future__ import annotations

import json
import sys
import uuid
from dataclasses import asdict
from typing import Any

import click

from kmsjwks.cli.output import emit
from kmsjwks.cli.session import Exit, Session, exits, operator
from kmsjwks.cli.types import Duration, JsonObject
from kmsjwks.services.signing import Caller, SignRequest


def _caller() -> Caller:
    return Caller(operator(), f"cli-{uuid.uuid4().hex[:12]}")


@click.command()
@click.argument("keyset")
@click.option(
    "--claims",
    type=JsonObject(),
    default="{}",
    help="A JSON object, @FILE, or - for standard input.",
)
@click.option("--ttl", type=Duration(), help="Lifetime. Default: the keyset's.")
@click.pass_context
@exits
def sign(context: click.Context, keyset: str, claims: dict[str, Any], ttl: int | None) -> None:
    """Sign claims with the active key of KEYSET and print the token."""
    session: Session = context.obj
    with session.service() as service:
        signed = service.signing.sign_jwt(_caller(), keyset, SignRequest(claims, ttl))
    if context.find_root().params.get("output") == "json":
        emit(context, asdict(signed))
    else:
        click.echo(signed.token)


@click.command()
@click.argument("keyset")
@click.argument("token", default="-")
@click.pass_context
@exits
def verify(context: click.Context, keyset: str, token: str) -> None:
    """Verify TOKEN (- or none: standard input) with the published keys of KEYSET."""
    session: Session = context.obj
    text = sys.stdin.read() if token == "-" else token  # noqa: S105  # stdin, as usual
    with session.service() as service:
        result = service.signing.verify(_caller(), keyset, text.strip())
    shown = asdict(result)
    if context.find_root().params.get("output") != "json":
        shown["claims"] = json.dumps(shown["claims"], ensure_ascii=False)
    emit(context, shown)
    if not result.valid:
        context.exit(Exit.CHECK_FOUND_SOMETHING)
