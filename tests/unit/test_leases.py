"""What a process may sign is reserved before, and settled afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmsjwks.domain.errors import StoreUnavailable
from kmsjwks.domain.ports import Lease
from kmsjwks.services.leases import LeaseKeeper
from kmsjwks.storage.engine import make_engine
from kmsjwks.storage.keystore import SqlKeyStore
from kmsjwks.storage.migration import migrate

NOW, GRACE, LIFETIME = 1_900_000_000, 900, 3600


@pytest.fixture
def store(tmp_path: Path) -> SqlKeyStore:
    engine = make_engine(f"sqlite:///{tmp_path / 'leases.db'}")
    migrate(engine)
    return SqlKeyStore(engine)


@pytest.fixture
def keeper(store: SqlKeyStore) -> LeaseKeeper:
    made = LeaseKeeper(store, "me", GRACE)
    made.reserve({"k": LIFETIME}, NOW)
    return made


def test_whatever_is_signed_before_the_grace_ends_was_reserved(
    store: SqlKeyStore, keeper: LeaseKeeper
) -> None:
    """At every look at the database: it may be the last one, and the process may die."""
    writes = set()
    for look in range(NOW, NOW + 3 * GRACE, 20):
        keeper.reserve({"k": LIFETIME}, look)
        lease = store.leases("k")[0]
        assert lease.max_exp >= look + GRACE + LIFETIME
        writes.add(lease.max_exp)
    assert len(writes) <= 7  # not every look writes


def test_what_was_not_reserved_is_not_released(keeper: LeaseKeeper) -> None:
    keeper.signed("k", NOW + GRACE + LIFETIME)
    with pytest.raises(StoreUnavailable):
        keeper.signed("k", NOW + 2 * GRACE + LIFETIME)
    with pytest.raises(StoreUnavailable):
        keeper.signed("another", NOW + 1)


def test_a_longer_lifetime_is_reserved_at_once(store: SqlKeyStore, keeper: LeaseKeeper) -> None:
    keeper.reserve({"k": 10 * LIFETIME}, NOW + 2)
    assert store.leases("k")[0].max_exp >= NOW + 2 + GRACE + 10 * LIFETIME


def test_settled_once_the_key_is_left_behind(store: SqlKeyStore, keeper: LeaseKeeper) -> None:
    keeper.signed("k", NOW + 70)
    keeper.signed("k", NOW + 50)
    keeper.settle(NOW + 29)
    assert not store.leases("k")[0].final
    keeper.settle(NOW + 30)
    assert list(store.leases("k")) == [Lease("k", "me", NOW + 70, True)]
    with pytest.raises(StoreUnavailable):
        keeper.signed("k", NOW + 80)


def test_a_key_that_comes_back_gets_a_lease_of_its_own(
    store: SqlKeyStore, keeper: LeaseKeeper
) -> None:
    """Held, unscheduled, and scheduled again."""
    keeper.signed("k", NOW + 70)
    for turn in (1, 2):
        keeper.settle(NOW + 100 * turn + 50)
        keeper.reserve({"k": LIFETIME}, NOW + 100 * turn + 60)
        keeper.signed("k", NOW + 100 * turn + 90)
    keeper.close()
    assert list(store.leases("k")) == [
        Lease("k", "me", NOW + 70, True),
        Lease("k", "me.1", NOW + 190, True),
        Lease("k", "me.2", NOW + 290, True),
    ]


def test_closing_settles_everything_and_for_good(store: SqlKeyStore, keeper: LeaseKeeper) -> None:
    keeper.reserve({"next": LIFETIME}, NOW)
    keeper.signed("k", NOW + 5)
    keeper.close()
    keeper.reserve({"k": LIFETIME}, NOW + 1)
    assert store.leases("k")[0] == Lease("k", "me", NOW + 5, True)
    assert store.leases("next")[0] == Lease("next", "me", 0, True)


def test_settling_is_tried_again(
    store: SqlKeyStore, keeper: LeaseKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper.signed("k", NOW + 5)
    with monkeypatch.context() as patch:
        patch.setattr(store, "finish_lease", _down)
        with pytest.raises(StoreUnavailable):
            keeper.settle(NOW + 40)
    assert not store.leases("k")[0].final
    keeper.settle(NOW + 41)
    assert store.leases("k")[0] == Lease("k", "me", NOW + 5, True)


def _down(*_: object) -> None:
    raise StoreUnavailable("down", retry_after=1)


def test_a_process_that_dies_leaves_its_reservation(
    store: SqlKeyStore, keeper: LeaseKeeper
) -> None:
    keeper.signed("k", NOW + 5)
    del keeper
    lease = store.leases("k")[0]
    assert (lease.final, lease.max_exp >= NOW + GRACE + LIFETIME) == (False, True)
