"""When a link gives its process up, with connections that only pretend."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from kmsjwks.backends.pkcs11.connection import Connection
from kmsjwks.backends.pkcs11.link import Link, LinkHooks
from kmsjwks.backends.pkcs11.session import PooledSession, now
from kmsjwks.domain.errors import BackendDenied, BackendUnavailable

CALL_TIMEOUT, REPLACE_AFTER = 0.2, 0.3  # seconds


class PretendConnection(Connection):
    """A connection to nothing; a call in it lasts until it is released."""

    def __init__(self) -> None:
        library: Any = SimpleNamespace(serial=None, add_user=lambda _: None)
        nothing: Any = None
        super().__init__(library, nothing, nothing, sessions=1)
        self.release = threading.Event()

    def hang(self) -> threading.Thread:
        def call(_: PooledSession) -> None:
            self.release.wait(10)

        def run() -> None:
            with pytest.raises(BackendUnavailable, match="after the deadline"):
                self.call(call, now() + CALL_TIMEOUT)

        thread = threading.Thread(target=run)
        thread.start()
        return thread


class Surroundings:
    """Records what a link asks for."""

    def __init__(self, *, replaceable: bool) -> None:
        self.stalled: list[int] = []
        self.asked = 0
        self.replaced = 0
        self._replaceable = replaceable

    def _is_replaceable(self) -> bool:
        self.asked += 1
        return self._replaceable

    def _replace(self) -> None:
        self.replaced += 1

    def hooks(self, **changes: Any) -> LinkHooks:
        hooks: dict[str, Any] = {
            "on_stall": self.stalled.append,
            "is_replaceable": self._is_replaceable,
            "replace_process": self._replace,
        }
        return LinkHooks(**{**hooks, **changes})


@pytest.fixture
def links() -> Iterator[list[Link]]:
    """Links to be ended with the test."""
    made: list[Link] = []
    yield made
    for link in made:
        link._closed = True


class PretendConnector:
    """Says, as the real one, since when it has been inside the module."""

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self.entered_at: float | None = None
        self._connect = connect

    def __call__(self) -> Connection:
        self.entered_at = now()
        try:
            return self._connect()
        finally:
            self.entered_at = None


def linked(links: list[Link], connect: Callable[[], Connection], hooks: LinkHooks) -> Link:
    link = Link(
        PretendConnector(connect),
        call_timeout=CALL_TIMEOUT,
        replace_after=REPLACE_AFTER,
        hooks=hooks,
    )
    links.append(link)
    return link


def connection_of(link: Link, timeout: float = 2.0) -> Connection:
    return link.connection(now() + timeout)


def wait_until(condition: Any, timeout: float = 3.0) -> None:
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_stuck_call_costs_the_process_once(links: list[Link]) -> None:
    stuck, around = PretendConnection(), Surroundings(replaceable=True)
    link = linked(links, lambda: stuck, around.hooks())
    connection_of(link)
    begun = time.monotonic()
    thread = stuck.hang()
    wait_until(lambda: around.replaced)
    assert time.monotonic() - begun >= CALL_TIMEOUT - 0.1 + REPLACE_AFTER
    assert around.stalled == [thread.ident]
    assert (around.asked, around.replaced) == (1, 1)
    stuck.release.set()
    thread.join()


def test_no_replacement_where_a_fresh_process_would_hang_too(links: list[Link]) -> None:
    stuck, around = PretendConnection(), Surroundings(replaceable=False)
    connections = iter([stuck, PretendConnection()])
    link = linked(links, lambda: next(connections), around.hooks())
    connection_of(link)
    thread = stuck.hang()
    wait_until(lambda: around.asked >= 2)  # asked again, after another such time
    assert around.replaced == 0
    assert not link.status().available
    stuck.release.set()
    thread.join()
    wait_until(lambda: link.status().available)
    assert connection_of(link) is not stuck


def test_hanging_while_it_opens_costs_the_process_too(links: list[Link]) -> None:
    release, around = threading.Event(), Surroundings(replaceable=True)

    def connect() -> PretendConnection:
        release.wait(10)
        return PretendConnection()

    link = linked(links, connect, around.hooks())
    with pytest.raises(BackendUnavailable):
        connection_of(link, CALL_TIMEOUT + 0.2)
    wait_until(lambda: around.replaced)
    assert around.replaced == 1
    assert around.stalled == []
    release.set()
    wait_until(lambda: link.status().available)
    asked = around.asked
    time.sleep(REPLACE_AFTER + 0.2)
    assert around.asked == asked


def test_hanging_after_a_failed_attempt_costs_it_as_well(links: list[Link]) -> None:
    release, around = threading.Event(), Surroundings(replaceable=True)
    attempts: list[int] = []

    def connect() -> PretendConnection:
        attempts.append(1)
        if len(attempts) == 1:
            raise BackendUnavailable("no token yet")
        release.wait(10)
        return PretendConnection()

    link = linked(links, connect, around.hooks())
    with pytest.raises(BackendUnavailable, match="no token yet"):
        connection_of(link)
    wait_until(lambda: around.replaced)
    release.set()


def test_not_replaced_when_it_came_back_meanwhile(links: list[Link]) -> None:
    stuck, around = PretendConnection(), Surroundings(replaceable=True)

    def comes_back() -> bool:
        stuck.release.set()
        thread.join()
        return True

    link = linked(links, lambda: stuck, around.hooks(is_replaceable=comes_back))
    connection_of(link)
    thread = stuck.hang()
    wait_until(lambda: not thread.is_alive())
    time.sleep(0.2)
    assert around.replaced == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_failing_hooks_do_not_end_the_recovery(links: list[Link]) -> None:
    stuck, around = PretendConnection(), Surroundings(replaceable=True)

    def fail(*_: object) -> bool:
        raise RuntimeError("the surroundings are broken")

    connections = iter([stuck, PretendConnection()])
    hooks = around.hooks(on_stall=fail, is_replaceable=fail)
    link = linked(links, lambda: next(connections), hooks)
    connection_of(link)
    thread = stuck.hang()
    wait_until(lambda: not link.status().available)
    time.sleep(2 * REPLACE_AFTER)
    stuck.release.set()
    thread.join()
    wait_until(lambda: link.status().available)


def test_attempts_become_rarer_and_a_denial_ends_them(links: list[Link]) -> None:
    times: list[float] = []

    def connect() -> PretendConnection:
        times.append(time.monotonic())
        if len(times) == 4:
            raise BackendDenied("wrong PIN")
        raise BackendUnavailable("absent")

    link = linked(links, connect, LinkHooks())
    with pytest.raises(BackendUnavailable):
        connection_of(link)
    wait_until(lambda: len(times) == 4, timeout=5)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps == sorted(gaps)
    wait_until(lambda: "wrong PIN" in link.status().reason)
    for _ in range(3):
        with pytest.raises(BackendDenied, match="wrong PIN"):
            connection_of(link)
    time.sleep(0.3)
    assert len(times) == 4
