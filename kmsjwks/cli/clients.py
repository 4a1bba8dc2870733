"""`kmsjwks clients`: bearer tokens."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

import click

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
