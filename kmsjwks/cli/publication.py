"""`kmsjwks keys` and `kmsjwks jwks`."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from kmsjwks.bootstrap import Service
from kmsjwks.cli.output import emit
from kmsjwks.cli.session import Session, exits
from kmsjwks.cli.views import summary_of_key
from kmsjwks.domain.documents import JWKS_NAME, Document
from kmsjwks.domain.errors import BackendError, KeyNotKnown, NotFound
from kmsjwks.domain.jwk import public_jwk
from kmsjwks.domain.ports import KeyBackend
from kmsjwks.publishing.files import FileTarget
from kmsjwks.publishing.targets import target_for
from kmsjwks.services.exporting import Exporter
from kmsjwks.services.publication import issuer_path
from kmsjwks.services.snapshot import Snapshot


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
        snapshot = service.snapshots.current()
        path = _jwks_path(snapshot, issuer or service.settings.server.base_url)
        click.echo(snapshot.documents[path].body.decode())


@jwks.command()
@click.option(
    "--to",
    required=True,
    metavar="FILE|DIR/|s3://BUCKET/PREFIX",
    help="A file takes one JWKS; a directory (ending in '/') or a bucket takes all documents.",
)
@click.option("--issuer", help="Only this issuer's. Default: all, and the base URL's in a file.")
@click.pass_obj
@exits
def export(session: Session, to: str, issuer: str | None) -> None:
    """Publish documents to a file, a directory or a bucket; atomic, and only what changed."""
    with session.service() as service:
        written = _export(service, to, issuer)
    for line in written:
        click.echo(line)
    if not written:
        click.echo("Everything there is as it should be; nothing was written.", err=True)


def _export(service: Service, to: str, issuer: str | None) -> list[str]:
    wanted = issuer or service.settings.server.base_url
    endpoint = service.settings.publication.s3_endpoint
    target = target_for(
        to, endpoint=endpoint, name=f"{issuer_path(wanted)}/{JWKS_NAME}".lstrip("/")
    )
    snapshot = service.snapshots.current()
    documents = snapshot.documents
    if issuer is not None or isinstance(target, FileTarget):
        documents = _of_issuer(snapshot, wanted)
    if not documents:
        raise NotFound("There is no keyset yet, so there is nothing to publish.")
    return Exporter([target]).export(documents)


def _of_issuer(snapshot: Snapshot, issuer: str) -> dict[str, Document]:
    """
    Raises:
        NotFound
    """
    jwks_path, path = _jwks_path(snapshot, issuer), issuer_path(issuer)
    return {
        name: snapshot.documents[name]
        for name in (
            jwks_path,
            f"{path}/.well-known/openid-configuration",
            f"/.well-known/oauth-authorization-server{path}",
        )
        if name in snapshot.documents
    }


def _jwks_path(snapshot: Snapshot, issuer: str) -> str:
    """
    Raises:
        NotFound
    """
    issuers = {ready.keyset.rules.issuer for ready in snapshot.keysets.values()}
    if issuer not in issuers:
        known = ", ".join(sorted(issuers)) or "none"
        raise NotFound(f"No keyset has the issuer {issuer}; there are: {known}.")
    return f"{issuer_path(issuer)}/{JWKS_NAME}"
