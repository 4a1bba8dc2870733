"""The settings as the rest of the program sees them: plain, typed, immutable.

What may hold a secret is left out of ``repr``, so that a log line or a traceback cannot show it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kmsjwks.domain.access import Grant
from kmsjwks.domain.approvals import ApprovalPolicy
from kmsjwks.domain.principals import CertificateIdentity, TokenIdentity
from kmsjwks.domain.quotas import QuotaPlan

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["json", "text"]
Durability = Literal["os", "disk"]
Verification = Literal["always", "sampled", "off"]
WorkerCpuAffinity = Literal["auto", "off"]
JwksAccess = Literal["public", "authenticated"]
CertificateSource = Literal["rfc9440", "nginx", "envoy"]


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The HTTP listener.

    ``workers`` is 0 for one a CPU; ``worker_cpu_affinity`` is ``auto`` where each keeps to its own
    when there are as many as CPUs; ``max_concurrency`` counts signing requests of one worker,
    waiting or running; ``max_body_bytes`` and ``max_batch_bytes`` (the body of a batch) are in
    bytes, ``shutdown_timeout`` in seconds.
    ``base_url`` has no trailing slash. ``unix_socket`` (absolute) is listened on instead of host
    and port.
    """

    host: str
    port: int
    unix_socket: Path | None
    workers: int
    worker_cpu_affinity: WorkerCpuAffinity
    max_concurrency: int
    base_url: str
    max_body_bytes: int
    max_batch_bytes: int
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
    """``directory`` (absolute) keeps the audit trail. A record is durable when the operating
    system (``os``) or the disk (``disk``) has it. Sizes in bytes, ages and times in seconds.

    ``checkpoint_keyset`` signs checkpoints every ``checkpoint_interval``; None for no checkpoints.
    ``checkpoint_targets``: directories, ``s3://`` URIs, URLs to POST to."""

    directory: Path
    durability: Durability
    max_file_bytes: int
    max_file_age: float
    write_timeout: float
    checkpoint_keyset: str | None = None
    checkpoint_interval: float = 60.0
    checkpoint_targets: tuple[str, ...] = ()

    @property
    def checkpoint_advice(self) -> str:
        """What an operator should know about checkpoints as they are set; empty for nothing."""
        if self.checkpoint_keyset is None:
            return (
                "audit.checkpoint_keyset is not set, so no checkpoints are signed: the last "
                "records of a chain, or whole chains, could be removed unseen. See docs/audit.md."
            )
        if not self.checkpoint_targets:
            return (
                "audit.checkpoint_targets is empty, so checkpoints stay in the audit directory: "
                "whoever can remove records there can remove the checkpoints that show it."
            )
        return ""


@dataclass(frozen=True, slots=True)
class SigningSettings:
    """``verification``: which signatures are verified with the public key before release."""

    verification: Verification = "always"

    @property
    def advice(self) -> str:
        """What an operator should know about it as it is set; empty for nothing."""
        if self.verification == "always":
            return ""
        unverified = "most" if self.verification == "sampled" else "all"
        return (
            f'signing.verification is "{self.verification}": {unverified} signatures are released '
            "unverified, so a faulty device could give bad tokens, or its RSA key away. See "
            "docs/configuration.md."
        )


@dataclass(frozen=True, slots=True)
class JwksSettings:
    """``max_age`` is in seconds, as in ``Cache-Control``. ``access`` says who gets the JWKS and
    metadata of the issuers that ``issuers`` does not name."""

    max_age: int
    access: JwksAccess = "public"
    issuers: Mapping[str, JwksAccess] = field(default_factory=dict)

    def is_public(self, issuer: str) -> bool:
        """``issuer`` empty: one that is not known, so public only where all are."""
        if not issuer:
            return self.all_public
        return self.issuers.get(issuer, self.access) == "public"

    @property
    def all_public(self) -> bool:
        return {self.access, *self.issuers.values()} == {"public"}


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
class BearerToken:
    """``sha256`` is the lower-case hexadecimal SHA-256 of the token; ``expires`` is in seconds
    since the epoch, None for never."""

    sha256: str = field(repr=False)
    expires: float | None = None


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """A principal: how it authenticates, each way being enough, and what it may do."""

    name: str
    tokens: tuple[BearerToken, ...]
    oidc: tuple[TokenIdentity, ...]
    certificates: tuple[CertificateIdentity, ...]
    grants: tuple[Grant, ...]

    @property
    def token_sha256(self) -> tuple[str, ...]:
        return tuple(token.sha256 for token in self.tokens)


@dataclass(frozen=True, slots=True)
class BearerSettings:
    enabled: bool


@dataclass(frozen=True, slots=True)
class OidcSettings:
    """A trusted issuer of JWTs; ``jwks_uri`` is None where OpenID Connect Discovery gives it.

    ``leeway`` is in seconds. ``ca_file`` (PEM) replaces the system's authorities for fetching
    keys; ``token_file`` holds a bearer token that is sent then. Both are absolute.
    """

    issuer: str
    enabled: bool
    audiences: tuple[str, ...]
    jwks_uri: str | None
    algorithms: tuple[str, ...]
    leeway: int
    ca_file: Path | None
    token_file: Path | None
    allow_loopback_http: bool


@dataclass(frozen=True, slots=True)
class MtlsSettings:
    """Client certificates as a proxy passes them on; None where no proxy is trusted.

    ``trusted_proxies`` are networks, or ``unix`` for whoever connects to the unix socket.
    ``client_ca`` (absolute, PEM) are authorities that certificates are verified against again.
    """

    source: CertificateSource
    header: str
    trusted_proxies: tuple[str, ...]
    client_ca: Path | None


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
    signing: SigningSettings
    jwks: JwksSettings
    quotas: QuotaPlan
    snapshot: SnapshotSettings
    rotation: RotationSettings
    approvals: ApprovalPolicy
    backend_watch: BackendWatchSettings
    publication: PublicationSettings
    metrics: MetricsSettings
    logging: LoggingSettings
    bearer: BearerSettings
    mtls: MtlsSettings | None
    oidc: tuple[OidcSettings, ...]
    backends: Mapping[str, BackendSettings]
    clients: tuple[ClientSettings, ...]
    config_path: Path
    base_directory: Path
    warnings: tuple[str, ...] = ()

    @property
    def advice(self) -> tuple[str, ...]:
        """What to know of the settings, without being warned with every command."""
        return tuple(filter(None, (self.audit.checkpoint_advice, self.signing.advice)))
