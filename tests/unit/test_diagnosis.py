"""`doctor` over fake backends: what it says, what it leaves behind, what it does not do twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from kmsjwks.domain.algorithms import find_algorithm
from kmsjwks.domain.errors import BackendUnavailable
from kmsjwks.domain.keys import Key, KeyState, KeyTimes
from kmsjwks.domain.ports import BackendKey, Finding
from kmsjwks.services.diagnosis import diagnose, find_orphans, find_unusable, keys_in_use
from tests.fakes.backend import FakeBackend

ES256 = find_algorithm("ES256")


class Examined(FakeBackend):
    def examine(self, used: Sequence[BackendKey] = ()) -> Iterator[Finding]:
        yield Finding("its own", True, ", ".join(key.ref for key in used) or "asked")


def known(key: BackendKey, backend: str = "kms") -> Key:
    return Key(
        kid="k",
        keyset="demo",
        algorithm=key.alg,
        backend=backend,
        ref=key.ref,
        spki=key.spki,
        state=KeyState.ACTIVE,
        times=KeyTimes(created_at=0),
    )


def test_words_that_fit_every_backend() -> None:
    said = " ".join(f"{one.check} {one.said}" for one in diagnose(FakeBackend()))
    assert "the backend answers" in said
    assert "the throw-away key is gone" in said
    assert "token" not in said


def test_a_destruction_that_waits_says_until_when() -> None:
    backend = FakeBackend(deletion_window=timedelta(days=7))
    expected = datetime.now(UTC) + timedelta(days=7)
    (destroyed,) = [one for one in diagnose(backend) if one.check == "destroy"]
    assert destroyed.ok
    assert f"cancelled until {expected:%Y-%m-%d}" in destroyed.said


def test_a_backend_that_examines_itself_is_not_given_a_second_throw_away_key() -> None:
    backend = Examined()
    assert [one.check for one in diagnose(backend)] == ["its own"]
    assert not backend._keys and not backend._destroyed


def test_orphans_are_named_and_known_keys_are_not() -> None:
    backend = FakeBackend()
    ours = backend.create_key(ES256, request_id="a")
    orphan = backend.create_key(ES256, request_id="b")
    (finding,) = find_orphans("kms", backend, [known(ours)])
    assert finding.ok
    assert orphan.ref in finding.said
    assert ours.ref not in finding.said


def test_a_key_known_for_another_backend_is_an_orphan_here() -> None:
    backend = FakeBackend()
    key = backend.create_key(ES256, request_id="a")
    assert len(list(find_orphans("kms", backend, [known(key, "other")]))) == 1


def test_keys_that_cannot_be_listed_are_a_failure() -> None:
    backend = FakeBackend()
    backend.break_with(BackendUnavailable("Gone."))
    (finding,) = find_orphans("kms", backend, [])
    assert not finding.ok
    assert "Gone." in finding.said


@pytest.mark.parametrize("check", ["open", "generate", "sign", "custody", "destroy"])
def test_every_step_is_reported(check: str) -> None:
    assert check in [one.check for one in diagnose(FakeBackend())]


def test_keys_in_use_that_the_backend_does_not_have_are_named() -> None:
    backend = FakeBackend()
    well, gone = (backend.create_key(ES256, request_id=name) for name in ("well", "gone"))
    backend.destroy_key(gone.ref)
    keys = [known(well), known(gone), known(gone, "other")]
    bad, summary = find_unusable("kms", backend, keys)
    assert not bad.ok
    assert "active key k of demo" in bad.said
    assert (summary.ok, summary.said[0]) == (True, "2")


def test_a_key_under_anothers_reference_is_named() -> None:
    backend = FakeBackend()
    one, other = (backend.create_key(ES256, request_id=name) for name in ("one", "other"))
    swapped = BackendKey(one.ref, ES256, other.spki)
    bad, _ = find_unusable("kms", backend, [known(swapped)])
    assert "another key under the reference" in bad.said
    assert list(find_unusable("elsewhere", backend, [known(one)])) == []


def test_a_backend_that_examines_itself_is_told_its_keys_in_use() -> None:
    backend = Examined()
    key = known(backend.create_key(ES256, request_id="used"))
    elsewhere = replace(key, backend="hsm", ref="other")
    used = keys_in_use("kms", [key, elsewhere, replace(key, state=KeyState.DEACTIVATED)])
    assert used == [key]
    assert [one.said for one in diagnose(backend, used)] == [key.ref]
