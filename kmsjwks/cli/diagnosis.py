"""`kmsjwks doctor`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from kmsjwks.cli.output import emit
from kmsjwks.cli.session import Exit, Session, exits
from kmsjwks.domain.errors import InvalidRequest
from kmsjwks.domain.ports import Finding, KeyBackend, KeyStore
from kmsjwks.services.diagnosis import (
    OPEN,
    ORPHANS,
    diagnose,
    find_orphans,
    find_unusable,
    keys_in_use,
)


@click.command()
@click.option("--backend", "name", help="Only this backend. Default: all that are configured.")
@click.pass_context
@exits
def doctor(context: click.Context, name: str | None) -> None:
    """Open each backend, try all that the service does with it on a throw-away key, which is
    destroyed again, and name keys of ours that the database does not know."""
    session: Session = context.obj
    with session.service() as service:
        service.store.check()
        for advice in service.settings.advice:
            click.echo(f"note: {advice}", err=True)
        rows = [
            {"backend": chosen, "check": finding.check, "ok": finding.ok, "said": finding.said}
            for chosen, backend in _chosen(service.backends, name).items()
            for finding in _findings(chosen, backend, service.store)
        ]
    _show(context, rows)
    if not all(row["ok"] for row in rows):
        unreachable = any(row["check"] == OPEN and not row["ok"] for row in rows)
        context.exit(Exit.BACKEND_UNREACHABLE if unreachable else Exit.CHECK_FOUND_SOMETHING)


def _findings(name: str, backend: KeyBackend, store: KeyStore) -> Iterator[Finding]:
    reached, keys = True, store.keys()
    for finding in diagnose(backend, keys_in_use(name, keys)):
        reached = reached and (finding.ok or finding.check != OPEN)
        yield finding
    if reached:
        yield from find_unusable(name, backend, keys)
        yield from find_orphans(name, backend, keys)


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
        click.echo(f"{_mark(row)} {row['backend']}: {row['check']}: {row['said']}")


def _mark(row: Mapping[str, Any]) -> str:
    if not row["ok"]:
        return "FAIL"
    return "warn" if row["check"] == ORPHANS else "ok  "
