"""SoftHSM in a process of its own (p11-kit server) that is killed, stopped and restarted.

Each test runs in its own process, with a clock that shows whether the module ever held the whole
process up.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kmsjwks.backends.pkcs11.backend import Pkcs11Backend
from kmsjwks.backends.pkcs11.connection import process_lock
from kmsjwks.backends.pkcs11.library import Libraries
from kmsjwks.backends.pkcs11.link import LinkHooks
from kmsjwks.backends.pkcs11.probe import probe_in_fresh_process
from kmsjwks.backends.pkcs11.session import now
from kmsjwks.domain.algorithms import find_algorithm
from kmsjwks.domain.errors import BackendUnavailable
from kmsjwks.domain.ports import BackendKey
from kmsjwks.testing.verifiers import verifies
from tests.support.p11kit import P11KitServer, end_left_behind
from tests.support.processes import run_apart
from tests.support.softhsm import ROOT, Token, open_backend, settings

ES256 = find_algorithm("ES256")
CALL_TIMEOUT = 0.6  # seconds
THREADS = 6
AT_ONCE = 0.05  # seconds
FREEZE = 0.4  # seconds that a thread may wait for the GIL on a busy machine
RECOVERY = 8.0  # seconds; the longest pause between attempts is 5
both_modes = pytest.mark.parametrize("inline", [False, True], ids=["threaded", "inline"])


@pytest.fixture(autouse=True)
def nothing_left_behind(own_token: Token) -> Iterator[None]:
    yield
    end_left_behind(own_token.directory)


@dataclass
class Scene:
    """One backend in this process, its token in another."""

    server: P11KitServer
    inline: bool
    directory: Path
    stalled: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        hooks = LinkHooks(on_stall=self.stalled.append) if self.inline else None
        options = self.server.options(call_timeout=CALL_TIMEOUT)
        self.backend: Pkcs11Backend = open_backend(options, self.directory, Libraries(), hooks)

    def key(self) -> BackendKey:
        return self.backend.create_key(ES256, request_id="key")

    def recovers(self, key: BackendKey) -> None:
        """Signs again by itself, with an error at worst for the calls in between."""
        until = time.monotonic() + RECOVERY
        while True:
            try:
                assert signs(self.backend, key)
                assert self.backend.status().available
                return
            except BackendUnavailable:
                assert time.monotonic() < until, "the backend did not recover"
                time.sleep(0.02)


@contextmanager
def scene(token: Token, *, inline: bool) -> Iterator[Scene]:
    server = P11KitServer(token, token.directory)
    server.start()
    try:
        with heartbeat():
            yield Scene(server, inline, token.directory / "state")
    finally:
        server.kill()


@contextmanager
def heartbeat() -> Iterator[None]:
    """Fails when all threads of this process stood still together: somebody kept the GIL."""
    stop = threading.Event()
    gaps: list[float] = []

    def beat() -> None:
        last = time.monotonic()
        while not stop.wait(0.01):
            gaps.append(time.monotonic() - last)
            last = time.monotonic()

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert max(gaps) < FREEZE, "the process was frozen"


def signs(backend: Pkcs11Backend, key: BackendKey) -> bool:
    return verifies(key.alg, key.spki, b"message", backend.sign(key, b"message"))


def refused_within(seconds: float, call: Callable[[], Any]) -> None:
    took = refusal(call)
    assert took < seconds, f"{took:.3f} s"


def refused_at_once(call: Callable[[], Any]) -> None:
    """Half of the calls in less than 50 ms, whatever else this machine does."""
    took = sorted(refusal(call) for _ in range(9))
    assert took[4] < AT_ONCE, took
    assert took[-1] < AT_ONCE + FREEZE, took


def refusal(call: Callable[[], Any]) -> float:
    """How long it took, in seconds."""
    begun = time.monotonic()
    with pytest.raises(BackendUnavailable) as caught:
        call()
    took = time.monotonic() - begun
    assert caught.value.retry_after >= 1
    return took


class TestKilled:
    @both_modes
    def test_under_load(self, own_token: Token, inline: bool) -> None:
        run_apart(_kill_under_load, own_token, inline)

    @both_modes
    def test_at_rest(self, own_token: Token, inline: bool) -> None:
        run_apart(_kill_at_rest, own_token, inline)


def _kill_under_load(token: Token, inline: bool) -> None:
    with scene(token, inline=inline) as one:
        key, stop = one.key(), threading.Event()

        def work() -> int:
            done = 0
            while not stop.is_set():
                try:
                    assert signs(one.backend, key)
                    done += 1
                except BackendUnavailable:
                    time.sleep(0.005)
            return done

        with ThreadPoolExecutor(THREADS) as pool:
            workers: list[Future[int]] = [pool.submit(work) for _ in range(THREADS)]
            try:
                for _ in range(3):
                    time.sleep(0.2)
                    one.server.kill()
                    time.sleep(0.3)
                    assert not one.backend.status().available
                    one.server.start()
                    one.recovers(key)
            finally:
                stop.set()
        assert all(worker.result() > 0 for worker in workers)


def _kill_at_rest(token: Token, inline: bool) -> None:
    with scene(token, inline=inline) as one:
        key = one.key()
        calls: list[Callable[[], Any]] = [
            one.backend.check,
            lambda: one.backend.sign(key, b"message"),
            lambda: one.backend.get_key(key.ref),
            lambda: list(one.backend.list_keys()),
            lambda: one.backend.evidence(key.ref),
            lambda: one.backend.destroy_key(key.ref),
            lambda: one.backend.create_key(ES256, request_id="another"),
        ]
        for call in calls:
            one.server.kill()
            refused_within(CALL_TIMEOUT + 0.5, call)
            refused_within(0.5, call)
            one.server.start()
            one.recovers(key)


class TestStopped:
    def test_threaded_calls_end_in_time(self, own_token: Token) -> None:
        run_apart(_stop_threaded, own_token)

    def test_inline_calls_are_reported_in_time(self, own_token: Token) -> None:
        run_apart(_stop_inline, own_token)

    @both_modes
    @pytest.mark.parametrize("then", ["go on", "restart"])
    def test_at_first_use(self, own_token: Token, inline: bool, then: str) -> None:
        run_apart(_stop_before_first_use, own_token, inline, then)

    @both_modes
    def test_while_it_is_being_opened_again(self, own_token: Token, inline: bool) -> None:
        run_apart(_stop_while_reopening, own_token, inline)

    def test_the_interpreter_still_ends(self, own_token: Token, p11kit: P11KitServer) -> None:
        script = "\n".join(
            [
                "import sys",
                "from pathlib import Path",
                "from kmsjwks.backends.pkcs11.library import Libraries",
                "from tests.support.softhsm import open_backend",
                f"options = {p11kit.options(call_timeout=CALL_TIMEOUT)!r}",
                "backend = open_backend(options, Path('state').absolute(), Libraries())",
                "backend.check()",
                "print('ready', flush=True)",
                "sys.stdin.readline()",
            ]
        )
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=own_token.directory,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            p11kit.stop()
            process.stdin.close()
            assert process.wait(10) == 0
        finally:
            process.kill()
            process.stdout.close()


def _stop_threaded(token: Token) -> None:
    with scene(token, inline=False) as one:
        key = one.key()
        for _ in range(2):
            stopped = time.time()
            one.server.stop()
            with ThreadPoolExecutor(THREADS) as pool:
                calls = [
                    pool.submit(
                        refused_within, CALL_TIMEOUT + 0.5, lambda: one.backend.sign(key, b"x")
                    )
                    for _ in range(THREADS)
                ]
            for call in calls:
                call.result()
            _stays_down(one, key, since=stopped)
            one.server.go_on()
            one.recovers(key)


def _stays_down(one: Scene, key: BackendKey, *, since: float) -> None:
    """New calls end at once, and the status says since when (seconds since the epoch)."""
    refused_at_once(lambda: one.backend.sign(key, b"x"))
    refused_at_once(one.backend.check)
    status = one.backend.status()
    assert not status.available
    assert "does not answer" in status.reason
    assert status.since is not None
    assert since <= status.since <= time.time()


def _stop_inline(token: Token) -> None:
    with scene(token, inline=True) as one:
        key = one.key()
        for _ in range(2):
            one.stalled.clear()
            stopped = time.time()
            one.server.stop()
            threads = [
                threading.Thread(
                    target=refused_within, args=(60, lambda: one.backend.sign(key, b"x"))
                )
                for _ in range(THREADS)
            ]
            for thread in threads:
                thread.start()
            time.sleep(CALL_TIMEOUT + 0.3)
            stuck = [thread.ident for thread in threads if thread.is_alive()]
            assert sorted(one.stalled) == sorted(ident for ident in stuck if ident)
            assert stuck, "nothing was stuck: the test is void"
            _stays_down(one, key, since=stopped)
            one.server.go_on()
            for thread in threads:
                thread.join(CALL_TIMEOUT)
                assert not thread.is_alive()
            one.recovers(key)
            assert len(one.stalled) == len(stuck)


def _stop_before_first_use(token: Token, inline: bool, then: str) -> None:
    with scene(token, inline=inline) as one:
        begun = time.time()
        one.server.stop()
        refused_within(CALL_TIMEOUT + 0.5, one.backend.check)
        with ThreadPoolExecutor(THREADS) as pool:
            for call in [
                pool.submit(refused_within, 0.2, one.backend.check) for _ in range(THREADS)
            ]:
                call.result()
        refused_at_once(lambda: one.backend.create_key(ES256, request_id="key"))
        status = one.backend.status()
        assert status.since is not None
        assert begun <= status.since <= time.time()
        if then == "go on":
            one.server.go_on()
        else:
            one.server.restart()
        until = time.monotonic() + RECOVERY
        while not one.backend.status().available:
            assert time.monotonic() < until
            time.sleep(0.02)
        one.recovers(one.key())
        assert one.stalled == []  # callers waited, none was inside the module


def _stop_while_reopening(token: Token, inline: bool) -> None:
    with scene(token, inline=inline) as one:
        key = one.key()
        one.server.stop()
        one.backend._link.lost(one.backend._link.connection(now()))  # as a vendor error does
        refused_within(CALL_TIMEOUT + 0.5, lambda: one.backend.sign(key, b"x"))
        refused_at_once(lambda: one.backend.sign(key, b"x"))
        one.server.go_on()
        one.recovers(key)
        one.server.kill()
        one.server.start()
        one.server.stop()  # connections are accepted by the kernel, and nobody answers
        refused_within(CALL_TIMEOUT + 0.5, lambda: one.backend.sign(key, b"x"))
        time.sleep(CALL_TIMEOUT)
        refused_at_once(lambda: one.backend.sign(key, b"x"))
        one.server.restart()
        one.recovers(key)


class TestProbe:
    def test_tells_whether_a_fresh_process_reaches_the_token(
        self, p11kit: P11KitServer, tmp_path: Path
    ) -> None:
        asked = settings(p11kit.options(call_timeout=1.0), tmp_path / "state")
        with process_lock(asked.lock_path, 1.0):  # as the stuck process may hold it
            assert probe_in_fresh_process(asked)
        p11kit.stop()
        begun = time.monotonic()
        assert not probe_in_fresh_process(asked)
        assert time.monotonic() - begun < 1.0 * 2 + 5.0 + 2.0
        p11kit.kill()
        assert not probe_in_fresh_process(asked)
