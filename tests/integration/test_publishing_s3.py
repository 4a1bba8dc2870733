"""S3 as a target, through boto3 and HTTP to moto."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from kmsjwks.domain.documents import Document, make_document
from kmsjwks.domain.errors import PublicationFailed
from kmsjwks.domain.ports import DocumentTarget
from kmsjwks.publishing.s3 import S3Target
from kmsjwks.publishing.targets import target_for
from kmsjwks.services.exporting import Exporter
from tests.support.documents import ISSUER, keyset_of, rendered
from tests.support.moto import MotoServer

DOCUMENTS = rendered(keyset_of("one"), keyset_of("two", issuer=f"{ISSUER}/team"))
JWKS = ".well-known/jwks.json"
DOCUMENT = DOCUMENTS[f"/{JWKS}"]
SECRET = "a-secret-that-must-not-be-told"


@pytest.fixture(scope="module")
def moto() -> Iterator[MotoServer]:
    server = MotoServer()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)


@pytest.fixture
def s3(moto: MotoServer, credentials: None) -> Any:
    client = boto3.session.Session().client("s3", endpoint_url=moto.endpoint)
    client.create_bucket(Bucket="keys")
    client.put_bucket_versioning(Bucket="keys", VersioningConfiguration={"Status": "Enabled"})
    for version in client.list_object_versions(Bucket="keys").get("Versions", []):
        client.delete_object(Bucket="keys", Key=version["Key"], VersionId=version["VersionId"])
    return client


@pytest.fixture
def target(moto: MotoServer) -> DocumentTarget:
    return target_for("s3://keys/public/", endpoint=moto.endpoint)


def keys_in(s3: Any) -> set[str]:
    return {one["Key"] for one in s3.list_objects_v2(Bucket="keys").get("Contents", [])}


def writes(s3: Any) -> int:
    return len(s3.list_object_versions(Bucket="keys").get("Versions", []))


def test_every_document_is_an_object_under_the_prefix(s3: Any, target: DocumentTarget) -> None:
    written = Exporter([target]).export(DOCUMENTS)
    assert keys_in(s3) == {f"public{path}" for path in DOCUMENTS}
    assert f"s3://keys/public: team/{JWKS}" in written


def test_without_prefix_keys_are_url_paths(s3: Any, moto: MotoServer) -> None:
    target_for("s3://keys", endpoint=moto.endpoint).publish(JWKS, DOCUMENT)
    assert keys_in(s3) == {JWKS}


def test_objects_are_served_with_the_headers_of_the_endpoint(
    s3: Any, target: DocumentTarget
) -> None:
    target.publish(JWKS, DOCUMENT)
    got = s3.get_object(Bucket="keys", Key=f"public/{JWKS}")
    assert got["Body"].read() == DOCUMENT.body
    assert got["ContentType"] == "application/jwk-set+json"
    assert got["CacheControl"] == DOCUMENT.cache_control


def test_only_what_differs_is_written(s3: Any, target: DocumentTarget, moto: MotoServer) -> None:
    again = target_for("s3://keys/public", endpoint=moto.endpoint)
    assert target.publish(JWKS, DOCUMENT)
    assert not target.publish(JWKS, DOCUMENT)
    assert not again.publish(JWKS, DOCUMENT)
    assert writes(s3) == 1
    shorter = make_document(DOCUMENT.body, DOCUMENT.media_type, "public, max-age=1")
    assert again.publish(JWKS, shorter)
    s3.put_object(Bucket="keys", Key=f"public/{JWKS}", Body=b"overwritten")
    assert again.publish(JWKS, shorter)
    assert writes(s3) == 4


def test_a_missing_bucket_is_named(target: DocumentTarget, s3: Any, moto: MotoServer) -> None:
    missing = target_for("s3://no-such-bucket/x", endpoint=moto.endpoint)
    with pytest.raises(PublicationFailed, match=r"s3://no-such-bucket/x .*NoSuchBucket"):
        missing.publish(JWKS, DOCUMENT)


def test_missing_credentials_are_told(
    target: DocumentTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(PublicationFailed, match="AWS credentials"):
        target.publish(JWKS, DOCUMENT)


def test_a_server_that_is_not_there_fails_fast_and_tells_no_secret() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refused
        target = target_for("s3://keys", endpoint=f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(PublicationFailed) as failed:
            target.publish(JWKS, DOCUMENT)
    assert SECRET not in str(failed.value)


def test_a_server_that_hangs_is_given_up_and_recovers(s3: Any, moto: MotoServer) -> None:
    target = target_for("s3://keys", endpoint=moto.endpoint)
    os.kill(moto.process.pid, signal.SIGSTOP)
    began = time.monotonic()
    try:
        with pytest.raises(PublicationFailed):
            target.publish(JWKS, DOCUMENT)
    finally:
        os.kill(moto.process.pid, signal.SIGCONT)
    assert time.monotonic() - began < 10
    assert target.publish(JWKS, DOCUMENT)


def test_without_permission_to_look_it_writes(s3: Any) -> None:
    """S3 answers 403 for what is missing to those who may not list."""

    class WriteOnly:
        held: dict[str, Any]

        def head_object(self, **_: Any) -> Any:
            answer = {"Error": {"Code": "403"}, "ResponseMetadata": {"HTTPStatusCode": 403}}
            raise ClientError(answer, "HeadObject")

        def put_object(self, **arguments: Any) -> Any:
            self.held = arguments

    client = WriteOnly()
    document: Document = DOCUMENT
    assert S3Target("keys", "", lambda: client).publish(JWKS, document)
    assert client.held["Key"] == JWKS
