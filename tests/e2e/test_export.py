"""`kmsjwks jwks export` and publication by a running service: a directory and moto's S3."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.support.moto import MotoServer
from tests.support.service import Installation, Server
from tests.support.softhsm import provision

JWKS = ".well-known/jwks.json"


@pytest.fixture(scope="module")
def moto() -> Iterator[MotoServer]:
    server = MotoServer()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def s3(moto: MotoServer, credentials: None) -> Any:
    client = boto3.session.Session().client("s3", endpoint_url=moto.endpoint)
    client.create_bucket(Bucket="keys")
    return client


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory, moto: MotoServer) -> Installation:
    directory = tmp_path_factory.mktemp("export")
    made = Installation(directory / "service", provision(directory / "token").options())
    with made.config.open("a") as config:
        config.write(
            f'\n[publication]\ntargets = ["www/", "s3://keys/live"]\n'
            f's3_endpoint = "{moto.endpoint}"\n'
        )
    made.create_keyset("es", "ES256")
    made.create_keyset("curve", "ES256K")  # at an issuer of its own
    return made


def body(s3: Any, key: str) -> dict[str, Any]:
    found: dict[str, Any] = s3.get_object(Bucket="keys", Key=key)
    return found


def kids(document: str | bytes) -> set[str]:
    return {key["kid"] for key in json.loads(document)["keys"]}


def test_to_a_file(installation: Installation, tmp_path: Path) -> None:
    file = tmp_path / "new" / "jwks.json"
    done = installation.cli("jwks", "export", "--to", str(file))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{file}: {JWKS}\n"
    assert file.read_text() == installation.cli("jwks", "get").stdout.rstrip("\n")
    again = installation.cli("jwks", "export", "--to", str(file))
    assert (again.returncode, again.stdout) == (0, "")
    assert "nothing was written" in again.stderr


def test_to_a_file_another_issuer(installation: Installation, tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    issuer = f"{installation.base_url}/curve"
    assert installation.cli("jwks", "export", "--to", str(file), "--issuer", issuer).returncode == 0
    assert json.loads(file.read_text())["keys"][0]["alg"] == "ES256K"
    unknown = installation.cli("jwks", "export", "--to", str(file), "--issuer", "https://x.example")
    assert unknown.returncode == 1
    assert "No keyset has the issuer https://x.example" in unknown.stderr


def test_to_a_directory_everything_or_one_issuer(
    installation: Installation, tmp_path: Path
) -> None:
    assert installation.cli("jwks", "export", "--to", f"{tmp_path}/all/").returncode == 0
    for name in (JWKS, f"curve/{JWKS}", f"keysets/es/{JWKS}", ".well-known/openid-configuration"):
        assert (tmp_path / "all" / name).is_file()
    issuer = f"{installation.base_url}/curve"
    done = installation.cli("jwks", "export", "--to", f"{tmp_path}/one/", "--issuer", issuer)
    assert done.returncode == 0
    assert sorted(str(file.relative_to(tmp_path / "one")) for file in tmp_path.glob("one/**/*.json")
    ) == [".well-known/oauth-authorization-server/curve/index.json", f"curve/{JWKS}"]  # fmt: skip


def test_to_a_bucket(installation: Installation, s3: Any) -> None:
    done = installation.cli("jwks", "export", "--to", "s3://keys/by-hand")
    assert done.returncode == 0, done.stderr
    found = body(s3, f"by-hand/{JWKS}")
    assert found["ContentType"] == "application/jwk-set+json"
    assert found["CacheControl"].startswith("public, max-age=300")
    assert kids(found["Body"].read()) == kids(installation.cli("jwks", "get").stdout)


def test_to_nowhere(installation: Installation) -> None:
    for target, code in (("ftp://x/y", 2), ("s3://no-such-bucket-here/x", 1)):
        done = installation.cli("jwks", "export", "--to", target)
        assert done.returncode == code
        assert done.stderr.startswith("error: ")


def test_a_service_publishes_what_changes(installation: Installation, s3: Any) -> None:
    www = installation.directory / "www"
    server = Server(installation)
    server.start()
    try:
        _until(lambda: (www / JWKS).exists() and _in_bucket(s3, f"live/{JWKS}"))
        before = server.http().get(f"/{JWKS}").body
        assert (www / JWKS).read_bytes() == before
        assert body(s3, f"live/{JWKS}")["Body"].read() == before
        installation.create_keyset("more", "ES256")
        _until(lambda: len(kids((www / JWKS).read_bytes())) == 4)
        _until(lambda: len(kids(body(s3, f"live/{JWKS}")["Body"].read())) == 4)
        _until(lambda: server.http().get(f"/keysets/more/{JWKS}").status == 200)
        assert len(kids((www / "keysets" / "more" / JWKS).read_bytes())) == 2
        assert server.http().get(f"/keysets/none/{JWKS}").status == 404
    finally:
        server.kill_all()


def _in_bucket(s3: Any, key: str) -> bool:
    return any(one["Key"] == key for one in s3.list_objects_v2(Bucket="keys").get("Contents", []))


def _until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)
