"""From the text that an operator writes to the target that it names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from urllib.parse import unquote, urlsplit

from kmsjwks.domain.documents import JWKS_NAME
from kmsjwks.domain.errors import ConfigurationError, InvalidRequest, PublicationFailed
from kmsjwks.domain.ports import DocumentTarget
from kmsjwks.publishing.files import DirectoryTarget, FileTarget
from kmsjwks.publishing.names import check_name

# AWS's rules for general purpose buckets, and the underscore and capitals of other makes.
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_NO_ENVIRON: Mapping[str, str] = MappingProxyType({})
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def target_for(
    uri: str,
    *,
    endpoint: str | None = None,
    base: Path | None = None,
    name: str = JWKS_NAME,
    environ: Mapping[str, str] = _NO_ENVIRON,
) -> DocumentTarget:
    """The target of ``s3://bucket/prefix``, ``file:///path`` or a path.

    A path that ends in ``/`` or is a directory takes all documents; any other is one file, for
    the document ``name``. Relative paths start at ``base``, or where the process runs.
    ``endpoint`` is the URL of another S3 than AWS's; ``environ`` may hold its access key. Touches
    neither disk nor network but to look for a directory.

    Raises:
        InvalidRequest: not such a URI.
        ConfigurationError: S3 without boto3 installed.
    """
    scheme = _SCHEME.match(uri)
    kind = scheme.group(1).lower() if scheme else ""
    if kind == "s3":
        return _bucket(uri, endpoint, environ)
    if kind == "file":
        return _path(_of_file_uri(uri), Path(), name)
    if kind or not uri.strip() or "\0" in uri:
        raise InvalidRequest(
            f"{uri[:80]!r} is nowhere to publish to. Use a file, a directory ending in '/', or "
            "s3://bucket/prefix."
        )
    return _path(uri, base or Path(), name)


def checkpoint_target_for(
    uri: str,
    *,
    endpoint: str | None = None,
    base: Path | None = None,
    environ: Mapping[str, str] = _NO_ENVIRON,
) -> DocumentTarget:
    """As ``target_for``, where every checkpoint is an object of its own: a path is a directory,
    and a URL is POSTed to.

    Raises:
        InvalidRequest, ConfigurationError
    """
    scheme = _SCHEME.match(uri)
    kind = scheme.group(1).lower() if scheme else ""
    if kind in ("http", "https"):
        from kmsjwks.publishing.endpoints import EndpointTarget  # noqa: PLC0415  # 4 MB with urllib3, for those who use it

        return EndpointTarget(uri)
    if kind == "s3":
        return _bucket(uri, endpoint, environ)
    if kind == "file":
        return DirectoryTarget(Path(_of_file_uri(uri)))
    return DirectoryTarget((base or Path()) / uri)


def _bucket(uri: str, endpoint: str | None, environ: Mapping[str, str]) -> DocumentTarget:
    bucket, _, prefix = uri[len("s3://") :].partition("/")
    prefix = prefix.strip("/")
    if not _BUCKET.fullmatch(bucket) or not _is_prefix(prefix):
        raise InvalidRequest(f"{uri[:80]!r} is not s3://bucket or s3://bucket/prefix.")
    if endpoint is not None and not _is_endpoint(endpoint):
        raise InvalidRequest("The S3 endpoint is not an http(s) URL without user name and path.")
    try:
        from kmsjwks.publishing.s3 import S3Target, connect_s3  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise ConfigurationError(
            ["Publishing to s3:// needs boto3: install kmsjwks[s3], then start again."]
        ) from error
    return S3Target(bucket, prefix, partial(connect_s3, endpoint, environ))


def _is_prefix(text: str) -> bool:
    try:
        return not text or (check_name(text) == text and not any(mark in text for mark in "?#"))
    except PublicationFailed:
        return False


def _is_endpoint(text: str) -> bool:
    try:
        parts = urlsplit(text)
        port_ok = parts.port != 0
    except ValueError:
        return False
    plain = not (parts.query or parts.fragment or parts.username) and parts.path in ("", "/")
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port_ok and plain


def _of_file_uri(uri: str) -> str:
    """RFC 8089."""
    parts = urlsplit(uri)
    path = unquote(parts.path)
    here = parts.netloc in ("", "localhost")
    if not here or parts.query or parts.fragment or path in ("", "/") or "\0" in path:
        raise InvalidRequest(f"{uri[:80]!r} is not file:///path on this machine.")
    return path


def _path(text: str, base: Path, name: str) -> DocumentTarget:
    path = base / text
    if text.endswith("/") or path.is_dir():
        return DirectoryTarget(path)
    return FileTarget(path, name)
