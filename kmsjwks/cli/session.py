"""What every command needs: settings, the wired service, errors turned into exit codes."""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

import click

from kmsjwks.bootstrap import Service, build, prepare_database
from kmsjwks.config import Settings, load
from kmsjwks.domain import errors
from kmsjwks.domain.access import Action, Grant, Principal


class Exit(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    BACKEND_UNREACHABLE = 3
    DENIED = 4
    CHECK_FOUND_SOMETHING = 5


_CODES: tuple[tuple[type[errors.KmsJwksError], Exit], ...] = (
    (errors.BackendDenied, Exit.DENIED),
    (errors.Forbidden, Exit.DENIED),
    (errors.BackendUnavailable, Exit.BACKEND_UNREACHABLE),
    (errors.InvalidRequest, Exit.USAGE),
    (errors.UnsupportedAlgorithm, Exit.USAGE),
    (errors.ConfigurationError, Exit.USAGE),
)


@dataclass(frozen=True, slots=True)
class Session:
    """The options that stand before the command."""

    config: Path | None

    def settings(self, **overrides: object) -> Settings:
        """
        Raises:
            ConfigurationError
        """
        given = {name: value for name, value in overrides.items() if value is not None}
        settings = load(self.config, environ=os.environ, overrides=given)
        for warning in settings.warnings:
            click.echo(f"warning: {warning}", err=True)
        return settings

    @contextmanager
    def service(self) -> Iterator[Service]:
        settings = self.settings()
        prepare_database(settings)
        service = build(settings, os.environ)
        try:
            yield service
        finally:
            service.close()


def operator() -> Principal:
    """Who works at the command line: whoever may read the configuration and the PIN may do all.
    Named by the account of the process; the environment could name anybody."""
    uid = os.getuid()
    try:
        account = pwd.getpwuid(uid).pw_name
    except KeyError:  # a container may run as an account without a name
        account = f"uid-{uid}"
    return Principal(f"cli:{account}", (Grant(frozenset(Action), ("*",)),))


def exits(command: Callable[..., Any]) -> Callable[..., Any]:
    """Domain errors end a command with one line on stderr and the exit code of section 12."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except errors.ConfigurationError as error:
            for problem in error.problems:
                click.echo(f"error: {problem}", err=True)
            sys.exit(Exit.USAGE)
        except errors.KmsJwksError as error:
            fail(error)

    return run


def fail(error: errors.KmsJwksError) -> NoReturn:
    click.echo(f"error: {error}", err=True)
    sys.exit(exit_code(error))


def exit_code(error: errors.KmsJwksError) -> Exit:
    return next((code for kind, code in _CODES if isinstance(error, kind)), Exit.FAILED)
