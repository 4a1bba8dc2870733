"""The shape of the configuration: tables, types, defaults and limits, in pydantic models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_origin

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from kmsjwks.config import identities, values
from kmsjwks.config.caller_tables import (
    Bearer,
    Client,
    ClientCertificate,
    ClientGrant,
    ClientOidc,
    ClientToken,
    KeysetPattern,
    Mtls,
    Oidc,
)
from kmsjwks.config.settings import Durability, JwksAccess, LogFormat, LogLevel, Verification
from kmsjwks.config.table import Table

Name = Annotated[str, AfterValidator(values.name)]
ClientName = Annotated[str, AfterValidator(values.client_name)]
Directory = Annotated[str, AfterValidator(values.directory)]
SocketPath = Annotated[str, AfterValidator(identities.socket_path)]
Port = Annotated[int, AfterValidator(values.between(1, 65535))]
Workers = Annotated[int, AfterValidator(values.between(0, 1024))]
Concurrency = Annotated[int, AfterValidator(values.between(1, 65536))]
BodyBytes = Annotated[int, AfterValidator(values.between(1024, 16 * 1024 * 1024))]
ShutdownSeconds = Annotated[float, AfterValidator(values.between(0, 3600))]
MaxAgeSeconds = Annotated[int, AfterValidator(values.between(1, 86400))]
RefreshSeconds = Annotated[float, AfterValidator(values.between(0.1, 3600))]
WatchSeconds = Annotated[float, AfterValidator(values.between(0.2, 300))]
GraceSeconds = Annotated[int, AfterValidator(values.between(1, 86400))]
SkewSeconds = Annotated[int, AfterValidator(values.between(0, 3600))]
AuditFileBytes = Annotated[int, AfterValidator(values.between(4096, 2**40))]
AuditFileSeconds = Annotated[float, AfterValidator(values.between(1, 31536000))]
AuditWriteSeconds = Annotated[float, AfterValidator(values.between(0.1, 60))]
CheckpointKeyset = Annotated[str, AfterValidator(values.keyset_or_none)]
CheckpointSeconds = Annotated[float, AfterValidator(values.between(1, 86400))]
CheckpointTarget = Annotated[str, AfterValidator(values.checkpoint_target)]
MetricsPort = Annotated[int, AfterValidator(values.between(0, 65535))]
Target = Annotated[str, AfterValidator(values.publication_target)]
S3Endpoint = Annotated[str, AfterValidator(values.s3_endpoint)]
ApprovalSeconds = Annotated[int, AfterValidator(values.between(60, 2592000))]
PersonName = Annotated[str, AfterValidator(values.principal_name)]
BaseUrl = Annotated[str, AfterValidator(values.base_url)]
DatabaseUrl = Annotated[str, AfterValidator(values.database_url)]
BackendType = Annotated[str, AfterValidator(values.backend_type)]
QuotaText = Annotated[str, AfterValidator(values.quota)]
WorkerCpuAffinity = Literal["auto", "off"]
Burst = Annotated[int, AfterValidator(values.between(1, 10**9))]


class Server(Table):
    host: Annotated[str, AfterValidator(values.host)] = "127.0.0.1"
    port: Port = 8080
    unix_socket: SocketPath = ""
    workers: Workers = 0
    worker_cpu_affinity: WorkerCpuAffinity = "auto"
    max_concurrency: Concurrency = 128
    base_url: BaseUrl | None = None
    max_body_bytes: BodyBytes = 65536
    max_batch_bytes: BodyBytes = 1048576
    shutdown_timeout: ShutdownSeconds = 10.0


class Database(Table):
    url: DatabaseUrl = "sqlite:///var/kmsjwks.db"


class State(Table):
    directory: Directory = "var/state"


class Audit(Table):
    directory: Directory = "var/audit"
    durability: Durability = "os"
    max_file_bytes: AuditFileBytes = 256 * 1024 * 1024
    max_file_age: AuditFileSeconds = 86400.0
    write_timeout: AuditWriteSeconds = 2.0
    checkpoint_keyset: CheckpointKeyset = ""
    checkpoint_interval: CheckpointSeconds = 60.0
    checkpoint_targets: list[CheckpointTarget] = Field(default_factory=list)


class Signing(Table):
    verification: Verification = "always"


class JwksIssuer(Table):
    issuer: BaseUrl
    access: JwksAccess


class Jwks(Table):
    max_age: MaxAgeSeconds = 300
    access: JwksAccess = "public"
    issuers: list[JwksIssuer] = Field(default_factory=list)

    @model_validator(mode="after")
    def _names_each_once(self) -> Self:
        names = [one.issuer for one in self.issuers]
        if len(set(names)) != len(names):
            raise ValueError("two jwks.issuers tables have the same issuer")
        return self


class QuotasRule(Table):
    clients: Annotated[list[KeysetPattern], Field(min_length=1)] = Field(
        default_factory=lambda: ["*"]
    )
    keysets: Annotated[list[KeysetPattern], Field(min_length=1)] = Field(
        default_factory=lambda: ["*"]
    )
    limit: QuotaText
    burst: Burst | None = None


class Quotas(Table):
    default: QuotaText = "unlimited"
    management: QuotaText = "unlimited"
    rules: list[QuotasRule] = Field(default_factory=list)


class Snapshot(Table):
    refresh_interval: RefreshSeconds = 2.0


class Rotation(Table):
    scheduler: bool = True
    tick_interval: RefreshSeconds = 10.0
    grace: GraceSeconds = 900
    skew: SkewSeconds = 300
    check_public_jwks: bool = False
    development: bool = False


class Approvals(Table):
    required_for: list[Literal["destroy", "undo-compromise"]] = Field(default_factory=list)
    window: ApprovalSeconds = 86400
    same_person: list[Annotated[list[PersonName], Field(min_length=2)]] = Field(
        default_factory=list
    )


class BackendWatch(Table):
    interval: WatchSeconds = 5.0
    patience: WatchSeconds = 8.0


class Publication(Table):
    targets: list[Target] = Field(default_factory=list)
    s3_endpoint: S3Endpoint = ""


class Metrics(Table):
    host: Annotated[str, AfterValidator(values.host)] = "127.0.0.1"
    port: MetricsPort = 0


class Logging(Table):
    level: LogLevel = "info"
    format: LogFormat = "json"


class Backend(Table):
    """``model_extra`` holds the backend's own options."""

    model_config = ConfigDict(extra="allow")

    type: BackendType


