"""`kmsjwks serve`."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import click

from kmsjwks.bootstrap import build, prepare_database
from kmsjwks.cli import allocating
from kmsjwks.cli.hardening import harden_process, warn_of_root
from kmsjwks.cli.logs import configure_logging
from kmsjwks.cli.logsafety import log_unhandled
from kmsjwks.cli.permissions import check_permissions
from kmsjwks.cli.scrubbing import scrub_environment, with_password
from kmsjwks.cli.session import Session, exits
from kmsjwks.config import ServerSettings, Settings
from kmsjwks.domain.errors import StoreUnavailable
from kmsjwks.domain.ports import ServerHooks
from kmsjwks.http.app import create_app
from kmsjwks.http.server import serve as serve_http
from kmsjwks.http.server import start_warming
from kmsjwks.services.scheduler import Scheduler

_log = logging.getLogger(__name__)


@click.command()
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=int, help="Port to listen on.")
@click.option("--workers", type=int, help="Worker processes; 0 for one a core.")
@click.pass_obj
@exits
def serve(session: Session, host: str | None, port: int | None, workers: int | None) -> None:
    """Serve HTTP in the foreground until SIGTERM or SIGINT."""
    overrides = {"server.host": host, "server.port": port, "server.workers": workers}
    harden_process()
    settings = session.settings(**overrides)
    _start_logging(settings)
    # In a mapping for those who need it, which no child sees.
    environ = scrub_environment()
    url = with_password(settings.database.url, environ)
    settings = replace(settings, database=replace(settings.database, url=url))
    check_permissions(settings, environ)
    warn_of_root()
    # Every mistake shows now and not in a worker; the database is migrated. No device is opened
    # and no thread started: workers are forked from here.
    create_app(build(settings, environ))
    try:
        prepare_database(settings)
    except StoreUnavailable as error:
        # Verifiers first: the last JWKS is served, and the rest follows when the database is back.
        _log.error("Started without a database: %s", error)
    _log.info(
        "kmsjwks serves %s on %s",
        settings.server.base_url,
        _address(settings.server),
    )
    if settings.rotation.development:
        _log.warning("rotation.development is set: UNSAFE, verifiers may lose.")
    if settings.signing.advice:
        _log.warning(settings.signing.advice)
    allocating.prepare()
    serve_http(settings, partial(_load, settings, environ))
    _log.info("kmsjwks has stopped.")


def _address(server: ServerSettings) -> str:
    if server.unix_socket is not None:
        return f"unix:{server.unix_socket}"
    return f"http://{server.host}:{server.port}"


def _start_logging(settings: Settings) -> None:
    configure_logging(settings.logging, unsafe=settings.rotation.development)
    log_unhandled()


def _load(settings: Settings, environ: dict[str, str], hooks: ServerHooks) -> Any:
    """In a worker process."""
    try:
        return _loaded(settings, environ, hooks)
    except Exception:
        # multiprocessing would print it with its text.
        _log.exception("The worker cannot start.")
        sys.exit(1)


def _loaded(settings: Settings, environ: dict[str, str], hooks: ServerHooks) -> Any:
    service = build(settings, environ, hooks)
    scheduler = Scheduler(
        service.planner, settings.rotation.tick_interval, service.snapshots.refresh
    )
    start_warming(service)
    allocating.trim_when_settled()
    if settings.rotation.scheduler:
        scheduler.start()
    service.failover_keeper().start()
    if settings.metrics.port is None:
        return create_app(service).wsgi_app
    # prometheus-client decides at import where values are kept; only now that is known.
    from kmsjwks.http.meters import metered_app  # noqa: PLC0415

    return metered_app(service, scheduler).wsgi_app
