"""`kmsjwks keys` and `kmsjwks jwks`."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from kmsjwks.cli.keysets import summary_of_key
from kmsjwks.cli.output import emit
from kmsjwks.cli.session import Session, exits
from kmsjwks.domain.errors import BackendError, KeyNotKnown, NotFound
from kmsjwks.domain.jwk import public_jwk
from kmsjwks.domain.ports import KeyBackend
from kmsjwks.services.publication import issuer_path


@click.group()
def keys() -> None:
    """Single keys."""


@keys.command("list")
@click.option("--keyset", help="Only the keys of this keyset.")
@click.pass_context
@exits
def list_(context: click.Context, keyset: str | None) -> None:
    """All keys, of all keysets or one."""
    session: Session = context.obj
    with session.service() as service:
        found = service.store.keys(keyset)
        emit(context, [{"keyset": key.keyset, **summary_of_key(key)} for key in found])


@keys.command()
@click.argument("kid")
@click.pass_context
@exits
def show(context: click.Context, kid: str) -> None:
    """One key: its public JWK, and what the device says about its custody."""
    session: Session = context.obj
    with session.service() as service:
        key = next((one for one in list(service.store.keys()) if one.kid == kid), None)
        if key is None:
            raise KeyNotKnown(f"There is no key {kid}.")
        emit(
            context,
            {
                "keyset": key.keyset,
                **summary_of_key(key),
                "jwk": json.dumps(public_jwk(key.spki, key.algorithm)),
                **_custody(service.backends.get(key.backend), key.ref),
            },
        )


def _custody(backend: KeyBackend | None, ref: str) -> dict[str, object]:
    if backend is None:
        return {"custody": "the backend is not configured here"}
    try:
        evidence = backend.evidence(ref)
    except BackendError as error:
        return {"custody": f"not known: {error}"}
    told = asdict(evidence)
    return {
        **told["custody"],
        **told["attributes"],
        "extraction_refused": evidence.extraction_refused,
        "custody_findings": list(evidence.findings),
    }


@click.group()
def jwks() -> None:
    """The public keys that verifiers fetch."""


@jwks.command()
@click.option("--issuer", help="The issuer URL. Default: the service's base URL.")
@click.pass_obj
@exits
def get(session: Session, issuer: str | None) -> None:
    """Print the JWKS of an issuer, byte for byte as it is served."""
    with session.service() as service:
        wanted = issuer or service.settings.server.base_url
        path = f"{issuer_path(wanted)}/.well-known/jwks.json"
        document = service.snapshots.current().documents.get(path)
        if document is None:
            raise NotFound(f"No keyset has the issuer {wanted}.")
        click.echo(document.body.decode())
