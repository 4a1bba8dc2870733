"""`kmsjwks audit`: verify, keys, tail, search, publish."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import click

from kmsjwks.bootstrap import checkpoint_plan
from kmsjwks.cli.auditoptions import Columns, chosen, filter_options
from kmsjwks.cli.auditproving import Sources, prove
from kmsjwks.cli.output import emit, shown_time
from kmsjwks.cli.session import Exit, Session, exits
from kmsjwks.domain.auditfilter import RecordFilter
from kmsjwks.domain.errors import InvalidRequest, KeysetNotFound, PublicationFailed
from kmsjwks.domain.jwk import public_jwk, refuse_private_members
from kmsjwks.services.auditproof import AuditProof
from kmsjwks.services.checkpointing import publish_all
from kmsjwks.storage.audit_checkpoints import CHECKPOINTS, kept_checkpoints
from kmsjwks.storage.audit_reader import AuditReader, Record

_POLL = 0.5  # seconds
_DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)


@click.group()
def audit() -> None:
    """The audit trail: prove it, and look things up in it."""


@audit.command()
@click.argument("directory", required=False, type=_DIRECTORY)
@click.option(
    "--checkpoints",
    "places",
    multiple=True,
    metavar="DIR|FILE|URL",
    help="Where checkpoints were kept; may be repeated. Default: DIRECTORY/checkpoints.",
)
@click.option(
    "--keys",
    "keys_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="JWK Set with the public keys of checkpoints, as 'kmsjwks audit keys' printed it.",
)
@click.option(
    "--ignore-other-chains",
    is_flag=True,
    help="The checkpoints are also those of other directories: a chain that is not here is fine.",
)
@click.pass_context
@exits
def verify(
    context: click.Context,
    directory: Path | None,
    places: tuple[str, ...],
    keys_file: Path | None,
    ignore_other_chains: bool,
) -> None:
    """Prove an audit trail, or name the first bad record.

    With DIRECTORY it needs neither configuration nor database nor backend; without, it is the
    configured one, and the keys are taken from the database unless --keys is given. Exit codes:
    0 sound, 5 something is wrong.
    """
    session: Session = context.obj
    sources = Sources(directory, places, keys_file, ignore_other_chains)
    found = prove(sources, session)
    if context.find_root().params.get("output") == "json":
        emit(context, found.as_members())
    else:
        _show_proof(found)
    if not found.sound:
        context.exit(Exit.CHECK_FOUND_SOMETHING)


def _show_proof(found: AuditProof) -> None:
    for problem in found.problems:
        click.echo(f"FAIL {problem}")
    chains, files = found.trail.chains, sum(len(one.files) for one in found.trail.chains)
    last = found.last_checkpoint
    click.echo(
        f"{'ok   ' if found.sound else '     '}{found.trail.records} records in {files} files, "
        f"{len(chains)} chains; {len(found.checkpoints.proved)} checkpoints, the last "
        f"{shown_time(last.checkpoint.time) if last else '-'}"
    )
    for sentence in found.proved():
        click.echo(f"     {sentence}")
    for note in found.notes:
        click.echo(f"note: {note}", err=True)


@audit.command()
@click.pass_obj
@exits
def keys(session: Session) -> None:
    """Print the public keys that checkpoints were ever signed with, as a JWK Set.

    Keep it outside of this machine. Each kid is the RFC 7638 thumbprint of its key, so a kid that
    was noted elsewhere is enough to trust a copy of this file.
    """
    settings = session.settings()
    name = settings.audit.checkpoint_keyset
    if name is None:
        raise InvalidRequest("audit.checkpoint_keyset is not set, so there are no checkpoints.")
    with session.service() as service:
        found = [public_jwk(key.spki, key.algorithm) for key in service.store.keys(name)]
    if not found:
        raise KeysetNotFound(f"There is no keyset {name} yet; create it with keysets create.")
    refuse_private_members(found)
    click.echo(json.dumps({"keys": found}, indent=2))


@audit.command()
@click.option(
    "-n",
    "number",
    type=click.IntRange(0, 100_000),
    default=20,
    show_default=True,
    help="How many records.",
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is recorded from now on.")
@filter_options
@click.pass_context
@exits
def tail(context: click.Context, number: int, follow: bool, **given: Any) -> None:  # fmt: skip
    """Show the last records, the newest at the end."""
    reader, wanted = _reader(context, given), chosen(given)
    columns = Columns(context)
    if not follow:
        columns.show(reversed(list(islice(reader.newest(wanted), number))))
        return
    for record in _followed(reader, wanted, number, columns):
        columns.show([record])


def _followed(
    reader: AuditReader, wanted: RecordFilter, number: int, columns: Columns
) -> Iterator[Record]:
    """Following begins before the last are shown: nothing is lost in between, nothing is twice."""
    before: set[tuple[Any, Any]] | None = None

    def wait() -> bool:
        nonlocal before
        if before is None:
            last = list(islice(reader.newest(wanted), number))
            before = {(one.get("chain"), one.get("seq")) for one in last}
            columns.show(reversed(last))
        time.sleep(_POLL)
        return True

    for record in reader.follow(wanted, wait):
        if (record.get("chain"), record.get("seq")) not in (before or ()):
            yield record


@audit.command()
@click.option("--limit", type=click.IntRange(1), help="At most so many.")
@filter_options
@click.pass_context
@exits
def search(context: click.Context, limit: int | None, **given: Any) -> None:
    """Show the records that fit, oldest first."""
    reader, wanted = _reader(context, given), chosen(given)
    Columns(context).show(islice(reader.records(wanted), limit))


def _reader(context: click.Context, given: dict[str, Any]) -> AuditReader:
    directory: Path | None = given.pop("directory")
    if directory is None:
        session: Session = context.obj
        directory = session.settings().audit.directory
    return AuditReader(directory)


@audit.command()
@click.pass_context
@exits
def publish(context: click.Context) -> None:
    """Publish every checkpoint that is kept in the audit directory wherever it is missing."""
    session: Session = context.obj
    settings = session.settings()
    plan = checkpoint_plan(settings)
    if plan is None or not plan.targets:
        raise InvalidRequest("Set audit.checkpoint_keyset and audit.checkpoint_targets first.")
    kept = kept_checkpoints(settings.audit.directory / CHECKPOINTS)
    written, failures = publish_all(plan.targets, kept)
    for line in written:
        click.echo(line)
    if failures:
        raise PublicationFailed(" ".join(dict.fromkeys(failures)))
