"""Files as targets, and the words that name targets."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from kmsjwks.domain.errors import ConfigurationError, InvalidRequest, PublicationFailed
from kmsjwks.publishing.files import DirectoryTarget, FileTarget
from kmsjwks.publishing.targets import target_for
from kmsjwks.services.exporting import Exporter
from tests.support.documents import ISSUER, keyset_of, rendered

DOCUMENTS = rendered(
    keyset_of("one"),
    keyset_of("two", issuer=f"{ISSUER}/team"),
    keyset_of("three", issuer=f"{ISSUER}/team/b"),
)
JWKS = ".well-known/jwks.json"
DOCUMENT = DOCUMENTS[f"/{JWKS}"]


def files(root: Path) -> dict[str, bytes]:
    return {
        f"/{path.relative_to(root)}": path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def test_a_directory_holds_every_document_under_its_path(tmp_path: Path) -> None:
    written = Exporter([target_for(f"{tmp_path}/www/")]).export(DOCUMENTS)
    assert f"{tmp_path}/www/: team/{JWKS}" in written
    assert files(tmp_path / "www") == {
        path + ("/index.json" if "oauth" in path else ""): one.body
        for path, one in DOCUMENTS.items()
    }


def test_files_are_readable_by_all_and_written_only_when_changed(tmp_path: Path) -> None:
    target, path = DirectoryTarget(tmp_path), tmp_path / JWKS
    assert target.publish(JWKS, DOCUMENT)
    before = path.stat()
    assert stat.S_IMODE(before.st_mode) == 0o644
    assert not target.publish(JWKS, DOCUMENT)
    assert path.stat().st_ino == before.st_ino
    path.write_bytes(b"")
    assert target.publish(JWKS, DOCUMENT)
    assert [one.name for one in path.parent.iterdir()] == ["jwks.json"]


def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, path = DirectoryTarget(tmp_path), tmp_path / JWKS
    target.publish(JWKS, DOCUMENT)
    path.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PublicationFailed, match="No space left"):
        target.publish(JWKS, DOCUMENT)
    assert files(tmp_path) == {f"/{JWKS}": b"old"}


@pytest.mark.parametrize(
    "name", ["../a", "a/../../b", "/etc/a", "a//b", "", ".", "a/./b", "a\nb", "a\\b", "x" * 256]
)
def test_an_issuer_cannot_lead_out_of_the_directory(tmp_path: Path, name: str) -> None:
    with pytest.raises(PublicationFailed):
        DirectoryTarget(tmp_path / "www").publish(name, DOCUMENT)
    assert files(tmp_path) == {}


def test_a_file_holds_one_document(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    target = target_for(str(path), name=f"team/{JWKS}")
    assert Exporter([target]).export(DOCUMENTS) == [f"{path}: team/{JWKS}"]
    assert files(tmp_path) == {"/keys.json": DOCUMENTS[f"/team/{JWKS}"].body}


@pytest.mark.parametrize("uri", ["file://{0}/www/", "file://localhost{0}/www/", "{0}/www/", "www/"])
def test_ways_to_name_a_directory(tmp_path: Path, uri: str) -> None:
    target = target_for(uri.format(tmp_path), base=tmp_path)
    assert isinstance(target, DirectoryTarget)
    assert target.publish(JWKS, DOCUMENT)
    assert (tmp_path / "www" / JWKS).exists()


def test_a_directory_that_is_there_needs_no_slash(tmp_path: Path) -> None:
    assert isinstance(target_for(str(tmp_path)), DirectoryTarget)
    assert isinstance(target_for(f"file://{tmp_path}/a%20b"), FileTarget)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "https://example.com/jwks.json",
        "gs://bucket/prefix",
        "s3://",
        "s3:///prefix",
        "s3://user:secret@bucket/prefix",
        "s3://bucket/../other",
        "s3://bucket/a//b",
        "s3://bucket/prefix?versionId=1",
        "file://host/path",
        "file:///",
    ],
)
def test_what_is_no_target_is_refused(uri: str) -> None:
    with pytest.raises(InvalidRequest):
        target_for(uri)


@pytest.mark.parametrize(
    "endpoint", ["minio:9000", "ftp://minio", "http://u:p@minio", "http://minio/x", "http://a:x"]
)
def test_an_endpoint_is_a_plain_url(endpoint: str) -> None:
    with pytest.raises(InvalidRequest, match="endpoint"):
        target_for("s3://bucket/prefix", endpoint=endpoint)


def test_s3_without_boto3_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    monkeypatch.delitem(sys.modules, "kmsjwks.publishing.s3", raising=False)
    with pytest.raises(ConfigurationError, match=r"install kmsjwks\[s3\]"):
        target_for("s3://bucket/prefix")
