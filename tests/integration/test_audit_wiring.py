"""The service as it is wired: what it does is in its audit directory, what is secret is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kmsjwks.bootstrap import Service, build, prepare_database
from kmsjwks.config import load
from kmsjwks.domain.access import Action, Grant, Principal
from kmsjwks.domain.audittrail import Status
from kmsjwks.domain.errors import AuditUnavailable, ConfigurationError
from kmsjwks.domain.keys import KeyState
from kmsjwks.services.acting import Actor
from kmsjwks.services.signing import Caller, SignRequest
from kmsjwks.storage.audit_reader import AuditReader
from tests.fakes import FakeBackend
from tests.support.audit import verified_records
from tests.support.lifecycle import spec
from tests.support.wiring import LastingBackend, install_backend_type, write_config

CALLER = Caller(Principal("alice", (Grant(frozenset({Action.SIGN}), ("*",)),)), "r-9")
OLGA = Actor("olga", request_id="r-8")


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    made = LastingBackend()
    install_backend_type(monkeypatch, made)
    return made


@pytest.fixture
def service(backend: FakeBackend, tmp_path: Path) -> Iterator[Service]:
    config = write_config(tmp_path, '[audit]\ndirectory = "audit"\ndurability = "disk"\n')
    settings = load(config, environ={})
    prepare_database(settings)
    made = build(settings, {})
    yield made
    made.close()


def test_a_keysets_life_is_in_one_closed_chain(service: Service, tmp_path: Path) -> None:
    service.keysets.create(spec(), OLGA)
    signed = service.signing.sign_jwt(CALLER, "demo", SignRequest({"sub": "a-claim-of-hers"}))
    gone = next(key for key in list(service.store.keys()) if key.state is KeyState.ACTIVE)
    service.keys.compromise(gone.kid, OLGA)
    service.planner.tick()
    service.close()
    records = verified_records(tmp_path / "audit")
    done = [one["event"] for one in records if one.get("phase", "outcome") == "outcome"]
    assert done[:6] == [
        "audit.opened", "backend.create-key", "backend.create-key", "lifecycle.keyset-created",
        "jwt.signed", "lifecycle.compromised",
    ]  # fmt: skip
    assert {"backend.destroy-key", "lifecycle.destroyed"} < set(done)
    by_olga = [one for one in records if one.get("principal") == "olga"]
    assert {one["request_id"] for one in by_olga} == {"r-8"}
    (chain,) = AuditReader(tmp_path / "audit").verify().chains
    assert (chain.status, chain.problem) == (Status.CLOSED, None)
    written = "".join(path.read_text() for path in (tmp_path / "audit").iterdir())
    for secret in ("a-claim-of-hers", signed.token, signed.token.split(".")[2], "sqlite"):
        assert secret not in written


def test_without_the_trail_nothing_is_made_or_changed(
    service: Service, backend: FakeBackend, tmp_path: Path
) -> None:
    (tmp_path / "audit").write_text("in the way")
    with pytest.raises(AuditUnavailable):
        service.keysets.create(spec(), OLGA)
    assert list(backend.list_keys()) == []
    assert list(service.store.keysets()) == []
    (tmp_path / "audit").unlink()
    service.keysets.create(spec(), OLGA)


def test_a_directory_that_others_may_write_to_stops_the_start(
    backend: FakeBackend, tmp_path: Path
) -> None:
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit").chmod(0o777)
    config = write_config(tmp_path, '[audit]\ndirectory = "audit"\n')
    with pytest.raises(ConfigurationError, match=r"audit\.directory: others may write"):
        build(load(config, environ={}), {})
