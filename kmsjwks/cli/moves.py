"""`kmsjwks keysets standby|failover|migrate`: which backend a keyset signs in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from kmsjwks.bootstrap import Service
from kmsjwks.cli.acts import acting, report, tick
from kmsjwks.cli.keysets import delay_options, standby_of
from kmsjwks.cli.output import emit, shown_time
from kmsjwks.cli.session import Session, exits
from kmsjwks.domain.migration import Progress
from kmsjwks.services.acting import Actor, Proposal

_NONE = "none"
_dry_run = click.option("--dry-run", is_flag=True, help="Say what would happen; change nothing.")
_STAGES = {
    "no-key-yet": "its key there is not made yet",
    "published": "its key there is published and waits until every verifier knows it",
    "scheduled": "its key there is published, and when it takes over is decided",
    "retiring": "it signs where it belongs; keys that it left behind are not destroyed yet",
    "settled": "it is where it belongs, and nothing of it is elsewhere",
}


def _delays(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(delay_options()):
        command = option(command)
    return command


@click.command()
@click.argument("name")
@click.argument("backend", metavar="BACKEND|none")
@_delays
@_dry_run
@click.pass_obj
@exits
def standby(session: Session, name: str, backend: str, **options: Any) -> None:
    """Keep a published spare of NAME in BACKEND, which takes over when its primary fails."""
    wanted = standby_of({**options, "standby": None if backend == _NONE else backend})
    with session.service() as service:
        _act(service, options, lambda actor: service.migration.stand_by(name, wanted, actor))


@click.command()
@click.argument("name")
@click.option("--to", metavar="BACKEND", help="Default: the other backend of the keyset.")
@click.option("--now", is_flag=True, help="Even though verifiers may not know that key yet.")
@_dry_run
@click.pass_obj
@exits
def failover(session: Session, name: str, to: str | None, now: bool, **options: Any) -> None:
    """Let the spare in the other backend sign at once; the same command goes back."""
    with session.service() as service:
        _act(
            service,
            options,
            lambda actor: service.failover.fail_over(name, actor, to=to, early=now),
        )


@click.command()
@click.argument("name")
@click.option("--to", metavar="BACKEND", help="Move the keyset there, or back again.")
@click.option("--stop", is_flag=True, help="Stay where the active key is.")
@click.option("--status", is_flag=True, help="How far it has come; the default.")
@_dry_run
@click.pass_context
@exits
def migrate(
    context: click.Context, name: str, to: str | None, stop: bool, status: bool, **options: Any
) -> None:
    """Move NAME to another backend for good, by publishing a key there and rotating to it."""
    if (to is not None) + stop + status > 1:
        raise click.UsageError("Say one of --to, --stop and --status.")
    session: Session = context.obj
    with session.service() as service:
        if to is not None:
            _act(service, options, lambda actor: service.migration.migrate(name, to, actor))
        elif stop:
            _act(service, options, lambda actor: service.migration.stop(name, actor))
        else:
            emit(context, _shown(name, service.migration.progress(name)))


COMMANDS: tuple[click.Command, ...] = (standby, failover, migrate)


def _act(service: Service, options: dict[str, Any], act: Callable[[Actor], Proposal]) -> None:
    actor = acting(options)
    report(act(actor), actor.dry_run)
    if not actor.dry_run:
        tick(service)


def _shown(name: str, progress: Progress) -> dict[str, Any]:
    return {
        "name": name,
        "stage": progress.stage,
        "meaning": _STAGES[progress.stage],
        "backend": progress.backend,
        "signs_in": progress.signs_in,
        "next_kid": progress.spare,
        "takes_over_at": shown_time(progress.takes_over_at),
        "left_behind": [
            {
                "kid": key.kid,
                "backend": key.backend,
                "state": key.state.value,
                "published": key.published,
                "withdraw_at": shown_time(key.withdraw_at),
                "irreversible_at": shown_time(key.irreversible_at),
            }
            for key in progress.left
        ],
    }
