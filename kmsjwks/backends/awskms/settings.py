"""The options of an AWS KMS backend, validated."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kmsjwks.backends.awskms.uri import UriError, parse_uri
from kmsjwks.domain.errors import ConfigurationError
from kmsjwks.domain.ports import BackendContext

# Signatures share a quota per account, Region and key family: 1,000 a second for RSA, for ECC and
# for ML-DSA each (AWS KMS Developer Guide, "Request quotas"), unless AWS raised it. A tenth is
# left to whoever else signs in the account.
_REQUESTS_PER_SECOND = 900.0
_REGION = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"  # botocore takes any host label
_PLACEHOLDER = "{region}"

# Lax where the environment, which only knows text, may set a number.
Seconds = Annotated[float, Field(gt=0, le=60, strict=False)]
Region = Annotated[str, Field(pattern=f"^{_REGION}$")]


@dataclass(frozen=True, slots=True)
class StaticCredentials:
    """An access key that was in the environment when the process started."""

    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class KmsSettings:
    """``regions`` in order of preference, the first is home: keys are created there.

    ``endpoint`` and ``sts_endpoint`` are URLs that may hold ``{region}``; None leaves them to
    boto3. ``account`` is the expected 12-digit account. ``requests_per_second`` limits Sign of
    one machine in one Region. ``connect_timeout``, ``read_timeout``, ``open_seconds`` in seconds.
    """

    name: str
    regions: tuple[str, ...]
    endpoint: str | None = None
    sts_endpoint: str | None = None
    profile: str | None = None
    account: str | None = None
    installation: str = "default"
    multi_region: bool = False
    deletion_window_days: int = 30
    requests_per_second: float = _REQUESTS_PER_SECOND
    connect_timeout: float = 1.0
    read_timeout: float = 2.0
    max_connections: int = 132
    failure_threshold: int = 3
    open_seconds: float = 5.0
    credentials: StaticCredentials | None = field(default=None, repr=False)


class _Options(BaseModel):
    """The table [backends.NAME] of the configuration file, without ``type``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    uri: str | None = None
    region: Region | None = None
    replica_regions: list[Region] = []
    endpoint: str | None = None
    sts_endpoint: str | None = None
    profile: str | None = Field(default=None, min_length=1)
    account: str | None = Field(default=None, pattern="^[0-9]{12}$")
    # Part of an alias and the value of a tag.
    installation: str = Field(default="default", pattern="^[A-Za-z0-9_-]{1,64}$")
    multi_region: bool = Field(default=False, strict=False)
    # ScheduleKeyDeletion, PendingWindowInDays.
    deletion_window_days: int = Field(default=30, ge=7, le=30, strict=False)
    requests_per_second: float = Field(
        default=_REQUESTS_PER_SECOND, ge=1, le=1_000_000, strict=False
    )
    connect_timeout: Seconds = 1.0
    read_timeout: Seconds = 2.0
    max_connections: int = Field(default=132, ge=1, le=1024, strict=False)  # max_concurrency + 4
    failure_threshold: int = Field(default=3, ge=1, le=100, strict=False)
    open_seconds: Seconds = 5.0

    @classmethod
    def lenient(cls, options: Mapping[str, object]) -> tuple[Self, list[str]]:
        """The options, without those that are wrong by themselves, and what is wrong with these."""
        try:
            return cls.model_validate(options), []
        except ValidationError as error:
            wrong = error.errors(include_input=False, include_url=False)
        names = {one["loc"][0] for one in wrong}
        rest = {name: value for name, value in options.items() if name not in names}
        return cls.model_validate(rest), [
            f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in wrong
        ]


def parse_settings(
    name: str, options: Mapping[str, object], context: BackendContext
) -> KmsSettings:
    """
    Raises:
        ConfigurationError: every mistake at once.
    """
    merged, problems = _merge_uri(options)
    model, more = _Options.lenient(merged)
    problems += more
    wrong = {re.split(r"[:.]", problem, maxsplit=1)[0] for problem in problems}
    if "uri" in wrong:  # what it should have said is not missing
        wrong |= {"region"}
    problems += [one for one in _cross_checks(model) if one.split(":")[0] not in wrong]
    if problems:
        raise ConfigurationError([f"backends.{name}.{problem}" for problem in problems])
    return _settings(name, model, context)


def _settings(name: str, model: _Options, context: BackendContext) -> KmsSettings:
    credentials = None if model.profile else _static_credentials(context.environ)
    return KmsSettings(
        name=name,
        regions=(model.region or "", *model.replica_regions),
        endpoint=model.endpoint,
        # One address answers for all services wherever it is not AWS's own.
        sts_endpoint=model.sts_endpoint or model.endpoint,
        profile=model.profile,
        account=model.account,
        installation=model.installation,
        multi_region=model.multi_region,
        deletion_window_days=model.deletion_window_days,
        requests_per_second=model.requests_per_second,
        connect_timeout=model.connect_timeout,
        read_timeout=model.read_timeout,
        max_connections=model.max_connections,
        failure_threshold=model.failure_threshold,
        open_seconds=model.open_seconds,
        credentials=credentials,
    )


def _merge_uri(options: Mapping[str, object]) -> tuple[dict[str, object], list[str]]:
    merged, uri = dict(options), options.get("uri")
    if not isinstance(uri, str):
        return merged, []
    try:
        parsed = parse_uri(uri)
    except UriError as error:
        return merged, [f"uri: {error}"]
    twice = [option for option in parsed if option in options]
    merged.update(parsed)
    return merged, [f"{option}: set both in the uri and by itself; keep one" for option in twice]


def _cross_checks(model: _Options) -> list[str]:
    problems = []
    if not model.region:
        problems.append("region: missing; name the Region that the keys are created in")
    if model.replica_regions and not model.multi_region:
        problems.append(
            "replica_regions: only multi-Region keys have replicas; set multi_region = true "
            "(it applies to keys created from then on)"
        )
    regions = [model.region, *model.replica_regions]
    if len(set(regions)) < len(regions):
        problems.append("replica_regions: a Region appears twice; name each once, home not at all")
    for option in ("endpoint", "sts_endpoint"):
        value = getattr(model, option)
        if value is not None and not _is_endpoint(value):
            problems.append(
                f"{option}: must be an http or https URL of host and port, which may hold "
                f"{_PLACEHOLDER}, and no user name, query or fragment"
            )
    return problems


def _is_endpoint(value: str) -> bool:
    try:
        parts = urlsplit(value.replace(_PLACEHOLDER, "region"))
        _ = parts.port  # raises where it is no number
    except ValueError:
        return False
    held = value.replace(_PLACEHOLDER, "")
    plain = not (parts.query or parts.fragment or "@" in parts.netloc or set("{} ") & set(held))
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and plain


def _static_credentials(environ: Mapping[str, str]) -> StaticCredentials | None:
    """An access key of the environment. Kept, because a serving process may drop its secrets from
    the environment before the first call; anything else is left to boto3's own chain."""
    access_key, secret_key = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    if not access_key or not secret_key:
        return None
    return StaticCredentials(access_key, secret_key, environ.get("AWS_SESSION_TOKEN") or None)
