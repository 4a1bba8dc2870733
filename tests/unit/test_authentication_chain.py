"""The chain: which credential counts, which ways are on, tokens that expire."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest
from werkzeug.datastructures import Headers
from werkzeug.test import EnvironBuilder

from kmsjwks.config import load
from kmsjwks.domain.errors import Unauthenticated
from kmsjwks.http.authentication import authenticate, build_chain
from tests.support.certificates import HOUR, Authority

NOW = 1_800_000_000
HASHES = {name: sha256(name.encode()).hexdigest() for name in ("old", "new", "late", "other")}
CONFIG = f"""
[backends.x]
type = "pkcs11"
[mtls]
source = "nginx"
trusted_proxies = ["127.0.0.1"]
[clients.a]
token_sha256 = ["{HASHES["old"]}", "{HASHES["new"]}"]
certificates = [{{ dns = "a.example" }}]
[[clients.a.tokens]]
sha256 = "{HASHES["late"]}"
expires = 2027-01-15T08:00:00Z  # NOW
[clients.b]
token_sha256 = ["{HASHES["other"]}"]
"""


class Clock:
    time = float(NOW)

    def now(self) -> float:
        return self.time


Who = Callable[..., str]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Callable[[str], Who]:
    def make(config: str) -> Who:
        path = tmp_path / "kmsjwks.toml"
        path.write_text(config)
        chain = build_chain(load(path, environ={}), clock)

        def who(token: str | None = None, headers: Mapping[str, str] | None = None) -> str:
            sent = dict(headers or {})
            if token is not None:
                sent["Authorization"] = f"Bearer {token}"
            environ = EnvironBuilder(headers=Headers(sent)).get_environ()
            return authenticate(chain, {**environ, "REMOTE_ADDR": "127.0.0.1"}).name

        return who

    return make


@pytest.fixture
def who(make: Callable[[str], Who]) -> Who:
    return make(CONFIG)


def refused(who: Who, *args: str | None, headers: Mapping[str, str] | None = None) -> bool:
    """Whether a credential was presented that is not valid; False where there was none."""
    with pytest.raises(Unauthenticated) as caught:
        who(*args, headers=headers)
    return caught.value.presented


def test_several_tokens_of_a_client(who: Who) -> None:
    assert [who("old"), who("new"), who("other")] == ["a", "a", "b"]


@pytest.mark.parametrize("token", ["nobody", "", "old ", "a.b.c", "ol", "OLD"])
def test_unknown_tokens(who: Who, token: str) -> None:
    if token == "old ":
        assert who(token) == "a"  # spaces around a credential are not part of it
    else:
        assert refused(who, token)


def test_a_token_expires(who: Who, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    clock.time = NOW - 1
    assert who("late") == "a"
    clock.time = NOW
    assert refused(who, "late")
    assert "client a presented a token that has expired" in caplog.text
    assert who("old") == "a"


def test_an_expired_token_is_told_apart_from_an_unknown_one_by_nothing(who: Who) -> None:
    texts = set()
    for token in ("late", "nobody"):
        with pytest.raises(Unauthenticated) as caught:
            who(token)
        texts.add((str(caught.value), caught.value.presented))
    assert len(texts) == 1


def test_bearer_tokens_can_be_turned_off(make: Callable[[str], Who]) -> None:
    assert refused(make(CONFIG + "[bearer]\nenabled = false\n"), "old")


def test_a_certificate_does_not_make_a_wrong_token_good(who: Who) -> None:
    now = datetime.fromtimestamp(NOW, UTC)
    issued = Authority().issue(hosts=["a.example"], valid=(now - HOUR, now + HOUR))
    headers = {"ClientCert": issued.escaped}
    assert who(headers=headers) == "a"
    assert who("other", headers=headers) == "b"
    assert refused(who, "nobody", headers=headers)


def test_nothing(who: Who) -> None:
    assert not refused(who)
    assert not refused(who, headers={"Authorization": "Basic YTpi"})
    assert not refused(who, headers={"ClientCert": "nonsense"})
