"""The settings as the rest of the program sees them: plain, typed, immutable.

What may hold a secret is left out of ``repr``, so that a log line or a traceback cannot show it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kmsjwks.domain.access import Grant

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["json", "text"]


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The HTTP listener.

    ``workers`` is 0 for one a core; ``max_concurrency`` counts signing requests of one worker,
    waiting or running; ``max_body_bytes`` is in bytes, ``shutdown_timeout`` in seconds.
    ``base_url`` has no trailing slash.
    """

    host: str
    port: int
    workers: int
    max_concurrency: int
    base_url: str
    max_body_bytes: int
    shutdown_timeout: float


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """``url`` is an SQLAlchemy URL; the path of an SQLite file in it is absolute."""

    url: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class StateSettings:
    """``directory`` (absolute) keeps lock files and the like."""

    directory: Path


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """``directory`` (absolute) keeps the audit trail."""

    directory: Path


@dataclass(frozen=True, slots=True)
class JwksSettings:
    """``max_age`` is in seconds, as in ``Cache-Control``."""

    max_age: int


@dataclass(frozen=True, slots=True)
class SnapshotSettings:
    """``refresh_interval`` is in seconds."""

    refresh_interval: float


@dataclass(frozen=True, slots=True)
class RotationSettings:
    """In seconds: how often rotation is looked after; how long a process signs without the
    database; how far the clocks of replicas may differ.

    ``scheduler``: workers do what is due; else somebody runs ``kmsjwks rotate --due``.
    ``check_public_jwks``: a key is activated only after it was seen in the JWKS through the
    issuer's URL. ``development``: the floors that protect verifiers do not hold.
    """

    scheduler: bool
    tick_interval: float
    grace: int
    skew: int
    check_public_jwks: bool
    development: bool


@dataclass(frozen=True, slots=True)
class BackendWatchSettings:
    """In seconds: ``interval``, how often each backend is asked whether it can serve, and
    ``patience``, how long an answer may take."""

    interval: float
    patience: float = 8.0


@dataclass(frozen=True, slots=True)
class PublicationSettings:
    """Where documents are published beside the endpoint: files, directories, ``s3://`` URIs.

    ``s3_endpoint`` is the URL of another S3 than AWS's, None for AWS.
    """

    targets: tuple[str, ...]
    s3_endpoint: str | None


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """The listener of the metrics; ``port`` is None where there is none."""

    host: str
    port: int | None


@dataclass(frozen=True, slots=True)
class LoggingSettings:
    level: LogLevel
    format: LogFormat


@dataclass(frozen=True, slots=True)
class BackendSettings:
    """One backend. ``options`` are its own: it validates them.

    An option that only the environment sets arrives as text (a number too), or as a list or
    mapping if it is JSON, because only the backend knows its type.
    """

    name: str
    type: str
    options: Mapping[str, object] = field(repr=False)


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """A principal that authenticates with a bearer token.

    ``token_sha256`` are lower-case hexadecimal SHA-256 hashes of the tokens it may present.
    """

    name: str
    token_sha256: tuple[str, ...] = field(repr=False)
    grants: tuple[Grant, ...]


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that is configured.

    ``config_path`` is the file as it was found, ``base_directory`` (absolute) where relative
    paths start. ``warnings`` are sentences for the operator about what is allowed but doubtful.
    """

    server: ServerSettings
    database: DatabaseSettings
    state: StateSettings
    audit: AuditSettings
    jwks: JwksSettings
    snapshot: SnapshotSettings
    rotation: RotationSettings
    backend_watch: BackendWatchSettings
    publication: PublicationSettings
    metrics: MetricsSettings
    logging: LoggingSettings
    backends: Mapping[str, BackendSettings]
    clients: tuple[ClientSettings, ...]
    config_path: Path
    base_directory: Path
    warnings: tuple[str, ...] = ()
