"""`kmsjwks evidence`: the custody report."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from kmsjwks import __version__
from kmsjwks.bootstrap import Service
from kmsjwks.cli.auditproving import Sources, prove
from kmsjwks.cli.session import Session, exits, operator
from kmsjwks.domain.auditfilter import RecordFilter
from kmsjwks.domain.errors import AuditUnavailable
from kmsjwks.services.auditproof import AuditProof
from kmsjwks.services.custody import CustodyParts, Occasion, custody_report


@click.command()
@click.argument("keyset", required=False)
@click.option(
    "-o",
    "--format",
    "format_",
    type=click.Choice(["json", "html"]),
    default="json",
    show_default=True,
    help="A page for people, or members for programs.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write to this file. Default: standard output.",
)
@click.option(
    "--checkpoints",
    "places",
    multiple=True,
    metavar="DIR|FILE|URL",
    help="Where checkpoints were kept; may be repeated. Default: in the audit directory.",
)
@click.pass_obj
@exits
def evidence(
    session: Session,
    keyset: str | None,
    format_: str,
    output: Path | None,
    places: tuple[str, ...],
) -> None:
    """The custody report of KEYSET or of all: every key, its states and dates, what its device
    says, who did what, and what the audit trail proves.

    A device that cannot be reached, or a trail that was tampered with, is said in the report.
    """
    proof = _proof(session, places)
    with session.service() as service:
        parts = CustodyParts(
            store=service.store,
            backends=service.backends,
            records=service.trail.records(RecordFilter()),
            proof=proof,
        )
        report = custody_report(parts, _occasion(service), keyset)
    text = _page(report) if format_ == "html" else json.dumps(report, indent=2)
    if output is None:
        click.echo(text)
        return
    try:
        output.write_text(text + "\n", "utf-8")
    except OSError as error:
        raise click.ClickException(f"{output}: {error.strerror}.") from error


def _proof(session: Session, places: tuple[str, ...]) -> AuditProof | None:
    try:
        return prove(Sources(places=places), session)
    except AuditUnavailable as error:
        click.echo(f"warning: {error}", err=True)
        return None


def _occasion(service: Service) -> Occasion:
    return Occasion(
        installation=service.settings.server.base_url,
        version=__version__,
        time=int(time.time()),
        asked_by=operator().name,
        verification=service.settings.signing.verification,
        development=service.timing.development,
    )


def _page(report: dict[str, Any]) -> str:
    from kmsjwks.reports.html import custody_page  # noqa: PLC0415  # its templates, for those who want pages

    return custody_page(report)
