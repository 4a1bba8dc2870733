"""`kmsjwks clients`: who may call, what they may do, and bearer tokens."""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
from pathlib import Path
from typing import Any

import click

from kmsjwks.cli.deciding import Wanted, decide_token
from kmsjwks.cli.output import emit, shown_time
from kmsjwks.cli.session import Exit, Session, exits
from kmsjwks.cli.types import Duration, JsonObject
from kmsjwks.config import BearerToken, ClientSettings, Settings
from kmsjwks.domain.access import Action, Principal, decide
from kmsjwks.domain.errors import InvalidRequest
from kmsjwks.domain.principals import TokenIdentity

_PREFIX = "kmsjwks_"


@click.group()
def clients() -> None:
    """Callers of the API."""


@clients.command()
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the token to this new file (0600) and print only its SHA-256.",
)
def token(out: Path | None) -> None:
    """Generate a bearer token. It is shown once; the configuration holds its SHA-256."""
    value = _PREFIX + secrets.token_urlsafe(32)
    digest = _digest(value)
    if out is None:
        click.echo(value)
        click.echo(f"token_sha256: {digest}", err=True)
        return
    try:
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise click.ClickException(f"{out}: {error.strerror}.") from error
    with os.fdopen(descriptor, "w") as file:
        file.write(value + "\n")
    click.echo(digest)


@clients.command("hash")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def hash_(file: Path) -> None:
    """Print the SHA-256 of the token in FILE, for token_sha256 in the configuration."""
    click.echo(_digest(file.read_text("utf-8").strip()))


def _digest(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


@clients.command("list")
@click.pass_context
@exits
def list_(context: click.Context) -> None:
    """Show every client: how it authenticates, and its grants, one a line."""
    session: Session = context.obj
    emit(context, [row for client in session.settings().clients for row in _rows(client)])


def _rows(client: ClientSettings) -> list[dict[str, Any]]:
    ways = _ways(client)
    return [
        {
            "client": client.name,
            "authenticates": ways,
            "rule": grant.rule if grant else None,
            "actions": [one.value for one in Action if one in grant.actions] if grant else [],
            "keysets": list(grant.keysets) if grant else [],
            "tokens_must_have": list(grant.narrowing.described()) if grant else [],
        }
        for grant in client.grants or (None,)
    ]


def _ways(client: ClientSettings) -> list[str]:
    return [
        *map(_token, client.tokens),
        *map(_oidc, client.oidc),
        *(f"certificate {one.kind.value} {one.value}" for one in client.certificates),
    ]


def _token(token: BearerToken) -> str:
    """Enough of the hash to find it in the file."""
    until = f" until {shown_time(int(token.expires))}" if token.expires is not None else ""
    return f"token {token.sha256[:8]}{until}"


def _oidc(identity: TokenIdentity) -> str:
    subject = f" sub {identity.subject}" if identity.subject is not None else ""
    claims = f" and {', '.join(identity.claims)}" if identity.claims else ""
    return f"oidc {identity.issuer}{subject}{claims}"


@clients.command()
@click.argument("name")
@click.argument("action", type=click.Choice([action.value for action in Action]))
@click.argument("keyset")
@click.option(
    "--claims",
    "claims_file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="File with the claims of a token to be signed, as a JSON object; '-' for stdin.",
)
@click.option("--ttl", type=Duration(), help="Lifetime of that token, e.g. 300s or 15m.")
@click.pass_context
@exits
def can(
    context: click.Context,
    name: str,
    action: str,
    keyset: str,
    claims_file: str | None,
    ttl: int | None,
) -> None:
    """Explain whether the client NAME may do ACTION with KEYSET, and which rule says so.

    Exit codes: 0 allowed, 4 denied. Grants are decided by names: KEYSET need not exist. With
    --claims or --ttl the token is judged as it would be signed, by the rules of the keyset and the
    narrowing of grants.
    """
    session: Session = context.obj
    settings = session.settings()
    principal = _principal(settings, name)
    if claims_file is not None or ttl is not None:
        if action != Action.SIGN.value:
            raise click.UsageError("--claims and --ttl are for the action sign.")
        decision, note = decide_token(
            settings, principal, keyset, Wanted(_claims(claims_file), ttl)
        )
        if note:
            click.echo(f"note: {note}", err=True)
    else:
        decision = decide(principal, Action(action), keyset)
    shown = {
        "client": principal.name,
        "action": action,
        "keyset": keyset,
        "allowed": decision.allowed,
        "rule": decision.rule or None,
        "member": decision.member or None,
        "why": decision.why,
    }
    emit(context, shown)
    sys.exit(Exit.OK if decision.allowed else Exit.DENIED)


def _principal(settings: Settings, name: str) -> Principal:
    for client in settings.clients:
        if client.name == name:
            return Principal(name, client.grants)
    known = ", ".join(client.name for client in settings.clients) or "none"
    raise InvalidRequest(f"There is no client {name!r} in the configuration; known: {known}.")


def _claims(file: str | None) -> dict[str, Any]:
    if file is None:
        return {}
    found: dict[str, Any] = JsonObject().convert(file if file == "-" else f"@{file}", None, None)
    return found
