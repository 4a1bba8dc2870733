"""`kmsjwks keys` acts: deactivate, compromise, hold, destroy and the like; `kmsjwks rotate`."""

from __future__ import annotations

from collections.abc import Callable

import click

from kmsjwks.cli.acts import acting, confirm, report
from kmsjwks.cli.output import emit, shown_time
from kmsjwks.cli.session import Exit, Session, exits
from kmsjwks.services.acting import Actor, Proposal
from kmsjwks.services.lifecycle import KeyService

_Act = Callable[[KeyService, str, Actor], Proposal]


def _command(
    name: str, act: _Act, text: str, *, destructive: bool, argument: str = "kid"
) -> click.Command:
    @click.argument("named", metavar=argument.upper())
    @click.option("--dry-run", is_flag=True, help="Say what would happen; change nothing.")
    @click.option("--yes", is_flag=True, help="Do not ask.", hidden=not destructive)
    @click.pass_obj
    @exits
    def run(session: Session, named: str, dry_run: bool, yes: bool) -> None:
        with session.service() as service:
            if destructive and not dry_run:
                confirm(act(service.keys, named, acting({"dry_run": True})), yes)
            report(act(service.keys, named, acting({"dry_run": dry_run})), dry_run)
            if not dry_run:
                for line in service.planner.tick().done:
                    click.echo(line, err=True)

    return click.command(name, help=text)(run)


@click.command()
@click.option("--keyset", help="Only those of this keyset.")
@click.option("--all", "everything", is_flag=True, help="Those that have ended, too.")
@click.pass_context
@exits
def proposals(context: click.Context, keyset: str | None, everything: bool) -> None:
    """Acts that wait for a second person."""
    session: Session = context.obj
    with session.service() as service:
        found = service.store.approvals(keyset) if everything else service.keys.desk.open(keyset)
        now = int(service.clock.now())
        emit(
            context,
            [
                {
                    "id": one.id,
                    "act": one.act.value,
                    "keyset": one.keyset,
                    "kid": one.kid,
                    "state": one.state_at(now).value,
                    "proposed_by": one.proposed_by,
                    "proposed_at": shown_time(one.proposed_at),
                    "expires_at": shown_time(one.expires_at),
                    "approved_by": one.approved_by,
                }
                for one in found
            ],
        )


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
        "Destroy the private half at the end of the keyset's waiting window. May take a second "
        "person, see approve.",
        destructive=True,
    ),
    _command(
        "cancel-destroy",
        KeyService.cancel_destroy,
        "Keep a key whose waiting window has not ended, or withdraw the proposal to destroy it.",
        destructive=False,
    ),
    _command(
        "undo-compromise",
        KeyService.undo_compromise,
        "Take back that the key is compromised, before its private half is destroyed: it is in "
        "the JWKS again for its tokens, and never signs again. May take a second person.",
        destructive=True,
    ),
    _command(
        "approve",
        KeyService.approve,
        "Carry out what somebody else proposed.",
        destructive=True,
        argument="proposal",
    ),
    proposals,
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
