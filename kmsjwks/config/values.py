"""What single values must look like. Each check returns its value or says what it must be.

A check raises ValueError whose text completes the sentence "<setting>: ...". It never repeats
the value, which may be a secret: whoever reports it decides whether the value may be shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from hashlib import sha256
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from kmsjwks.domain.access import SCHEDULER
from kmsjwks.domain.keys import KEYSET_NAME
from kmsjwks.domain.quotas import parse_quota

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_BACKEND_TYPE = re.compile(r"[a-z0-9][a-z0-9_-]*")
_HOST_NAME = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_SHA256_HEX = re.compile(r"[0-9a-f]{64}")
_KEYSET_PATTERN = re.compile(r"[a-z0-9._*?\[\]!-]+")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_VISIBLE_ASCII = re.compile(r"[!-~]+")
_SQLITE_URL = re.compile(
    r"(?P<scheme>sqlite(?:\+pysqlite)?)://(?P<path>[^?]*)(?P<query>\?.*)?", re.S
)
_POSTGRESQL_SCHEMES = ("postgresql", "postgresql+psycopg")
_EMPTY_TOKEN_SHA256 = sha256(b"").hexdigest()


def between(low: float, high: float) -> Callable[[float], float]:
    """A check for numbers from ``low`` to ``high``, both included; NaN is in no range."""

    def check(value: float) -> float:
        if not low <= value <= high:
            raise ValueError(f"must be between {low} and {high}")
        return value

    return check


def name(value: str) -> str:
    """The name of a backend or a client."""
    if not _NAME.fullmatch(value):
        raise ValueError(
            "the name must be lower-case letters, digits, '.', '_' and '-', "
            "and start with a letter or a digit"
        )
    return value


def client_name(value: str) -> str:
    if value == SCHEDULER:
        raise ValueError(
            f"{SCHEDULER} is the service itself in the audit trail; choose another name"
        )
    return name(value)


def principal_name(value: str) -> str:
    """A client, or who works at the command line: ``cli:`` and the name of an account."""
    client, account = value, value.removeprefix("cli:")
    if not _NAME.fullmatch(client) and (account == value or not _VISIBLE_ASCII.fullmatch(account)):
        raise ValueError('must be the name of a client, or "cli:" and the name of an account')
    return value


def is_name(value: str) -> bool:
    return _NAME.fullmatch(value) is not None


def backend_type(value: str) -> str:
    if not _BACKEND_TYPE.fullmatch(value):
        raise ValueError('must be the name of a kind of backend, such as "pkcs11"')
    return value


def host(value: str) -> str:
    """An IP address (IPv6 without brackets) or a host name."""
    if not (_HOST_NAME.fullmatch(value) or is_ip_address(value)):
        raise ValueError(
            "must be an IP address (IPv6 without brackets) or a host name, without a port"
        )
    return value


def is_ip_address(value: str) -> bool:
    try:
        ip_address(value)
    except ValueError:
        return False
    return True


def is_loopback(host_name: str) -> bool:
    """RFC 6761 section 6.3 for names; 127.0.0.0/8 and ::1 for addresses."""
    if is_ip_address(host_name):
        return ip_address(host_name).is_loopback
    lowered = host_name.lower()
    return lowered == "localhost" or lowered.endswith(".localhost")


def base_url(value: str) -> str:
    """An issuer: RFC 8414 section 2 (no query, no fragment), and no trailing slash."""
    parts = _split_url(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be a URL that starts with https:// (or http://) and names a host")
    if "@" in parts.netloc:
        raise ValueError("must not hold a user name or a password: everybody sees the issuer")
    if "?" in value or "#" in value:
        raise ValueError("must have neither a query (?) nor a fragment (#)")
    if value.endswith("/"):
        raise ValueError("must not end with a slash: verifiers compare issuers to the letter")
    return value


def _split_url(value: str) -> SplitResult:
    if not _VISIBLE_ASCII.fullmatch(value):
        raise ValueError("must be a URL in ASCII, without spaces")
    try:
        parts = urlsplit(value)
        _ = parts.port  # raises on a port that is none
    except ValueError:
        raise ValueError("must be a URL with a valid host and port") from None
    return parts


def database_url(value: str) -> str:
    """An SQLAlchemy URL of an SQLite file or of a PostgreSQL database."""
    if value.partition("://")[0] in _POSTGRESQL_SCHEMES:
        return _postgresql_url(value)
    match = _SQLITE_URL.fullmatch(value)
    if match is None:
        raise ValueError(
            "must be the URL of an SQLite file, such as sqlite:///var/kmsjwks.db, or of a "
            "PostgreSQL database, such as postgresql://user@host/database"
        )
    path, query = match["path"], match["query"] or ""
    if path in ("", "/", "/:memory:") or "memory" in query:
        raise ValueError(
            "must name a file: workers do not share a database in memory, and it is lost at exit"
        )
    if not path.startswith("/"):
        raise ValueError("needs three slashes for a relative path, four for an absolute one")
    if path.startswith("/file:"):
        raise ValueError("must hold a plain path, not an SQLite URI (file:...)")
    return value


def _postgresql_url(value: str) -> str:
    parts = _split_url(value)
    if not parts.path.strip("/"):
        raise ValueError("must name the database: postgresql://user@host/database")
    if parts.fragment:
        raise ValueError("must not hold a '#': write %23 where it belongs to the password")
    return value


def resolve_database_url(value: str, base_directory: str) -> str:
    """Make the relative path of an SQLite URL absolute, starting at ``base_directory``."""
    match = _SQLITE_URL.fullmatch(value)
    if match is None or match["path"].startswith("//"):
        return value
    relative = match["path"].removeprefix("/").removeprefix("./")
    start = base_directory.rstrip("/")
    return f"{match['scheme']}:///{start}/{relative}{match['query'] or ''}"


def directory(value: str) -> str:
    if not value or "\0" in value:
        raise ValueError("must be the path of a directory")
    if value.startswith("~"):
        raise ValueError("must be written in full: ~ is not expanded")
    return value


def publication_target(value: str) -> str:
    """A path, ``file:///path`` or ``s3://bucket[/prefix]``; what is behind it is not looked at."""
    scheme = _SCHEME.match(value)
    if not value.strip() or "\0" in value or value.startswith("~"):
        raise ValueError("must be a file, a directory ending in '/', or s3://bucket/prefix")
    if scheme is not None and scheme[1].lower() not in ("file", "s3"):
        raise ValueError("must be a path, file:///path or s3://bucket/prefix; no other scheme")
    return value


