"""GET /v1/audit: what a grant lets somebody see, pages without loss, refused parameters."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from kmsjwks.bootstrap import Service, build, prepare_database
from kmsjwks.config import load
from kmsjwks.domain.access import Action, Grant, Principal
from kmsjwks.domain.auditfilter import RecordFilter
from kmsjwks.http.app import create_app
from kmsjwks.services import auditsearch
from kmsjwks.services.auditsearch import AuditSearch
from kmsjwks.services.signing import Caller, SignRequest
from kmsjwks.storage.audit_reader import AuditReader
from tests.support.lifecycle import OPERATOR, spec
from tests.support.wiring import LastingBackend, install_backend_type, write_config

CLIENTS = "".join(
    f"""
[clients.{name}]
token_sha256 = ["{hashlib.sha256(name.encode()).hexdigest()}"]
grants = [{{ actions = ["{action}"], keysets = ["{keysets}"] }}]
"""
    for name, action, keysets in (
        ("auditor", "audit", "*"), ("partial", "audit", "team-*"), ("reader", "read", "*"),
    )
)  # fmt: skip
SIGNER = Principal("alice", (Grant(frozenset({Action.SIGN}), ("*",)),))


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    install_backend_type(monkeypatch, LastingBackend())
    settings = load(write_config(tmp_path, CLIENTS + '[audit]\ndirectory = "audit"\n'), environ={})
    prepare_database(settings)
    made = build(settings, {})
    for name in ("demo", "team-a"):
        made.keysets.create(spec(name), OPERATOR)
        for number in range(5):
            claims = {"sub": "a", "jti": f"{name}-{number}"}
            made.signing.sign_jwt(Caller(SIGNER, "r"), name, SignRequest(claims))
    yield made
    made.close()


Get = Callable[..., Any]


@pytest.fixture
def get(service: Service) -> Get:
    client: FlaskClient = create_app(service).test_client()

    def ask(who: str, query: str = "") -> Any:
        return client.get(f"/v1/audit{query}", headers={"Authorization": f"Bearer {who}"})

    return ask


def test_newest_first_and_all_of_it_for_all_keysets(get: Get) -> None:
    answer = get("auditor")
    assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-store")
    records = answer.json["records"]
    assert answer.json["before"] is None
    times = [one["time"] for one in records]
    assert times == sorted(times, reverse=True)
    # The record that opens a chain is written after the first was made: it may be a little later.
    assert sorted(one["seq"] for one in records) == list(range(len(records)))


def test_a_grant_shows_its_keysets_and_nothing_else(get: Get) -> None:
    records = get("partial").json["records"]
    assert {one.get("keyset") for one in records} == {"team-a"}
    assert get("partial", "?keyset=demo").status_code == 403
    assert get("partial", "?jti=demo-1").json["records"] == []
    assert get("partial", "?keyset=team-nobody").json == {"records": [], "before": None}


def test_others_see_nothing(get: Get) -> None:
    assert get("reader").status_code == 403
    assert get("nobody").status_code == 401


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("?jti=demo-3", 1), ("?principal=alice", 10), ("?principal=alice&keyset=demo", 5),
        ("?event=jwt.*", 10), ("?event=jwt.*&limit=3", 3), ("?until=2001-01-01T00:00:00Z", 0),
        ("?since=2001-01-01T00:00:00%2B02:00&event=jwt.signed", 10),
    ],
)  # fmt: skip
def test_filters(get: Get, query: str, count: int) -> None:
    assert len(get("auditor", query).json["records"]) == count


@pytest.mark.parametrize(
    "query",
    [
        "?limit=0", "?limit=1001", "?limit=-1", "?limit=x", "?limit=", "?limit=%D9%A1", "?a=b",
        "?kid=a&kid=b", "?since=yesterday", "?since=1", "?until=2026-13-01T00:00:00Z",
        "?since=2026-01-01T00:00:00", "?before=x", "?before=1-2-3", "?jti=", f"?jti={'x' * 257}",
    ],
)  # fmt: skip
def test_parameters_that_are_refused(get: Get, query: str) -> None:
    answer = get("auditor", query)
    assert (answer.status_code, answer.json["code"]) == (400, "invalid-request")


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_pages_lose_nothing_and_repeat_nothing(get: Get, limit: int) -> None:
    every = get("auditor", "?event=jwt.*").json["records"]
    found, query = [], f"?event=jwt.*&limit={limit}"
    before = ""
    while True:
        page = get("auditor", query + before).json
        found += page["records"]
        assert len(page["records"]) <= limit
        if page["before"] is None:
            break
        before = f"&before={page['before']}"
    assert found == every


class _Endless:
    def __init__(self) -> None:
        self.read = 0

    def newest(self, wanted: RecordFilter) -> Iterator[dict[str, Any]]:
        until = wanted.until if wanted.until is not None else 1e9
        number = int(until * 10)
        while True:
            self.read += 1
            yield {"event": "x", "time": number / 10, "chain": "0" * 16, "seq": number}
            number -= 1


def test_a_page_reads_so_much_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditsearch, "_MAX_LOOKED_AT", 100)
    reader = _Endless()
    auditor = Principal("a", (Grant(frozenset({Action.AUDIT}), ("*",)),))
    page = AuditSearch(reader).page(auditor, RecordFilter(event="y"), 10)
    assert page.records == ()
    assert page.before is not None
    assert reader.read < 200
    after = AuditSearch(reader).page(auditor, RecordFilter(event="y"), 10, page.before)
    assert after.before is not None and after.before < page.before


class _Disordered:
    """Two chains whose times overlap, go back and coincide."""

    def __init__(self) -> None:
        self.records = [
            {"event": "x", "time": 1000 + (number // 3) + (0.5 if number % 4 == 0 else 0),
             "chain": "ab"[number % 2] * 16, "seq": number}
            for number in range(60)
        ]  # fmt: skip

    def newest(self, wanted: RecordFilter) -> Iterator[dict[str, Any]]:
        return (one for one in reversed(self.records) if wanted.matches(one))


def test_pages_over_times_that_go_back() -> None:
    search = AuditSearch(_Disordered())
    auditor = Principal("a", (Grant(frozenset({Action.AUDIT}), ("*",)),))
    found: list[int] = []
    before = None
    while True:
        page = search.page(auditor, RecordFilter(), 7, before)
        found += [one["seq"] for one in page.records]
        before = page.before
        if before is None:
            break
    assert sorted(found) == list(range(60))


def test_a_time_that_is_none_is_passed_over(service: Service, tmp_path: Path, get: Get) -> None:
    (path,) = (tmp_path / "audit").glob("*.jsonl")
    with path.open("ab") as file:
        file.write(b'{"event":"x","time":NaN,"chain":"a","seq":1}\n')
        file.write(b'{"event":"x","time":1e999,"chain":"a","seq":1}\n[1]\nnothing\n')
    assert get("auditor").status_code == 200


def test_going_back_in_a_large_file_begins_where_the_time_is(tmp_path: Path) -> None:
    name = f"audit-20260101T000000Z-{'a' * 16}-00001.jsonl"
    with (tmp_path / name).open("w") as file:
        for number in range(5000):
            filler = "x" * (number % 90)
            file.write(f'{{"event":"e","x":"{filler}","time":{number},"seq":{number}}}\n')
    for until in (0, 1, 1234, 4999, 9999):
        found = AuditReader(tmp_path).newest(RecordFilter(until=until))
        assert [one["seq"] for one in found] == list(range(min(until, 5000) - 1, -1, -1))
