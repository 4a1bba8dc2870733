"""`kmsjwks config check`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import click

from kmsjwks.bootstrap import SystemClock, backend_openers, scheduled_export
from kmsjwks.cli.permissions import check_permissions
from kmsjwks.cli.session import Exit, Session
from kmsjwks.config import Settings, load
from kmsjwks.domain.errors import ConfigurationError
from kmsjwks.http.authentication import build_chain


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
    except ConfigurationError as error:
        problems += error.problems
    else:
        for warning in settings.warnings:
            click.echo(f"warning: {warning}", err=True)
        for advice in settings.advice:
            click.echo(f"note: {advice}", err=True)
        problems += _problems_of_parts(settings)
    for problem in problems:
        click.echo(problem, err=True)
    if problems:
        context.exit(Exit.CHECK_FOUND_SOMETHING)
    click.echo(f"{settings.config_path}: ok", err=True)


def _problems_of_parts(settings: Settings) -> Iterator[str]:
    """What the parts say that check their settings themselves."""
    checks: tuple[Callable[[], object], ...] = (
        lambda: backend_openers(settings, os.environ),
        lambda: scheduled_export(settings, SystemClock()),
        lambda: build_chain(settings, SystemClock()),
        lambda: check_permissions(settings, os.environ),
    )
    for check_part in checks:
        try:
            check_part()
        except ConfigurationError as error:
            yield from error.problems
