"""What recurs in a process costs no more transactions with many keysets than with one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import event
from sqlalchemy.pool import Pool

from kmsjwks.bootstrap import Service, build, prepare_database
from kmsjwks.config import load
from kmsjwks.domain.algorithms import find_algorithm
from kmsjwks.domain.timing import RotationSchedule
from kmsjwks.domain.tokens import TokenRules
from kmsjwks.services.acting import Actor
from kmsjwks.services.keysets import KeysetSpec
from tests.support.wiring import LastingBackend, install_backend_type, write_config


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    install_backend_type(monkeypatch, LastingBackend())
    quiet = "[snapshot]\nrefresh_interval = 60\n"  # but for what a test asks for
    settings = load(write_config(tmp_path, quiet), environ={})
    prepare_database(settings)
    service = build(settings, {})
    yield service
    service.close()


def create(service: Service, names: range) -> None:
    for name in names:
        rules = TokenRules(issuer=f"http://127.0.0.1:8080/{name}")
        spec = KeysetSpec(f"k{name}", find_algorithm("ES256"), "fake", rules, RotationSchedule())
        service.keysets.create(spec, Actor("test"))


@contextmanager
def counted() -> Iterator[list[object]]:
    """One entry for each time that a connection to the database was taken."""
    taken: list[object] = []

    def take(*_: object) -> None:
        taken.append(None)

    event.listen(Pool, "checkout", take)
    try:
        yield taken
    finally:
        event.remove(Pool, "checkout", take)


def test_a_tick_with_nothing_due(service: Service) -> None:
    create(service, range(1))
    with counted() as few:
        assert not service.planner.tick().done
    create(service, range(1, 12))
    with counted() as many:
        assert not service.planner.tick().done
    assert 0 < len(many) == len(few)


def test_a_look_at_the_database(service: Service) -> None:
    """The first reads and reserves everything; another, that nothing has changed."""
    create(service, range(12))
    with counted() as first:
        ready = service.snapshots.keyset("k11")
    assert ready is not None
    assert 0 < len(first) <= 8
    with counted() as second:
        service.snapshots.refresh()
    looks = 2  # of one that begins after the call
    assert 0 < len(second) <= looks
    now = service.clock.now()
    signing = ready.active_at(now)
    assert signing is not None
    exp = int(now) + ready.keyset.rules.max_lifetime
    service.snapshots.leases.signed(signing.key.kid, exp)
