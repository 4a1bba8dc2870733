"""`kmsjwks config check`."""

from __future__ import annotations

import os

import click

from kmsjwks.bootstrap import SystemClock, backend_openers, scheduled_export
from kmsjwks.cli.session import Exit, Session
from kmsjwks.config import load
from kmsjwks.domain.errors import ConfigurationError


@click.group()
def config() -> None:
    """The configuration file and the environment."""


@config.command()
@click.pass_context
def check(context: click.Context) -> None:
    """Report every mistake at once, with its place and the remedy. Opens no backend."""
    session: Session = context.obj
    problems: list[str] = []
    try:
        settings = load(session.config, environ=os.environ)
        for warning in settings.warnings:
            click.echo(f"warning: {warning}", err=True)
        backend_openers(settings, os.environ)
        scheduled_export(settings, SystemClock())
    except ConfigurationError as error:
        problems += error.problems
    for problem in problems:
        click.echo(problem, err=True)
    if problems:
        context.exit(Exit.CHECK_FOUND_SOMETHING)
    click.echo(f"{settings.config_path}: ok", err=True)
