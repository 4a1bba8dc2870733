"""Acts on keys from the command line: who acts, what is asked before, what is said after."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import click

from kmsjwks.bootstrap import Service
from kmsjwks.cli.session import operator
from kmsjwks.services.acting import Actor, Proposal


def acting(options: Mapping[str, Any]) -> Actor:
    return Actor(operator().name, dry_run=bool(options.get("dry_run")))


def report(proposal: Proposal, dry_run: bool) -> None:
    """What happened, or would have, on stderr: it is not data."""
    prefix = "would: " if dry_run else ""
    for line in proposal.says:
        click.echo(f"{prefix}{line}", err=True)


def confirm(proposal: Proposal, yes: bool) -> None:
    """Say what a destructive act would do, and ask. Without a terminal only ``--yes`` will do.

    Raises:
        click.Abort: no.
    """
    report(proposal, dry_run=True)
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("This cannot be undone; say --yes when there is no terminal.")
    click.confirm("Go on?", abort=True, err=True)


def tick(service: Service) -> None:
    """Do at once what an act made due, and say on stderr what was done and what could not be."""
    outcome = service.planner.tick()
    for line in outcome.done:
        click.echo(line, err=True)
    for name, why in outcome.failed.items():
        click.echo(f"warning: {name}: {why}", err=True)
    if outcome.elsewhere:
        click.echo("Another process looks after what is due.", err=True)
