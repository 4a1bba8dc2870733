"""The last known good documents: what survives crashes, and what is not believed."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kmsjwks.domain.documents import Document, make_document
from kmsjwks.storage import lastgood
from kmsjwks.storage.lastgood import LastGoodDocuments
from tests.support.documents import NOW, keyset_of, rendered

OLD = rendered(keyset_of("one"))
NEW = rendered(keyset_of("one"), keyset_of("two", "RS256"), serials=(0, 1))
JWKS = "/.well-known/jwks.json"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "documents.json"


def saved(path: Path, documents: dict[str, Document] = OLD) -> LastGoodDocuments:
    last = LastGoodDocuments(path)
    last.save(documents, revision=5, taken_at=NOW)
    return last


def test_what_was_saved_comes_back_equal_in_another_process_lifetime(path: Path) -> None:
    saved(path, NEW)
    assert LastGoodDocuments(path).load() == NEW
    assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444


def test_there_is_nothing_before_the_first_save(path: Path, caplog: Any) -> None:
    assert LastGoodDocuments(path).load() == {}
    assert caplog.records == []


def test_the_file_is_written_only_when_documents_change(path: Path) -> None:
    last = saved(path)
    before = path.stat().st_ino
    last.save(OLD, revision=5, taken_at=NOW)
    LastGoodDocuments(path).save(dict(OLD), revision=6, taken_at=NOW + 1)
    assert path.stat().st_ino == before
    last.save(NEW, revision=6, taken_at=NOW + 1)
    assert LastGoodDocuments(path).load() == NEW


@pytest.mark.parametrize(
    ("revision", "taken_at", "wins"),
    [
        (4, NOW - 1, False),
        (5, NOW - 1, False),
        (6, NOW - 1, True),  # the clock was set back
        (4, NOW + 1, True),  # the database was restored
        (5, NOW + 1, True),  # time alone withdrew a key
    ],
)
def test_an_older_snapshot_never_replaces_a_newer_one(
    path: Path, revision: int, taken_at: float, wins: bool
) -> None:
    saved(path)
    LastGoodDocuments(path).save(NEW, revision=revision, taken_at=taken_at)
    assert LastGoodDocuments(path).load() == (NEW if wins else OLD)


def test_a_file_that_vanished_is_written_again(path: Path) -> None:
    last = saved(path)
    path.unlink()
    last.save(OLD, revision=5, taken_at=NOW)
    assert last.load() == OLD


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_crash_before_the_rename_leaves_the_old_file(
    path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(path)
    process = multiprocessing.get_context("fork").Process(target=_die_in, args=(path, step))
    process.start()
    process.join(20)
    assert process.exitcode == 9
    assert path.with_name("documents.json.new").exists()
    assert LastGoodDocuments(path).load() == OLD
    LastGoodDocuments(path).save(NEW, revision=6, taken_at=NOW + 1)
    assert LastGoodDocuments(path).load() == NEW
    assert sorted(one.name for one in path.parent.iterdir()) == [
        "documents.json",
        "documents.json.lock",
    ]


def _die_in(path: Path, step: str) -> None:
    def die(*_: object) -> None:
        os._exit(9)

    if step == "fsync":
        os.fsync = die  # type: ignore[assignment]
    else:
        Path.replace = die  # type: ignore[method-assign, assignment]
    LastGoodDocuments(path).save(NEW, revision=6, taken_at=NOW + 1)


def test_processes_that_write_at_once_leave_the_newest(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_save_many, args=(path, number)) for number in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 6
    assert LastGoodDocuments(path).load() == _numbered(59)


def _numbered(number: int) -> dict[str, Document]:
    return {JWKS: make_document(OLD[JWKS].body, OLD[JWKS].media_type, f"max-age={number}")}


def _save_many(path: Path, first: int) -> None:
    for number in range(first, 60, 6):
        LastGoodDocuments(path).save(_numbered(number), revision=number, taken_at=NOW + number)


def test_a_stopped_holder_of_the_lock_delays_by_a_bounded_time(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lastgood, "_LOCK_PATIENCE", 0.1)
    last = saved(path)
    with lastgood._locked(path.with_name("documents.json.lock")):
        last.save(NEW, revision=6, taken_at=NOW + 1)
        last.save(NEW, revision=6, taken_at=NOW + 1)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    last.save(NEW, revision=6, taken_at=NOW + 1)
    assert last.load() == NEW


def test_a_disk_that_cannot_be_written_is_told_once_and_raises_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_text("a file where the directory should be")
    last = LastGoodDocuments(tmp_path / "state" / "documents.json")
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            last.save(OLD, revision=5, taken_at=NOW)
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        (tmp_path / "state").unlink()
        last.save(OLD, revision=5, taken_at=NOW)
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]
    assert last.load() == OLD


def _with_body(content: Any, change: Callable[[Any], None], path: str = JWKS) -> None:
    """Change a document and make its digest right again, as somebody who tampers would."""
    stored = content["documents"][path]
    body = json.loads(stored["body"])
    change(body)
    stored["body"] = json.dumps(body)
    stored["sha256"] = hashlib.sha256(stored["body"].encode()).hexdigest()


def _in_key(**members: Any) -> Callable[[Any], None]:
    return lambda content: _with_body(content, lambda body: body["keys"][0].update(members))


TAMPERED: dict[str, Callable[[Any], object]] = {
    "private member": _in_key(d="AQAB"),
    "symmetric key": _in_key(kty="oct"),
    "another key under the kid": _in_key(x="A" * 43),
    "another use": _in_key(use="enc"),
    "a member that is no text": _in_key(key_ops=["verify"]),
    "a key twice": lambda c: _with_body(c, lambda body: body["keys"].append(body["keys"][0])),
    "no keys": lambda c: _with_body(c, lambda body: body.pop("keys")),
    "metadata without issuer": lambda c: _with_body(
        c, lambda body: body.pop("issuer"), "/.well-known/openid-configuration"
    ),
    "damaged body": lambda c: c["documents"][JWKS].update(body='{"keys":[]}'),
    "header injection": lambda c: c["documents"][JWKS].update(cache_control="a\r\nSet-Cookie: b"),
    "foreign media type": lambda c: c["documents"][JWKS].update(media_type="text/html"),
    "foreign path": lambda c: c["documents"].update(x=c["documents"][JWKS]),
    "missing member": lambda c: c["documents"][JWKS].pop("sha256"),
    "no time": lambda c: c.pop("taken_at"),
    "time beyond all bounds": lambda c: c.update(taken_at=10**30),
    "no documents": lambda c: c.update(documents=[]),
    "format of another version": lambda c: c.update(format=2),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_what_was_tampered_with_is_not_served(path: Path, name: str, caplog: Any) -> None:
    saved(path)
    content = json.loads(path.read_text())
    TAMPERED[name](content)
    path.write_text(json.dumps(content))
    assert LastGoodDocuments(path).load() == {}
    assert [record.levelname for record in caplog.records] == ["ERROR"]


@pytest.mark.parametrize("data", [b"", b"{", b"\x00" * 4096, b"[]", b"[" * 100_000, b"\xff"])
def test_a_damaged_file_is_told_and_replaced(path: Path, data: bytes, caplog: Any) -> None:
    saved(path)
    path.write_bytes(data)
    assert LastGoodDocuments(path).load() == {}
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    saved(path)
    assert LastGoodDocuments(path).load() == OLD


def test_every_truncation_is_noticed(path: Path) -> None:
    saved(path)
    data = path.read_bytes()
    for length in range(0, len(data), 37):
        path.write_bytes(data[:length])
        assert LastGoodDocuments(path).load() == {}


def test_what_is_no_regular_file_blocks_nobody(path: Path, caplog: Any) -> None:
    path.parent.mkdir()
    os.mkfifo(path)
    assert LastGoodDocuments(path).load() == {}
