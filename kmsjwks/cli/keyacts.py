"""`kmsjwks keys deactivate|compromise|hold|release|destroy|cancel-destroy` and `kmsjwks rotate`."""

from __future__ import annotations

from collections.abc import Callable

import click

from kmsjwks.cli.acts import acting, confirm, report
from kmsjwks.cli.session import Exit, Session, exits
from kmsjwks.services.acting import Actor, Proposal
from kmsjwks.services.lifecycle import KeyService

_Act = Callable[[KeyService, str, Actor], Proposal]


def _command(name: str, act: _Act, text: str, *, destructive: bool) -> click.Command:
    @click.argument("kid")
    @click.option("--dry-run", is_flag=True, help="Say what would happen; change nothing.")
    @click.option("--yes", is_flag=True, help="Do not ask.", hidden=not destructive)
    @click.pass_obj
    @exits
    def run(session: Session, kid: str, dry_run: bool, yes: bool) -> None:
        with session.service() as service:
            if destructive and not dry_run:
                confirm(act(service.keys, kid, acting({"dry_run": True})), yes)
            report(act(service.keys, kid, acting({"dry_run": dry_run})), dry_run)
            if not dry_run:
                for line in service.planner.tick().done:
                    click.echo(line, err=True)

    return click.command(name, help=text)(run)


COMMANDS: tuple[click.Command, ...] = (
    _command(
        "deactivate",
        KeyService.deactivate,
        "Stop signing with the active key; its spare takes over as in a rotation.",
        destructive=False,
    ),
    _command(
        "compromise",
        KeyService.compromise,
        "The key leaves the JWKS at once, its spare takes over at once, its private half is "
        "destroyed. Tokens that it signed stop verifying as clients refresh.",
        destructive=True,
    ),
    _command(
        "hold",
        KeyService.hold,
        "Stop every transition of the key but to compromised.",
        destructive=False,
    ),
    _command("release", KeyService.release, "End a hold.", destructive=False),
    _command(
        "destroy",
        KeyService.destroy,
        "Destroy the private half at the end of the keyset's waiting window.",
        destructive=True,
    ),
    _command(
        "cancel-destroy",
        KeyService.cancel_destroy,
        "Keep a key whose waiting window has not ended.",
        destructive=False,
    ),
)


@click.command()
@click.option("--due", is_flag=True, required=True, help="Do whatever is due in any keyset.")
@click.option("--dry-run", is_flag=True, help="Print what is due; do nothing.")
@click.pass_context
@exits
def rotate(context: click.Context, due: bool, dry_run: bool) -> None:
    """Look after every keyset once, as the scheduler of a serving process does; for cron."""
    del due
    session: Session = context.obj
    with session.service() as service:
        if dry_run:
            for keyset in service.store.keysets():
                for step in service.planner.due(keyset, service.store.keys(keyset.name)):
                    click.echo(f"{keyset.name}: {step}")
            return
        outcome = service.planner.tick()
    if outcome.elsewhere:
        click.echo("Another process is at it.", err=True)
    for line in outcome.done:
        click.echo(line)
    for name, why in outcome.failed.items():
        click.echo(f"error: {name}: {why}", err=True)
    if outcome.failed:
        context.exit(Exit.FAILED)
