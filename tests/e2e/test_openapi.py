"""The description and its page as the installed service serves them, to anybody."""

from __future__ import annotations

import re

from openapi_spec_validator import validate

from tests.support.http import JSON
from tests.support.openapi import mismatches
from tests.support.service import Server


def test_the_description(server: Server) -> None:
    answer = server.http().get("/openapi/openapi.json")
    assert (answer.status, answer.header("Content-Type")) == (200, "application/json")
    validate(answer.json())


def test_the_page_and_its_files(server: Server) -> None:
    http = server.http()
    page = http.get("/openapi/")
    assert (page.status, page.header("Content-Type")) == (200, "text/html; charset=utf-8")
    assert page.header("Content-Security-Policy").startswith("default-src 'none'; script-src")
    linked = re.findall(r'(?:src|href)="([^"]+)"', page.body.decode())
    found = {name: http.get(f"/openapi/{name}") for name in linked}
    assert {name: answer.status for name, answer in found.items()} == dict.fromkeys(linked, 200)
    assert len(found["swagger-ui-bundle.js"].body) > 1_000_000
    assert found["page.js"].header("Content-Type") == "text/javascript; charset=utf-8"


def test_what_it_says_of_answers(server: Server) -> None:
    """The other answers are checked by test_fuzz."""
    http = server.http("all")
    signed = server.sign("es256").json()
    path = "/v1/keysets/es256"
    answers = {
        "SignedToken": signed,
        "Verification": http.post(f"{path}/verify", {"token": signed["token"]}).json(),
        "KeysetWithKeys": http.get(path).json(),
        "Keysets": http.get("/v1/keysets").json(),
        "Jwks": http.get("/.well-known/jwks.json").json(),
        "Metadata": http.get("/.well-known/openid-configuration").json(),
        "Ready": http.get("/readyz").json(),
        "Problem": http.request("POST", f"{path}/sign/jwt", b"x", JSON).json(),
    }
    wrong = {name: found for name, answer in answers.items() if (found := mismatches(answer, name))}
    assert not wrong
