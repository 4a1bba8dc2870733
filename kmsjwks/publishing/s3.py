"""Documents as objects of an S3 bucket, behind a CDN or public. The only module that knows boto3.

Needs ``s3:PutObject``; with ``s3:GetObject`` it writes only what differs.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Protocol

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from kmsjwks.domain.documents import Document
from kmsjwks.domain.errors import PublicationFailed
from kmsjwks.publishing.names import check_name

_CONNECT_TIMEOUT, _READ_TIMEOUT = 1, 2  # seconds
_ATTEMPTS = 2
_NO_ENVIRON: Mapping[str, str] = MappingProxyType({})
# boto3's parameters and the variables that it reads them from.
_ACCESS_KEY = {
    "aws_access_key_id": "AWS_ACCESS_KEY_ID",
    "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "aws_session_token": "AWS_SESSION_TOKEN",
}
_MAX_READ = 64 * 1024  # bytes
# What S3 answers for a missing object; 403 where we may not list the bucket.
_MAYBE_MISSING = frozenset({403, 404})

_REMEDIES = {
    "AccessDenied": "Allow s3:PutObject on it to these credentials.",
    "ExpiredToken": "Renew the AWS credentials.",
    "InvalidAccessKeyId": "Check the AWS credentials.",
    "NoSuchBucket": "Create the bucket or correct its name.",
    "NoCredentialsError": "Give the service AWS credentials (environment, profile or role).",
    "PermanentRedirect": "Set the bucket's Region (AWS_REGION).",
    "SignatureDoesNotMatch": "Check the AWS credentials.",
}


class S3Client(Protocol):
    """What is used of boto3's client."""

    def head_object(self, **arguments: Any) -> Any: ...

    def put_object(self, **arguments: Any) -> Any: ...


class S3Target:
    """Every document, its key the prefix and its URL path, with media type and cache headers."""

    def __init__(self, bucket: str, prefix: str, connect: Callable[[], S3Client]) -> None:
        """``prefix`` has no slash at either end and may be empty. ``connect`` is called once, when
        first needed: a process that forks must not share connections."""
        self._bucket, self._prefix, self._connect = bucket, prefix, connect
        self._lock = threading.Lock()
        self._client: S3Client | None = None

    def __str__(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def publish(self, name: str, document: Document) -> bool:
        key = f"{self._prefix}/{check_name(name)}".lstrip("/")
        wanted = {"ContentType": document.media_type, "CacheControl": document.cache_control}
        digest = hashlib.sha256(document.body).hexdigest()
        if self._is_there(key, {**wanted, "sha256": digest}):
            return False
        metadata = {"sha256": digest}
        self._call(
            "put_object", {"Key": key, "Body": document.body, "Metadata": metadata, **wanted}
        )
        return True

    def _is_there(self, key: str, wanted: Mapping[str, str]) -> bool:
        found = self._call("head_object", {"Key": key}, missing_is_fine=True)
        seen = {**found.get("Metadata", {}), **found}
        return all(seen.get(name) == value for name, value in wanted.items())

    def _call(
        self, method: str, arguments: Mapping[str, Any], *, missing_is_fine: bool = False
    ) -> Any:
        try:
            return getattr(self._connected(), method)(Bucket=self._bucket, **arguments)
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if missing_is_fine and status in _MAYBE_MISSING:
                return {}
            raise self._failed(str(error.response.get("Error", {}).get("Code"))) from error
        except (BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no URL
            raise self._failed(type(error).__name__) from error

    def _connected(self) -> S3Client:
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _failed(self, code: str) -> PublicationFailed:
        """By the code alone: a vendor's message may quote credentials or an endpoint's."""
        remedy = _REMEDIES.get(code, "Publication is tried again.")
        return PublicationFailed(f"{self} could not be written: {code}. {remedy}", retry_after=5)


def connect_s3(endpoint: str | None, environ: Mapping[str, str] = _NO_ENVIRON) -> S3Client:
    """A client with bounded calls; credentials and Region are found as boto3 finds them.

    ``endpoint``: URL of another S3 than AWS's (MinIO, Ceph); None for AWS. An access key in
    ``environ`` counts as in the environment, from which a serving process takes its secrets.
    """
    config = Config(
        connect_timeout=_CONNECT_TIMEOUT,
        read_timeout=_READ_TIMEOUT,
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        s3={"addressing_style": "path"} if endpoint else {},
    )
    # A session of its own: boto3's default one is shared and not thread-safe to make clients from.
    client: S3Client = boto3.session.Session().client(
        "s3", endpoint_url=endpoint, config=config, **_access_key(environ)
    )
    return client


def _access_key(environ: Mapping[str, str]) -> dict[str, str]:
    found = {name: environ.get(variable, "") for name, variable in _ACCESS_KEY.items()}
    if not found["aws_access_key_id"] or not found["aws_secret_access_key"]:
        return {}
    return {name: value for name, value in found.items() if value}


def read_objects(
    bucket: str, prefix: str, begins: str, endpoint: str | None
) -> Iterator[tuple[str, bytes]]:
    """Key and content of the objects below ``prefix`` whose names begin so, by key.

    Needs ``s3:ListBucket`` and ``s3:GetObject``.

    Raises:
        PublicationFailed: they cannot be read.
    """
    where = f"{prefix.strip('/')}/{begins}".lstrip("/")
    client: Any = connect_s3(endpoint)
    try:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=where)
        for page in pages:
            for found in page.get("Contents", ()):
                answer = client.get_object(Bucket=bucket, Key=found["Key"])
                yield found["Key"], answer["Body"].read(_MAX_READ)
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code")
        raise PublicationFailed(f"s3://{bucket}/{prefix} cannot be read: {code}.") from error
    except BotoCoreError as error:
        why = type(error).__name__
        raise PublicationFailed(f"s3://{bucket}/{prefix} cannot be read: {why}.") from error
