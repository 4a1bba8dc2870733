"""Exporting once and on schedule, against targets that fail, hang and forget."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from kmsjwks.domain.documents import Document
from kmsjwks.domain.errors import PublicationFailed
from kmsjwks.services.exporting import Exporter, ExportTiming, ScheduledExport
from tests.support.documents import NOW, keyset_of, rendered

OLD = rendered(keyset_of("one"))
NEW = rendered(keyset_of("one"), serials=(0, 1))
FAST = ExportTiming(verify_every=60, fresh_for=60, first_retry=0.02, longest_retry=0.1)
JWKS = ".well-known/jwks.json"


class Place:
    """A target in memory. ``fails`` names documents, or is all; ``gate`` holds every call up."""

    def __init__(self, *, fails: bool | str = False) -> None:
        self.fails = fails
        self.gate = threading.Event()
        self.gate.set()
        self.held: dict[str, Document] = {}
        self.calls: list[str] = []

    def __str__(self) -> str:
        return "place"

    def publish(self, name: str, document: Document) -> bool:
        self.calls.append(name)
        self.gate.wait(10)
        if self.fails is True or self.fails == name:
            raise PublicationFailed(f"{name} cannot be written.")
        changed = self.held.get(name) != document
        self.held[name] = document
        return changed


class FixedClock:
    def now(self) -> float:
        return float(NOW)


def named(documents: dict[str, Document]) -> dict[str, Document]:
    return {path.removeprefix("/"): document for path, document in documents.items()}


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def place() -> Place:
    return Place()


@pytest.fixture
def start(place: Place) -> Iterator[Callable[[ExportTiming], ScheduledExport]]:
    started: list[ScheduledExport] = []

    def begin(timing: ExportTiming = FAST) -> ScheduledExport:
        started.append(ScheduledExport(Exporter([place]), FixedClock(), timing))
        return started[-1]

    yield begin
    place.gate.set()
    for one in started:
        one.close()


Start = Callable[..., ScheduledExport]


def test_all_documents_go_to_all_targets_keys_first() -> None:
    places = [Place(), Place()]
    written = Exporter(places).export(OLD)
    assert len(written) == 2 * len(OLD)
    assert f"place: {JWKS}" in written
    assert all(place.held == named(OLD) for place in places)
    assert [name.endswith("jwks.json") for name in places[0].calls] == [True, True, False, False]
    assert Exporter(places).export(OLD) == []


def test_one_document_that_fails_stops_no_other() -> None:
    place, other = Place(fails=JWKS), Place()
    with pytest.raises(PublicationFailed, match=r"jwks\.json cannot be written"):
        Exporter([place, other]).export(OLD)
    assert set(place.held) == set(named(OLD)) - {JWKS}
    assert other.held == named(OLD)


def test_a_target_that_is_down_is_given_up_early() -> None:
    place = Place(fails=True)
    with pytest.raises(PublicationFailed):
        Exporter([place]).export(OLD)
    assert len(place.calls) == 3 < len(OLD)


def test_a_schedule_publishes_what_changed(place: Place, start: Start) -> None:
    schedule = start()
    schedule.after_refresh(OLD)
    eventually(lambda: place.held == named(OLD))
    schedule.after_refresh(NEW)
    eventually(lambda: place.held == named(NEW))
    eventually(lambda: schedule.status().last_success == NOW)
    calls = len(place.calls)
    for _ in range(20):
        schedule.after_refresh(dict(NEW))
    time.sleep(0.1)
    assert len(place.calls) == calls


def test_a_target_that_hangs_delays_no_refresh(place: Place, start: Start) -> None:
    schedule = start()
    place.gate.clear()
    began = time.monotonic()
    for documents in (OLD, NEW) * 50:
        schedule.after_refresh(documents)
    assert time.monotonic() - began < 1
    place.gate.set()
    eventually(lambda: place.held == named(NEW))


def test_failures_are_told_and_retried(place: Place, start: Start) -> None:
    schedule = start()
    place.fails = True
    schedule.after_refresh(OLD)
    eventually(lambda: len(place.calls) >= 9)
    failing = schedule.status()
    assert "cannot be written" in failing.last_error
    assert (failing.failing_since, failing.last_success) == (NOW, None)
    place.fails = False
    eventually(lambda: schedule.status().last_error == "")
    assert schedule.status().failing_since is None
    assert place.held == named(OLD)


def test_what_somebody_else_overwrote_is_repaired(place: Place, start: Start) -> None:
    schedule = start(ExportTiming(verify_every=0.05))
    schedule.after_refresh(NEW)
    eventually(lambda: place.held == named(NEW))
    place.held = named(OLD)
    eventually(lambda: place.held == named(NEW))
    assert schedule.status().last_error == ""


def test_a_replica_that_lost_the_database_publishes_nothing_old(place: Place, start: Start) -> None:
    """It must not write over what replicas that reach the database have published since."""
    schedule = start(ExportTiming(fresh_for=0.1, first_retry=0.02, longest_retry=0.05))
    place.fails = True
    schedule.after_refresh(OLD)
    eventually(lambda: schedule.status().last_error != "")
    time.sleep(0.3)
    place.fails = False
    time.sleep(0.3)
    assert place.held == {}
    schedule.after_refresh(OLD)
    eventually(lambda: place.held == named(OLD))


def test_a_bug_in_a_target_does_not_end_publication(
    place: Place, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str, document: Document) -> bool:
        raise RuntimeError

    monkeypatch.setattr(place, "publish", broken)
    schedule = start()
    schedule.after_refresh(OLD)
    eventually(lambda: schedule.status().last_error == "RuntimeError")
    monkeypatch.undo()
    eventually(lambda: place.held == named(OLD))


def test_closing_ends_it(place: Place, start: Start) -> None:
    schedule = start()
    schedule.close()
    schedule.after_refresh(OLD)
    time.sleep(0.05)
    assert place.calls == []
