"""A device that hangs takes one thread, and nobody who waits for it."""

from __future__ import annotations

import threading

import pytest

from kmsjwks.domain.algorithms import find_algorithm
from kmsjwks.domain.errors import BackendUnavailable, KeyNotFound
from kmsjwks.services import boundedbackend
from kmsjwks.services.boundedbackend import BoundedBackend
from tests.fakes import FakeBackend

ES256 = find_algorithm("ES256")


class Hanging(FakeBackend):
    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def check(self) -> None:
        self.released.wait(10)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boundedbackend, "_DEADLINE", 0.05)
    monkeypatch.setattr(BoundedBackend._bounded, "__defaults__", (0.05,))


def test_answers_and_errors_come_through() -> None:
    backend = BoundedBackend(FakeBackend())
    key = backend.create_key(ES256, request_id="one", keyset="demo")
    assert backend.get_key(key.ref) == key
    assert list(backend.list_keys()) == [key]
    assert backend.sign(key, b"message")
    assert ES256 in backend.algorithms
    with pytest.raises(KeyNotFound):
        backend.get_key("none")


def test_a_call_that_hangs_ends_and_the_next_does_not_even_begin() -> None:
    device = Hanging()
    backend = BoundedBackend(device)
    with pytest.raises(BackendUnavailable, match="within the deadline"):
        backend.check()
    before = threading.active_count()
    with pytest.raises(BackendUnavailable, match="earlier call"):
        backend.get_key("anything")
    assert threading.active_count() == before
    device.released.set()
    for _ in range(200):
        try:
            backend.create_key(ES256, request_id="two")
            break
        except BackendUnavailable:
            threading.Event().wait(0.01)
    assert list(backend.list_keys())
