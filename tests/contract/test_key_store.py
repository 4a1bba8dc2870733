"""What every KeyStore must do, whatever database is behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest

from kmsjwks.domain.algorithms import ALGORITHMS, find_algorithm
from kmsjwks.domain.errors import Conflict
from kmsjwks.domain.keys import Key, Keyset, KeyState, KeyTimes
from kmsjwks.domain.ports import KeyStore
from kmsjwks.domain.tokens import TokenRules
from kmsjwks.storage.engine import make_engine
from kmsjwks.storage.keystore import SqlKeyStore
from kmsjwks.storage.migration import migrate

ES256 = find_algorithm("ES256")
NOW = 1_750_000_000

Open = Callable[[], KeyStore]  # each call is another store on the same, migrated database


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a new, empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/keys.db"
    url: str = request.getfixturevalue("postgres_schema_url")
    return url


@pytest.fixture
def open_store(database_url: str) -> Open:
    migrate(make_engine(database_url))
    return lambda: SqlKeyStore(make_engine(database_url))


@pytest.fixture
def store(open_store: Open) -> KeyStore:
    return open_store()


def keyset_named(name: str) -> Keyset:
    rules = TokenRules(
        issuer="https://issuer.example",
        audiences=("api", "caf\u00e9"),
        typ="at+jwt",
        max_lifetime=900,
        default_lifetime=60,
        required=("sub",),
        forbidden=("admin", "root"),
    )
    return Keyset(name=name, algorithm=ES256, backend="hsm", rules=rules, created_at=NOW)


def key_of(keyset: Keyset, kid: str | None = None) -> Key:
    return Key(
        kid=kid or f"kid-of-{keyset.name}",
        keyset=keyset.name,
        algorithm=keyset.algorithm,
        backend=keyset.backend,
        ref=f"ref-of-{kid or keyset.name}",
        spki=bytes(range(256)),
        state=KeyState.ACTIVE,
        times=KeyTimes(created_at=NOW, published_at=NOW, activate_at=NOW),
    )


def test_a_new_store_is_empty_and_well(store: KeyStore) -> None:
    store.check()
    assert list(store.keysets()) == []
    assert list(store.keys()) == []
    assert list(store.open_intents()) == []


def test_what_was_added_comes_back_equal_in_another_store(open_store: Open) -> None:
    keyset = keyset_named("demo")
    key = key_of(keyset)
    open_store().add_keyset(keyset, key)
    other = open_store()
    assert list(other.keysets()) == [keyset]
    assert list(other.keys()) == [key]


def test_every_time_of_a_key_comes_back(store: KeyStore) -> None:
    keyset = keyset_named("demo")
    times = KeyTimes(*(2**53 - number for number in range(len(fields(KeyTimes)))))
    key = replace(key_of(keyset), times=times, state=KeyState.DESTROYED, hold=True, version=2**40)
    store.add_keyset(keyset, key)
    assert list(store.keys()) == [key]


@pytest.mark.parametrize("state", KeyState)
def test_every_state_comes_back(store: KeyStore, state: KeyState) -> None:
    keyset = keyset_named("demo")
    store.add_keyset(keyset, replace(key_of(keyset), state=state))
    assert [key.state for key in list(store.keys())] == [state]


def test_every_algorithm_comes_back(store: KeyStore) -> None:
    for algorithm in ALGORITHMS:
        keyset = replace(keyset_named(algorithm.id.lower()), algorithm=algorithm)
        store.add_keyset(keyset, key_of(keyset))
    assert {keyset.algorithm for keyset in store.keysets()} == set(ALGORITHMS)
    assert {key.algorithm for key in list(store.keys())} == set(ALGORITHMS)


def test_keysets_and_keys_are_in_order(store: KeyStore) -> None:
    names = ["b", "a-b", "a.b", "a", "a_b"]
    for name in names:
        store.add_keyset(keyset_named(name), key_of(keyset_named(name)))
    assert [keyset.name for keyset in store.keysets()] == sorted(names)
    assert [key.keyset for key in list(store.keys())] == sorted(names)


def test_keys_of_one_keyset(store: KeyStore) -> None:
    one, other = keyset_named("one"), keyset_named("other")
    store.add_keyset(one, key_of(one))
    store.add_keyset(other, key_of(other))
    assert list(store.keys("one")) == [key_of(one)]
    assert list(store.keys("none")) == []


@pytest.mark.parametrize("name", ["", "a\0b", "\ufffd", "x" * 5000])
def test_what_is_no_name_has_no_keys(store: KeyStore, name: str) -> None:
    """It comes from a URL; PostgreSQL takes no NUL in a text."""
    assert store.keys(name) == []


def test_a_name_is_taken_once(store: KeyStore) -> None:
    keyset = keyset_named("demo")
    store.add_keyset(keyset, key_of(keyset))
    before = store.revision()
    with pytest.raises(Conflict, match="keyset demo exists already"):
        store.add_keyset(keyset, key_of(keyset, "another"))
    assert [key.kid for key in list(store.keys())] == ["kid-of-demo"]
    assert store.revision() == before


def test_a_kid_is_unique_in_the_installation(store: KeyStore) -> None:
    store.add_keyset(keyset_named("one"), key_of(keyset_named("one"), "same"))
    again = replace(key_of(keyset_named("two"), "same"), ref="another")
    with pytest.raises(Conflict, match="key same belongs to the keyset one"):
        store.add_keyset(keyset_named("two"), again)
    assert [keyset.name for keyset in store.keysets()] == ["one"]


def test_a_backend_key_serves_one_keyset(store: KeyStore) -> None:
    first = key_of(keyset_named("one"))
    store.add_keyset(keyset_named("one"), first)
    with pytest.raises(Conflict, match=f"holds the key {first.ref} for the keyset one"):
        store.add_keyset(keyset_named("two"), replace(key_of(keyset_named("two")), ref=first.ref))
    elsewhere = replace(keyset_named("three"), backend="other-hsm")
    store.add_keyset(elsewhere, replace(key_of(elsewhere), ref=first.ref))
    assert [keyset.name for keyset in store.keysets()] == ["one", "three"]


def test_a_key_of_another_keyset_is_refused(store: KeyStore) -> None:
    with pytest.raises(Conflict, match="does not fit"):
        store.add_keyset(keyset_named("one"), key_of(keyset_named("two")))
    assert list(store.keysets()) == []


def test_the_revision_grows_with_every_change_and_with_nothing_else(open_store: Open) -> None:
    store, reader = open_store(), open_store()
    seen = [reader.revision()]
    for name in ("one", "two"):
        store.add_keyset(keyset_named(name), key_of(keyset_named(name)))
        seen.append(reader.revision())
    assert seen == sorted(set(seen))
    store.begin_creation("r", "three", "hsm", ES256, NOW)
    store.check()
    list(store.keys())
    assert reader.revision() == seen[-1]


def test_an_intent_is_open_until_its_keyset_is_added(open_store: Open) -> None:
    store = open_store()
    store.begin_creation("r2", "later", "hsm", ES256, NOW + 1)
    store.begin_creation("r1", "demo", "hsm", ES256, NOW)
    assert [tuple(intent) for intent in open_store().open_intents()] == [
        ("r1", "demo", "hsm", ES256, NOW),
        ("r2", "later", "hsm", ES256, NOW + 1),
    ]
    store.add_keyset(keyset_named("demo"), key_of(keyset_named("demo")), request_id="r1")
    assert [intent[0] for intent in open_store().open_intents()] == ["r2"]


def test_beginning_again_changes_nothing(store: KeyStore) -> None:
    store.begin_creation("r", "demo", "hsm", ES256, NOW)
    store.begin_creation("r", "demo", "hsm", ES256, NOW + 60)
    assert [intent[4] for intent in store.open_intents()] == [NOW]
    store.add_keyset(keyset_named("demo"), key_of(keyset_named("demo")), request_id="r")
    store.begin_creation("r", "demo", "hsm", ES256, NOW + 120)
    assert list(store.open_intents()) == []


@pytest.mark.parametrize(
    ("keyset", "backend", "algorithm"),
    [("other", "hsm", "ES256"), ("demo", "other", "ES256"), ("demo", "hsm", "ES384")],
)
def test_a_request_id_is_for_one_creation(
    store: KeyStore, keyset: str, backend: str, algorithm: str
) -> None:
    store.begin_creation("r", "demo", "hsm", ES256, NOW)
    with pytest.raises(Conflict, match="request id r belongs to another"):
        store.begin_creation("r", keyset, backend, find_algorithm(algorithm), NOW)
    wanted = replace(keyset_named(keyset), backend=backend, algorithm=find_algorithm(algorithm))
    with pytest.raises(Conflict, match="request id r"):
        store.add_keyset(wanted, key_of(wanted), request_id="r")
    assert list(store.keysets()) == []
    assert len(store.open_intents()) == 1


def test_a_keyset_is_not_added_under_a_request_that_was_not_begun(store: KeyStore) -> None:
    with pytest.raises(Conflict, match="Begin it first"):
        store.add_keyset(keyset_named("demo"), key_of(keyset_named("demo")), request_id="r")
    assert list(store.keysets()) == []
    assert list(store.keys()) == []


def test_an_abandoned_creation_is_over(store: KeyStore) -> None:
    store.begin_creation("r", "demo", "hsm", ES256, NOW)
    store.begin_creation("other", "demo", "hsm", ES256, NOW)
    for request_id in ("r", "r", "never begun"):
        store.abandon_creation(request_id)
    assert [intent[0] for intent in store.open_intents()] == ["other"]
    store.begin_creation("r", "demo", "hsm", ES256, NOW)
    with pytest.raises(Conflict, match="Begin it first"):
        store.add_keyset(keyset_named("demo"), key_of(keyset_named("demo")), request_id="r")
