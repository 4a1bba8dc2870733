"""Checkpoints to a bucket and back, through boto3 and HTTP to moto."""

from __future__ import annotations

import os
from collections.abc import Iterator

import boto3
import pytest

from kmsjwks.domain.documents import make_document
from kmsjwks.domain.errors import PublicationFailed
from kmsjwks.publishing.collecting import fetch_checkpoints
from kmsjwks.publishing.targets import checkpoint_target_for
from tests.support.moto import MotoServer

NAMES = [f"checkpoint-20260101T00000{number}Z-{'a' * 16}-000000000001.jws" for number in (1, 2)]


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
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def test_there_and_back_in_order(moto: MotoServer) -> None:
    client = boto3.session.Session().client("s3", endpoint_url=moto.endpoint)
    client.create_bucket(Bucket="evidence")
    target = checkpoint_target_for("s3://evidence/kept/", endpoint=moto.endpoint)
    for name in reversed(NAMES):
        document = make_document(name.encode() + b"\n", "application/jose", "no-store")
        assert target.publish(name, document)
        assert not target.publish(name, document)
    client.put_object(Bucket="evidence", Key="kept/other.txt", Body=b"no checkpoint")
    found = list(fetch_checkpoints("s3://evidence/kept", moto.endpoint))
    assert found == [(f"kept/{name}", name) for name in NAMES]


def test_a_bucket_that_is_not_there(moto: MotoServer) -> None:
    with pytest.raises(PublicationFailed, match="cannot be read: NoSuchBucket"):
        list(fetch_checkpoints("s3://no-such-bucket/x", moto.endpoint))