def checkpoint_target(value: str) -> str:
    """A directory, ``file:///path``, ``s3://bucket[/prefix]``, or a URL to POST to; plain http is
    for loopback alone."""
    scheme = _SCHEME.match(value)
    if scheme is None or scheme[1].lower() not in ("http", "https"):
        return publication_target(value)
    parts = _split_url(value)
    if not parts.hostname or "@" in parts.netloc or "#" in value:
        raise ValueError("must name a host, and have neither user name nor fragment")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise ValueError("must be https: plain http is for 127.0.0.1 and localhost alone")
    return value


def keyset_or_none(value: str) -> str:
    if value and not KEYSET_NAME.fullmatch(value):
        raise ValueError("must be the name of a keyset, or empty")
    return value


def s3_endpoint(value: str) -> str:
    """The origin of another S3 than AWS's; empty for AWS."""
    if not value:
        return value
    parts = _split_url(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be a URL that starts with https:// (or http://) and names a host")
    if "@" in parts.netloc or parts.path not in ("", "/") or "?" in value or "#" in value:
        raise ValueError("must have neither user name nor path, query or fragment")
    return value


def token_hash(value: str) -> str:
    if not _SHA256_HEX.fullmatch(value):
        raise ValueError(
            "must be the SHA-256 of the bearer token, as 64 lower-case hexadecimal digits"
        )
    if value == _EMPTY_TOKEN_SHA256:
        raise ValueError("is the hash of an empty token; hash the token itself")
    return value


def quota(value: str) -> str:
    parse_quota(value)
    return value


def keyset_pattern(value: str) -> str:
    if not _KEYSET_PATTERN.fullmatch(value):
        raise ValueError(
            'must be a keyset name or a pattern such as "team-*": '
            "lower-case letters, digits, '.', '_', '-' and * ? [ ]"
        )
    return value
