"""The command line over a fake backend: results on stdout, messages on stderr, exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kmsjwks.cli.main import main
from kmsjwks.domain.errors import BackendDenied, BackendUnavailable
from tests.support.wiring import LastingBackend, install_backend_type, write_config

Run = Callable[..., Result]


@pytest.fixture
def backend() -> LastingBackend:
    return LastingBackend()


@pytest.fixture
def run(backend: LastingBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    install_backend_type(monkeypatch, backend)
    config = write_config(tmp_path)

    def invoke(*words: str, stdin: str | bytes = "") -> Result:
        return CliRunner().invoke(main, ["--config", str(config), *words], input=stdin)

    return invoke


@pytest.fixture
def demo(run: Run) -> dict[str, Any]:
    return made(run("-o", "json", "keysets", "create", "demo", "--algorithm", "ES256"))


def made(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    value: dict[str, Any] = json.loads(result.stdout)
    return value


def refused(result: Result, code: int, *words: str) -> None:
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.stderr


def test_create_list_show(run: Run, demo: dict[str, Any]) -> None:
    assert demo["issuer"] == "http://127.0.0.1:8080"
    assert (demo["algorithm"], demo["max_lifetime"], demo["audiences"]) == ("ES256", "1h", ["*"])
    assert [key["state"] for key in demo["keys"]] == ["active", "pre-activation"]
    assert made(run("-o", "json", "keysets", "show", "demo")) == demo
    listed = json.loads(run("-o", "json", "keysets", "list").stdout)
    assert [one["name"] for one in listed] == ["demo"]
    table = run("keysets", "list").stdout.splitlines()
    assert table[0].split()[:2] == ["NAME", "ALGORITHM"]
    assert table[1].split()[:2] == ["demo", "ES256"]


def test_nothing_to_list(run: Run) -> None:
    result = run("keysets", "list")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "none\n")
    assert run("-o", "json", "keysets", "list").stdout == "[]\n"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("demo", "--algorithm", "ES256"), 1, "exists already"),
        (("Demo", "--algorithm", "ES256"), 2, "not a keyset name"),
        (("../x", "--algorithm", "ES256"), 2, "not a keyset name"),
        (("new", "--algorithm", "HS256"), 2, "HS256"),
        (("new", "--algorithm", "none"), 2, "none"),
        (("new", "--algorithm", "RS256", "--key-size", "1024"), 2, "1024"),
        (("new", "--algorithm", "ES256", "--backend", "other"), 2, "fake"),
        (("new", "--algorithm", "ES256", "--issuer", "ftp://x"), 2, "issuer"),
        (("new", "--algorithm", "ES256", "--issuer", "https://x/"), 2, "/"),
        (("new", "--algorithm", "ES256", "--issuer", "https://other.example"), 1, "issuer"),
        (("new", "--algorithm", "ES256K", "--issuer", "http://127.0.0.1:8080"), 1, "/new"),
        (("new", "--algorithm", "ES256", "--max-lifetime", "soon"), 2, "duration"),
        (("new", "--algorithm", "ES256", "--max-lifetime", "0"), 2, "lifetime"),
        (("new", "--algorithm", "ES256", "--default-lifetime", "2h"), 2, "lifetime"),
        (("new",), 2, "--algorithm"),
    ],
)  # fmt: skip
def test_keysets_that_cannot_be(
    run: Run, demo: dict[str, Any], backend: LastingBackend, words: tuple[str, ...], code: int,
    said: str,
) -> None:  # fmt: skip
    refused(run("keysets", "create", *words), code, said)
    assert [one["name"] for one in json.loads(run("-o", "json", "keysets", "list").stdout)] == [
        "demo"
    ]
    assert len(list(backend.list_keys())) == 2


def test_ensure_creates_once_and_brings_rules_in_line(run: Run, backend: LastingBackend) -> None:
    words = ("-o", "json", "keysets", "ensure", "demo", "--algorithm", "ES256")
    first = made(run(*words))
    assert made(run(*words)) == first
    changed = made(run(*words, "--max-lifetime", "10m", "--audience", "billing"))
    assert (changed["max_lifetime"], changed["audiences"]) == ("10m", ["billing"])
    assert changed["keys"] == first["keys"]
    assert len(list(backend.list_keys())) == 2
    refused(run("keysets", "ensure", "demo", "--algorithm", "ES384"), 1, "cannot be changed")


def test_sign_and_verify(run: Run, demo: dict[str, Any]) -> None:
    signed = made(
        run("-o", "json", "sign", "demo", "--claims", '{"sub": "a", "n": 9007199254740993}')
    )
    assert signed["kid"] == demo["keys"][0]["kid"]
    token = run("sign", "demo", "--ttl", "90s").stdout
    assert token.count(".") == 2
    for text, words in ((signed["token"], ()), (token, ("-",))):
        argument = words or (text,)
        result = run("-o", "json", "verify", "demo", *argument, stdin=text)
        assert made(result)["valid"] is True
    assert made(run("-o", "json", "verify", "demo", signed["token"]))["claims"]["n"] == 2**53 + 1


def test_a_token_that_is_not_valid(run: Run, demo: dict[str, Any]) -> None:
    result = run("-o", "json", "verify", "demo", "a.b.c")
    assert result.exit_code == 5
    assert json.loads(result.stdout)["valid"] is False


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--claims", "{"), "not JSON"),
        (("--claims", "[]"), "object"),
        (("--claims", '{"a": 1, "a": 2}'), "twice"),
        (("--claims", '{"a": NaN}'), "NaN"),
        (("--claims", "@missing.json"), "missing.json"),
        (("--claims", '{"iss": "me"}'), "iss"),
        (("--claims", '{"exp": 1}'), "past"),
        (("--ttl", "2h"), "maximum"),
        (("--ttl", "-1"), "--ttl"),
    ],
)
def test_claims_that_are_refused(
    run: Run, demo: dict[str, Any], words: tuple[str, ...], said: str
) -> None:
    refused(run("sign", "demo", *words), 2, said)


def test_claims_from_a_file_and_from_stdin(run: Run, demo: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "claims.json"
    file.write_text('{"sub": "file"}')
    assert run("sign", "demo", "--claims", f"@{file}").exit_code == 0
    assert run("sign", "demo", "--claims", "-", stdin='{"sub": "in"}').exit_code == 0
    refused(run("sign", "demo", "--claims", "-", stdin=b'{"sub": "\xff"}'), 2, "UTF-8")


def test_what_is_not_there(run: Run) -> None:
    refused(run("keysets", "show", "absent"), 1, "absent")
    refused(run("sign", "absent"), 1, "absent")
    refused(run("keys", "show", "absent"), 1, "absent")
    refused(run("jwks", "get", "--issuer", "https://absent.example/x"), 1, "absent")
    refused(run("nonsense"), 2, "nonsense")


def test_keys_and_jwks(run: Run, demo: dict[str, Any]) -> None:
    kid = demo["keys"][0]["kid"]
    listed = json.loads(run("-o", "json", "keys", "list").stdout)
    assert [one["kid"] for one in listed] == [key["kid"] for key in demo["keys"]]
    assert json.loads(run("-o", "json", "keys", "list", "--keyset", "other").stdout) == []
    shown = made(run("-o", "json", "keys", "show", kid))
    assert (shown["extraction_refused"], shown["kind"]) == (False, "software")
    document = json.loads(run("jwks", "get").stdout)
    assert json.loads(shown["jwk"]) in document["keys"]
    assert len(document["keys"]) == 2


def test_a_backend_that_is_away(run: Run, demo: dict[str, Any], backend: LastingBackend) -> None:
    backend.break_with(BackendUnavailable("The token is away."))
    refused(run("keysets", "create", "new", "--algorithm", "ES256"), 3, "The token is away.")
    refused(run("sign", "demo"), 3, "The token is away.")
    assert run("doctor").exit_code == 3
    assert run("jwks", "get").exit_code == 0
    backend.break_with(BackendDenied("The PIN is wrong."))
    refused(run("sign", "demo"), 4, "The PIN is wrong.")


def test_doctor(run: Run, backend: LastingBackend) -> None:
    result = run("-o", "json", "doctor")
    rows = {row["check"]: row for row in json.loads(result.stdout)}
    assert result.exit_code == 5  # the fake's custody is none
    assert {name for name, row in rows.items() if not row["ok"]} == {"custody"}
    assert list(backend.list_keys()) == []
    assert "FAIL fake: custody" in run("doctor", "--backend", "fake").stdout
    refused(run("doctor", "--backend", "other"), 2, "fake")


def test_config_check(run: Run, tmp_path: Path) -> None:
    assert run("config", "check").exit_code == 0
    path = tmp_path / "kmsjwks.toml"
    path.write_text('[server]\nprot = 1\nport = 0\n[backends.a]\ntype = "nothing"\n')
    result = run("config", "check")
    refused(result, 5, "server.prot", "server.port")
    refused(run("keysets", "list"), 2, "server.prot")
    path.write_text('[backends.a]\ntype = "nothing"\n')
    refused(run("config", "check"), 5, "nothing", "fake")


@pytest.mark.parametrize("verification", ["sampled", "off"])
def test_doctor_and_config_check_say_that_signatures_are_not_verified(
    run: Run, tmp_path: Path, verification: str
) -> None:
    assert "signing.verification" not in run("config", "check").stderr
    write_config(tmp_path, f'[signing]\nverification = "{verification}"\n')
    for command in (("config", "check"), ("doctor",)):
        assert f'note: signing.verification is "{verification}"' in run(*command).stderr
    assert run("config", "check").exit_code == 0


def test_a_client_token_and_its_hash(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "client.token"
    digest = run("clients", "token", "--out", str(file)).stdout.strip()
    assert file.stat().st_mode & 0o777 == 0o600
    assert run("clients", "hash", str(file)).stdout.strip() == digest
    assert file.read_text().strip() not in digest
    again = run("clients", "token", "--out", str(file))
    assert again.exit_code == 1
    assert run("clients", "hash", str(file)).stdout.strip() == digest
    shown = run("clients", "token")
    assert "token_sha256: " in shown.stderr
    assert len(shown.stdout.strip()) > 40
