"""Checkpoints as they come back from a bucket or a web server."""

from __future__ import annotations

from collections.abc import Iterator

import urllib3
from urllib3.exceptions import HTTPError

from kmsjwks.domain.errors import ConfigurationError, InvalidRequest, PublicationFailed

_TIMEOUT = urllib3.Timeout(connect=5, read=30)  # seconds
_MAX_BYTES = 256 * 1024 * 1024


def fetch_checkpoints(url: str, s3_endpoint: str | None = None) -> Iterator[tuple[str, str]]:
    """Where it was read and the compact JWS, of each under ``s3://bucket/prefix``, or of each line
    of an https document.

    Raises:
        InvalidRequest: another scheme.
        PublicationFailed: it cannot be read.
        ConfigurationError: S3 without boto3 installed.
    """
    scheme = url.partition("://")[0].lower()
    if scheme == "s3":
        return _from_bucket(url, s3_endpoint)
    if scheme not in ("http", "https"):
        raise InvalidRequest(f"{url[:80]!r} is neither https:// nor s3://bucket/prefix.")
    return _from_web(url)


def _from_web(url: str) -> Iterator[tuple[str, str]]:
    try:
        with urllib3.PoolManager(timeout=_TIMEOUT, retries=False) as pool:
            answer = pool.request("GET", url, redirect=False, preload_content=False)
            body = answer.read(_MAX_BYTES)
            answer.close()
    except HTTPError as error:
        raise PublicationFailed(f"{url[:80]} cannot be read: {type(error).__name__}.") from error
    if answer.status != 200:
        raise PublicationFailed(f"{url[:80]} cannot be read: it answers {answer.status}.")
    for number, line in enumerate(body.splitlines(), 1):
        if line.strip():
            yield f"{url[:80]}:{number}", line.decode("ascii", "replace").strip()


def _from_bucket(url: str, endpoint: str | None) -> Iterator[tuple[str, str]]:
    try:
        from kmsjwks.publishing.s3 import read_objects  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise ConfigurationError(
            ["Reading from s3:// needs boto3: install kmsjwks[s3], then start again."]
        ) from error
    bucket, _, prefix = url[len("s3://") :].partition("/")
    for key, body in read_objects(bucket, prefix, "checkpoint-", endpoint):
        yield key, body.decode("ascii", "replace").strip()
