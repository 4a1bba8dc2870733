"""Client threads that ask a service without pause, and what they saw."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.support.http import Answer, Http
from tests.support.service import Server


@dataclass(frozen=True)
class Seen:
    """One request: ``answer`` is None where the connection failed. Monotonic seconds."""

    path: str
    began: float
    ended: float
    answer: Answer | None

    @property
    def status(self) -> int:
        return 0 if self.answer is None else self.answer.status

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Load:
    """``seen`` may be read at any time: it only grows."""

    def __init__(self, server: Server, keyset: str, *, signers: int = 8, readers: int = 2) -> None:
        self.seen: list[Seen] = []
        self._server, self._keyset = server, keyset
        self._over = threading.Event()
        # The readers take turns at both, so that two threads see the JWKS and health alike.
        self._threads = [
            threading.Thread(target=self._run, args=(ask,))
            for ask in [self._sign] * signers + [self._read] * readers
        ]

    @contextmanager
    def running(self) -> Iterator[Load]:
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join(30)

    def _sign(self, http: Http, turn: int) -> tuple[str, Answer]:
        path = f"/v1/keysets/{self._keyset}/sign/jwt"
        return path, http.post(path, {"claims": {"sub": "load", "turn": turn}})

    def _read(self, http: Http, turn: int) -> tuple[str, Answer]:
        path = "/healthz" if turn % 2 else "/.well-known/jwks.json"
        time.sleep(0.01)
        return path, http.get(path)

    def _run(self, ask: Callable[[Http, int], tuple[str, Answer]]) -> None:
        http, turn = self._server.http("all"), 0
        while not self._over.is_set():
            turn += 1
            began = time.monotonic()
            try:
                path, answer = ask(http, turn)
            except OSError:
                self.seen.append(Seen("connection", began, time.monotonic(), None))
                time.sleep(0.02)
            else:
                self.seen.append(
                    Seen(path, time.monotonic() - answer.seconds, time.monotonic(), answer)
                )
                if answer.status != 200:
                    time.sleep(0.01)

    def signing(self, since: float = 0.0) -> list[Seen]:
        """Requests to sign that were answered."""
        return [one for one in list(self.seen) if one.path.endswith("/jwt") and one.began >= since]

    def reading(self) -> list[Seen]:
        return [
            one for one in list(self.seen) if one.path in ("/healthz", "/.well-known/jwks.json")
        ]

    def failed_connections(self) -> int:
        return sum(one.answer is None for one in list(self.seen))

    def statuses(self) -> Counter[int]:
        return Counter(one.status for one in list(self.seen))

    def tokens(self) -> list[str]:
        return [
            one.answer.json()["token"] for one in self.signing() if one.answer and one.status == 200
        ]


def wait_until(holds: Callable[[], Any], seconds: float, what: str | Callable[[], str]) -> float:
    """How long it took."""
    started = time.monotonic()
    while not holds():
        late = time.monotonic() - started >= seconds
        assert not late, f"{what() if callable(what) else what}: not within {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - started