def _some_backend(backends: dict[str, Backend]) -> dict[str, Backend]:
    if not backends:
        raise ValueError(
            "at least one backend is required; add a table such as [backends.softhsm] "
            'with type = "pkcs11"'
        )
    return backends


class Document(Table):
    server: Server = Server()
    database: Database = Database()
    state: State = State()
    audit: Audit = Audit()
    signing: Signing = Signing()
    jwks: Jwks = Jwks()
    quotas: Quotas = Quotas()
    snapshot: Snapshot = Snapshot()
    rotation: Rotation = Rotation()
    approvals: Approvals = Approvals()
    backend_watch: BackendWatch = BackendWatch()
    publication: Publication = Publication()
    metrics: Metrics = Metrics()
    logging: Logging = Logging()
    bearer: Bearer = Bearer()
    mtls: Mtls = Mtls()
    oidc: list[Oidc] = Field(default_factory=list)
    backends: Annotated[dict[Name, Backend], AfterValidator(_some_backend)] = Field(
        default_factory=dict, validate_default=True
    )
    clients: dict[ClientName, Client] = Field(default_factory=dict)


TABLES: Mapping[str, type[Table]] = {
    name: field.annotation
    for name, field in Document.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Table)
}
"""The tables of fixed name; ``backends`` and ``clients`` are tables of tables."""

_LISTS: Mapping[tuple[str, ...], type[Table]] = {
    ("oidc",): Oidc,
    ("jwks", "issuers"): JwksIssuer,
    ("quotas", "rules"): QuotasRule,
}
_CLIENT_LISTS: Mapping[str, type[Table]] = {
    "grants": ClientGrant,
    "tokens": ClientToken,
    "oidc": ClientOidc,
    "certificates": ClientCertificate,
}


def setting_kind(location: tuple[str, ...]) -> type | None:
    """The type of a setting: bool, int, float, str or list; ``object`` for a backend's option.

    None when there is no such setting.
    """
    match location:
        case ("backends", _, "type"):
            return str
        case ("backends", _, _, *_) if all(location):
            return object
        case ("clients", _, field) if field in Client.model_fields:
            return _kind(Client.model_fields[field].annotation)
        case (table, field) if table in TABLES and field in TABLES[table].model_fields:
            return _kind(TABLES[table].model_fields[field].annotation)
    return None


def _kind(annotation: Any) -> type:
    if get_origin(annotation) is list:
        return list
    return annotation if annotation in (bool, int, float) else str


def members(location: tuple[str, ...]) -> tuple[str, ...]:
    """The names that may stand in the table at ``location``; none where names are free."""
    match location:
        case ():
            return tuple(Document.model_fields)
        case (table,) if table in TABLES:
            return tuple(TABLES[table].model_fields)
        case ("clients", _):
            return tuple(Client.model_fields)
        case ("clients", _, list_) if list_ in _CLIENT_LISTS:
            return tuple(_CLIENT_LISTS[list_].model_fields)
        case list_ if list_ in _LISTS:
            return tuple(_LISTS[list_].model_fields)
    return ()


def fixed_settings() -> tuple[tuple[str, str], ...]:
    """Every setting in a table of fixed name, as (table, name)."""
    return tuple((table, field) for table, model in TABLES.items() for field in model.model_fields)
