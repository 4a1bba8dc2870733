"""The API's description says what the application does and what the documentation shows."""

from __future__ import annotations

import hashlib
import json
import re
from importlib.resources import files
from pathlib import Path

import pytest
from flask import Flask
from openapi_spec_validator import validate

from kmsjwks.bootstrap import build, prepare_database
from kmsjwks.config import load
from kmsjwks.http.app import create_app
from kmsjwks.http.openapi.description import describe
from tests.support.openapi import mismatches, strict_description
from tests.support.wiring import LastingBackend, install_backend_type, write_config

DOCUMENT = Path(__file__).parents[2] / "docs" / "http-api.md"
EXAMPLES = [
    "SignRequest", "SignedToken", "BatchRequest", "BatchResult", "Verification", "Migration",
    "Backends", "KeysetRequest", "KeysetAct", "Act", "Proposal", "Ready",
]  # fmt: skip
"""The schemas of the examples in docs/http-api.md, in their order."""


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flask:
    install_backend_type(monkeypatch, LastingBackend())
    settings = load(write_config(tmp_path), environ={})
    prepare_database(settings)
    return create_app(build(settings, {}))


def test_it_is_openapi() -> None:
    validate(describe())
    validate(strict_description())


def routes(app: Flask) -> set[tuple[str, str]]:
    """Methods and paths, as a description names them; of a page's files nothing is described."""
    found = set()
    for rule in app.url_map.iter_rules():
        if rule.endpoint in ("openapi.asset", "openapi.to_page"):
            continue
        methods = (rule.methods or set()) - {"HEAD"}
        if methods != {"OPTIONS"}:  # Flask's own answer to OPTIONS goes with the other methods
            methods -= {"OPTIONS"}
        for path in expanded(rule.rule):
            found |= {(method.lower(), path) for method in methods}
    return found


def expanded(rule: str) -> list[str]:
    choice = re.search(r"<any\(([^)]*)\):\w+>", rule)
    if choice is None:
        return [re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule)]
    words = [word.strip("'\" ") for word in choice[1].split(",")]
    return [path for word in words for path in expanded(rule.replace(choice[0], word))]


def test_every_route_is_described_and_every_described_route_is_there(app: Flask) -> None:
    described = {
        (method, path) for path, methods in describe()["paths"].items() for method in methods
    }
    assert described == routes(app)


def test_every_parameter_of_a_path_is_described() -> None:
    for path, methods in describe()["paths"].items():
        for operation in methods.values():
            named = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"}
            assert named == set(re.findall(r"\{(\w+)\}", path))


def test_the_examples_of_the_documentation_match() -> None:
    examples = re.findall(r"^```json\n(.*?)^```", DOCUMENT.read_text("utf-8"), re.M | re.S)
    wrong = {
        schema: found
        for schema, example in zip(EXAMPLES, examples, strict=True)
        if (found := mismatches(json.loads(example), schema))
    }
    assert not wrong


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ("SignRequest", {"claims": {}, "alg": "none"}),
        ("SignRequest", {"ttl": 60}),
        ("SignedToken", {"token": "x", "kid": "x", "alg": "none", "exp": 1, "jti": "x"}),
        ("KeysetRequest", {"algorithm": "ES256", "backend": "hsm", "standby": {"now": True}}),
        ("Jwks", {"keys": [{"kty": "EC", "kid": "x", "alg": "ES256", "use": "sig", "d": "x"}]}),
    ],
)
def test_what_is_not_so_does_not_match(schema: str, value: object) -> None:
    assert mismatches(value, schema)


def test_every_code_of_the_documentation_is_described() -> None:
    errors = DOCUMENT.read_text("utf-8").partition("## Errors")[2]
    shown = {
        code
        for row in re.findall(r"^\| [\d, ]+ \| (.*?) \|", errors, re.M)
        for code in re.findall(r"`([\w-]+)`", row)
    }
    assert shown
    known = describe()["components"]["schemas"]["Problem"]["properties"]["code"]["enum"]
    assert shown <= set(known)


def test_the_page_loads_nothing_from_elsewhere(app: Flask) -> None:
    client = app.test_client()
    page = client.get("/openapi/")
    assert (page.status_code, page.content_type) == (200, "text/html; charset=utf-8")
    policy = page.headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "http" not in policy
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=", page.text)
    linked = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert "swagger-ui-bundle.js" in linked
    for name in linked:
        found = client.get(f"/openapi/{name}")
        assert found.status_code == 200, name
        assert found.headers["X-Content-Type-Options"] == "nosniff"
    assert client.get("/openapi/openapi.json").json == describe()


def test_a_forgotten_slash_leads_nowhere_else(app: Flask) -> None:
    found = app.test_client().get("/openapi", headers={"Host": "evil.example"})
    assert (found.status_code, found.headers["Location"]) == (308, "openapi/")
    assert "evil" not in found.text


def test_nothing_but_its_own_files_is_served(app: Flask) -> None:
    client = app.test_client()
    for name in ("page.html", "LICENSE", "../views.py", "..%2fviews.py", "%00", "swagger-ui.css/"):
        assert client.get(f"/openapi/{name}").status_code == 404, name


def test_the_files_of_others_are_unchanged() -> None:
    assets = files("kmsjwks.http.openapi") / "assets"
    listed = re.findall(r"^([0-9a-f]{64})  (\S+)$", (assets / "ORIGIN.txt").read_text(), re.M)
    assert len(listed) == 6
    for digest, name in listed:
        assert hashlib.sha256((assets / name).read_bytes()).hexdigest() == digest, name
