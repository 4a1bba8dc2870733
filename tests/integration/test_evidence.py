"""`kmsjwks evidence`: what an auditor is told, of a real token too, and that nothing escapes it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kmsjwks.bootstrap import Service, build, prepare_database
from kmsjwks.cli.main import main
from kmsjwks.config import load
from kmsjwks.domain.access import Action, Grant, Principal
from kmsjwks.domain.errors import BackendUnavailable
from kmsjwks.domain.keys import KeyState
from kmsjwks.services.acting import Actor
from kmsjwks.services.signing import Caller, SignRequest
from tests.support.lifecycle import spec
from tests.support.service import Installation
from tests.support.softhsm import Token
from tests.support.wiring import LastingBackend, install_backend_type, write_config

AUDIT = '[audit]\ndirectory = "audit"\ncheckpoint_keyset = "notary"\n'
NASTY = "<script>alert(1)</script>\"'&"
SIGNER = Principal("billing", (Grant(frozenset({Action.SIGN}), ("*",)),))


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> LastingBackend:
    made = LastingBackend()
    install_backend_type(monkeypatch, made)
    return made


@pytest.fixture
def service(backend: LastingBackend, tmp_path: Path) -> Iterator[Service]:
    settings = load(write_config(tmp_path, AUDIT), environ={})
    prepare_database(settings)
    made = build(settings, {})
    nasty = spec("demo")
    made.keysets.create(
        replace(nasty, rules=replace(nasty.rules, fixed={"note": NASTY})), Actor(NASTY)
    )
    made.keysets.create(spec("notary"), Actor("olga"))
    for _ in range(3):
        made.signing.sign_jwt(Caller(SIGNER, "r"), "demo", SignRequest({"sub": "a"}))
    yield made
    made.close()


def run(directory: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["--config", str(directory / "kmsjwks.toml"), *words])


def report(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, (result.stderr, result.exception)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_every_key_with_dates_device_and_deeds(service: Service, tmp_path: Path) -> None:
    gone = next(key for key in service.store.keys("demo") if key.state is KeyState.ACTIVE)
    service.keys.compromise(gone.kid, Actor("olga", request_id="r-7"))
    service.planner.tick()
    service.close()
    found = report(run(tmp_path, "evidence", "demo"))
    assert found["asked_by"].startswith("cli:")
    assert found["verification"] == "always"
    (demo,) = found["keysets"]
    assert {key.kid for key in service.store.keys("demo")} == {key["kid"] for key in demo["keys"]}
    assert {one["kid"] for one in demo["jwks"]["keys"]} == {key["kid"] for key in demo["keys"]}
    used = next(key for key in demo["keys"] if key["kid"] == gone.kid)
    assert (used["use"]["tokens"], used["use"]["by_principal"]) == (3, {"billing": 3})
    assert used["times"]["compromised_at"] is not None
    assert used["device"] == {
        "reachable": None,
        "said": "The private key was destroyed; there is none to ask.",
    }
    active = next(key for key in demo["keys"] if key["state"] == "active")
    # The fake's private keys are in memory, and it says so.
    assert active["device"]["extraction_refused"] is False
    assert "The device did not refuse to hand out the private value." in active["findings"]
    assert any(active["kid"] in one for one in found["findings"])
    assert {"keyset-created", "compromised"} <= {one["event"] for one in demo["events"]}
    acts = {(one["event"], one["phase"], one["principal"]) for one in demo["acts"]}
    assert ("lifecycle.compromised", "outcome", "olga") in acts
    assert "backend.destroy-key" in {one["event"] for one in demo["acts"]}
    assert found["audit"]["sound"]
    assert found["audit"]["last_checkpoint"] is not None


def test_a_device_that_is_away_is_said_and_no_failure(
    service: Service, backend: LastingBackend, tmp_path: Path
) -> None:
    service.close()
    backend.break_with(BackendUnavailable("The token does not answer."))
    found = report(run(tmp_path, "evidence"))
    assert len(found["keysets"]) == 2
    assert len(found["findings"]) == 4
    assert all("Not reachable: The token does not answer." in one for one in found["findings"])


def test_a_trail_that_was_tampered_with_is_said(service: Service, tmp_path: Path) -> None:
    service.close()
    (path,) = (tmp_path / "audit").glob("*.jsonl")
    path.write_bytes(path.read_bytes().replace(b'"billing"', b'"nobody"', 1))
    found = report(run(tmp_path, "evidence"))
    assert not found["audit"]["sound"]
    assert found["audit"]["problems"][0]["kind"] == "edited"
    page = run(tmp_path, "evidence", "-o", "html").stdout
    assert "The trail was tampered with" in page


def test_there_is_no_such_keyset(service: Service, tmp_path: Path) -> None:
    result = run(tmp_path, "evidence", "nobody")
    assert (result.exit_code, result.stdout) == (1, "")


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_self_contained_and_escaped(service: Service, tmp_path: Path) -> None:
    service.close()
    target = tmp_path / "report.html"
    result = run(tmp_path, "evidence", "--format", "html", "--output", str(target))
    assert (result.exit_code, result.stdout) == (0, "")
    text = target.read_text()
    page = _Page()
    page.feed(text)
    assert not {"script", "img", "link", "iframe", "object"} & set(page.tags)
    assert all(link.startswith("#") for link in page.links)
    assert "url(" not in text and "@import" not in text
    assert NASTY in page.text
    assert "<script>alert" not in text
    for key in service.store.keys("demo"):
        assert key.kid in page.text


def test_what_softhsm_says(own_token: Token, tmp_path: Path) -> None:
    installation = Installation(tmp_path / "service", own_token.options())
    installation.create_keyset("demo", "ES256")
    done = installation.cli("evidence", "demo")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for key in found["keysets"][0]["keys"]:
        assert key["device"]["extraction_refused"] is True
        assert key["device"]["attributes"]["CKA_EXTRACTABLE"] is False
        assert key["findings"] == []
    pin = own_token.pin_file.read_text().strip()
    page = installation.cli("evidence", "-o", "html").stdout
    assert pin not in done.stdout and pin not in page
    assert re.search(r"CKA_EXTRACTABLE</th><td>no<", page)
