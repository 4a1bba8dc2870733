"""Reads the configuration: flags over environment over file over defaults."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from types import MappingProxyType
from urllib.parse import urlsplit

from kmsjwks.config import callers, limits, schema, values
from kmsjwks.config.environment import read_environment
from kmsjwks.config.places import Place, Problem
from kmsjwks.config.settings import (
    AuditSettings,
    BackendSettings,
    BackendWatchSettings,
    BearerSettings,
    DatabaseSettings,
    LoggingSettings,
    MetricsSettings,
    PublicationSettings,
    RotationSettings,
    ServerSettings,
    Settings,
    SigningSettings,
    SnapshotSettings,
    StateSettings,
)
from kmsjwks.config.sources import Assignment, overlay, parse_text, split_name
from kmsjwks.config.tomlfile import find_config_file, read_config_file
from kmsjwks.config.validation import Places, validate
from kmsjwks.domain.errors import ConfigurationError

_NO_OVERRIDES: Mapping[str, object] = MappingProxyType({})
_FLAG_PLACE = Place("command line")


def load(
    path: Path | None,
    *,
    environ: Mapping[str, str],
    overrides: Mapping[str, object] = _NO_OVERRIDES,
) -> Settings:
    """Read and check everything that is configured.

    Args:
        path: the configuration file; None looks for it (see ``find_config_file``).
        environ: the process environment.
        overrides: flags of the command line by setting, such as ``{"server.port": 9000}``;
            None as a value is a flag that was not given.

    Raises:
        ConfigurationError: with every mistake there is, each with its place.
    """
    found = find_config_file(path, environ)
    # Not resolve(): a mounted file is often a link into a directory that holds nothing else.
    base_directory = found.absolute().parent
    file = read_config_file(found)
    environment = read_environment(environ, file.data, base_directory)
    flags = list(_flags(overrides))
    problems = [*file.problems, *environment.problems]
    problems += [item for item in flags if isinstance(item, Problem)]
    if file.problems:
        raise _error(problems)
    assignments = (
        *environment.assignments,
        *(item for item in flags if isinstance(item, Assignment)),
    )
    document, wrong = validate(overlay(file.data, assignments), Places(file, assignments))
    if document is None or problems or wrong:
        raise _error([*problems, *wrong])
    return _settings(document, found, base_directory)


def _error(problems: Iterable[Problem]) -> ConfigurationError:
    """Problems of the file first, in the order of its lines."""
    ordered = sorted(problems, key=lambda problem: (problem.place.line == 0, problem.place.line))
    return ConfigurationError([str(problem) for problem in ordered])


def _flags(overrides: Mapping[str, object]) -> Iterator[Assignment | Problem]:
    known = [".".join(setting) for setting in schema.fixed_settings()]
    for name, value in overrides.items():
        if value is None:
            continue
        location = split_name(name)
        if location is None:
            guess = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {guess[0]}?" if guess else ""
            yield Problem(_FLAG_PLACE, f"{name}: unknown setting{hint}")
        else:
            yield Assignment(location, _flag_value(value, location), _FLAG_PLACE)


def _flag_value(value: object, location: tuple[str, ...]) -> object:
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, tuple):
        return list(value)
    return parse_text(value, location, None) if isinstance(value, str) else value


def _settings(document: schema.Document, path: Path, base_directory: Path) -> Settings:
    server = _server(document.server, base_directory)
    clients = tuple(callers.client(name, client) for name, client in document.clients.items())
    return Settings(
        server=server,
        database=DatabaseSettings(
            url=values.resolve_database_url(document.database.url, str(base_directory))
        ),
        state=StateSettings(directory=base_directory / document.state.directory),
        audit=_audit(document.audit, base_directory),
        signing=SigningSettings(document.signing.verification),
        jwks=limits.jwks(document.jwks),
        quotas=limits.quotas(document.quotas),
        snapshot=SnapshotSettings(refresh_interval=document.snapshot.refresh_interval),
        rotation=RotationSettings(**document.rotation.model_dump()),
        approvals=limits.approvals(document.approvals),
        backend_watch=BackendWatchSettings(**document.backend_watch.model_dump()),
        publication=PublicationSettings(
            targets=tuple(document.publication.targets),
            s3_endpoint=document.publication.s3_endpoint or None,
        ),
        metrics=MetricsSettings(document.metrics.host, document.metrics.port or None),
        logging=LoggingSettings(level=document.logging.level, format=document.logging.format),
        bearer=BearerSettings(document.bearer.enabled),
        mtls=callers.mtls(document.mtls, base_directory),
        oidc=tuple(callers.oidc(table, base_directory) for table in document.oidc),
        backends=MappingProxyType(
            {name: _backend(name, backend) for name, backend in document.backends.items()}
        ),
        clients=clients,
        config_path=path,
        base_directory=base_directory,
        warnings=(
            *_development(document.rotation),
            *_warnings(server, document.server.base_url is not None),
            *callers.warnings(document, clients),
            *limits.warnings(document),
        ),
    )


def _server(table: schema.Server, base_directory: Path) -> ServerSettings:
    host = f"[{table.host}]" if ":" in table.host else table.host
    return ServerSettings(
        host=table.host,
        port=table.port,
        unix_socket=base_directory / table.unix_socket if table.unix_socket else None,
        workers=table.workers,
        worker_cpu_affinity=table.worker_cpu_affinity,
        max_concurrency=table.max_concurrency,
        base_url=table.base_url or f"http://{host}:{table.port}",
        max_body_bytes=table.max_body_bytes,
        max_batch_bytes=table.max_batch_bytes,
        shutdown_timeout=float(table.shutdown_timeout),
    )


def _audit(table: schema.Audit, base_directory: Path) -> AuditSettings:
    return AuditSettings(
        directory=base_directory / table.directory,
        durability=table.durability,
        max_file_bytes=table.max_file_bytes,
        max_file_age=float(table.max_file_age),
        write_timeout=float(table.write_timeout),
        checkpoint_keyset=table.checkpoint_keyset or None,
        checkpoint_interval=float(table.checkpoint_interval),
        checkpoint_targets=tuple(table.checkpoint_targets),
    )


def _backend(name: str, table: schema.Backend) -> BackendSettings:
    options = MappingProxyType(copy.deepcopy(table.model_extra or {}))
    return BackendSettings(name=name, type=table.type, options=options)


def _development(rotation: schema.Rotation) -> Iterator[str]:
    if rotation.development:
        yield (
            "rotation.development is set, which is UNSAFE: the times that protect verifiers may "
            "be shortened, so that they lose. Remove it wherever tokens matter."
        )


def _warnings(server: ServerSettings, base_url_is_set: bool) -> Iterator[str]:
    url = urlsplit(server.base_url)
    if url.scheme == "http" and not values.is_loopback(url.hostname or ""):
        if base_url_is_set:
            yield (
                f"server.base_url is {server.base_url}: over plain http anybody on the way can "
                "replace the keys that verifiers fetch. Use https."
            )
        else:
            yield (
                f"server.base_url is not set, so issuers become {server.base_url}, which "
                "verifiers elsewhere cannot use safely. Set it to the public https URL."
            )
