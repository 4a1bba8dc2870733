"""`kmsjwks doctor`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from kmsjwks.cli.output import emit
from kmsjwks.cli.session import Exit, Session, exits
from kmsjwks.domain.errors import InvalidRequest
from kmsjwks.domain.ports import KeyBackend
from kmsjwks.services.diagnosis import diagnose


@click.command()
@click.option("--backend", "name", help="Only this backend. Default: all that are configured.")
@click.pass_context
@exits
def doctor(context: click.Context, name: str | None) -> None:
    """Open each backend, list what it offers, generate a throw-away key, sign with it, ask for
    custody evidence, destroy it."""
    session: Session = context.obj
    with session.service() as service:
        service.store.check()
        advice = service.settings.audit.checkpoint_advice
        if advice:
            click.echo(f"note: {advice}", err=True)
        rows = [
            {"backend": chosen, "check": finding.check, "ok": finding.ok, "said": finding.said}
            for chosen, backend in _chosen(service.backends, name).items()
            for finding in diagnose(backend)
        ]
    _show(context, rows)
    if not all(row["ok"] for row in rows):
        unreachable = any(row["check"] == "open" and not row["ok"] for row in rows)
        context.exit(Exit.BACKEND_UNREACHABLE if unreachable else Exit.CHECK_FOUND_SOMETHING)


def _chosen(backends: Mapping[str, KeyBackend], name: str | None) -> dict[str, KeyBackend]:
    if name is None:
        return dict(backends)
    if name not in backends:
        raise InvalidRequest(
            f"There is no backend {name!r}. Configured: {', '.join(sorted(backends))}."
        )
    return {name: backends[name]}


def _show(context: click.Context, rows: list[dict[str, Any]]) -> None:
    if context.find_root().params.get("output") == "json":
        emit(context, rows)
        return
    for row in rows:
        mark = "ok  " if row["ok"] else "FAIL"
        click.echo(f"{mark} {row['backend']}: {row['check']}: {row['said']}")
