"""Which documents there are, which keys they hold, and when they warn."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import Any

import pytest

from kmsjwks.domain.documents import Document, make_document
from kmsjwks.domain.errors import PrivateMaterialRefused
from kmsjwks.domain.keys import KeyState
from kmsjwks.services import publication
from kmsjwks.services.publication import DocumentWarnings, issuer_path, left_out, render, warnings
from tests.support.documents import ISSUER, NOW, key_in, keyset_of, rendered

JWKS = "/.well-known/jwks.json"


def keys_at(documents: dict[str, Document], path: str) -> list[dict[str, Any]]:
    keys: list[dict[str, Any]] = json.loads(documents[path].body)["keys"]
    return keys


def algorithms_at(documents: dict[str, Document], path: str) -> list[str]:
    return [key["alg"] for key in keys_at(documents, path)]


def jwks_of(count: int, padding: int = 0) -> Document:
    keys = [{"kty": "EC", "kid": str(number), "x": "x" * padding} for number in range(count)]
    return make_document(json.dumps({"keys": keys}).encode(), "application/jwk-set+json", "")


def test_the_issuer_has_all_keys_and_each_keyset_its_own() -> None:
    documents = rendered(keyset_of("one"), keyset_of("two", "RS256"))
    assert algorithms_at(documents, JWKS) == ["ES256", "RS256"]
    assert algorithms_at(documents, f"/keysets/one{JWKS}") == ["ES256"]
    assert algorithms_at(documents, f"/keysets/two{JWKS}") == ["RS256"]


@pytest.mark.parametrize("breaking", ["ES256K", "Ed448"])
def test_what_breaks_clients_stays_out_of_a_shared_document(breaking: str) -> None:
    """Whatever check_issuer let through in an earlier version."""
    keysets = (keyset_of("plain"), keyset_of("odd", breaking))
    documents = rendered(*keysets)
    metadata = json.loads(documents["/.well-known/openid-configuration"].body)
    assert algorithms_at(documents, JWKS) == ["ES256"]
    assert metadata["id_token_signing_alg_values_supported"] == ["ES256"]
    assert len(keys_at(documents, f"/keysets/odd{JWKS}")) == 1
    [sentence] = left_out(keysets)
    assert "odd" in sentence


@pytest.mark.parametrize("breaking", ["ES256K", "Ed448"])
def test_what_breaks_clients_is_at_an_issuer_of_its_own(breaking: str) -> None:
    keysets = (keyset_of("plain"), keyset_of("odd", breaking, f"{ISSUER}/odd"))
    documents = rendered(*keysets)
    assert len(keys_at(documents, f"/odd{JWKS}")) == 1
    assert left_out(keysets) == []


def test_only_published_keys_are_there() -> None:
    keyset = keyset_of("one")
    states = list(KeyState)
    keys = [key_in(keyset, serial, state) for serial, state in enumerate(states)]
    ended = replace(keys[2], times=replace(keys[2].times, withdraw_at=NOW))
    documents = render([keyset], {"one": keys}, max_age=300, now=NOW)
    later = render([keyset], {"one": [ended]}, max_age=300, now=NOW)
    assert [key["kid"] for key in keys_at(documents, JWKS)] == [key.kid for key in keys[:3]]
    assert keys_at(later, JWKS) == keys_at(later, f"/keysets/one{JWKS}") == []


def test_one_kid_is_in_a_document_once() -> None:
    keysets = [keyset_of("one"), keyset_of("two")]
    documents = render(
        keysets, {one.name: [key_in(one), key_in(one)] for one in keysets}, max_age=1, now=NOW
    )
    assert len(keys_at(documents, JWKS)) == 1


def test_an_issuer_at_the_path_of_a_keyset_has_that_address() -> None:
    keysets = (keyset_of("one"), keyset_of("two", "RS256", f"{ISSUER}/keysets/one"))
    assert algorithms_at(rendered(*keysets), f"/keysets/one{JWKS}") == ["RS256"]


def test_paths_are_as_servers_decode_them() -> None:
    assert issuer_path("https://issuer.example/a%20b") == "/a b"
    assert issuer_path("https://issuer.example") == ""


def test_a_private_member_stops_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        publication, "public_jwk", lambda *_: {"kty": "EC", "kid": "a", "alg": "ES256", "d": "x"}
    )
    with pytest.raises(PrivateMaterialRefused):
        rendered(keyset_of("one"))


def test_documents_well_within_the_limits_are_no_matter() -> None:
    assert warnings({"/a": jwks_of(49), "/b": jwks_of(1, 32 * 1024 - 100)}) == []
    assert warnings(rendered(keyset_of("one"), keyset_of("two", "RS256-4096"))) == []


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (jwks_of(50), "50 keys"),
        (jwks_of(1, 32 * 1024), "nears 51200"),
        (jwks_of(1, 50 * 1024), "clients refuse more than 51200"),
        (jwks_of(0), "holds no key"),
    ],
)
def test_warnings_name_the_document(document: Document, says: str) -> None:
    [warning] = warnings({"/team/.well-known/jwks.json": document, "/other": jwks_of(1)})
    assert "/team/.well-known/jwks.json" in warning
    assert says in warning


def test_a_warning_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    watcher = DocumentWarnings()
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            watcher.after_refresh({"/a": jwks_of(50)})
        assert len(watcher.current) == 1
        assert len(caplog.records) == 1
        watcher.after_refresh({"/a": jwks_of(49)})
    assert not watcher.current
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
