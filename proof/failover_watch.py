"""Looks at every replica again and again: health, JWKS, and what it says of its backends."""

from __future__ import annotations

import threading
import time

from proof.failover_cluster import FailoverCluster
from proof.failover_record import Bad, Report, Story
from proof.record import Record
from tests.support.http import Answer, Http

HEALTH, READY, JWKS, BACKENDS = "/healthz", "/readyz", "/.well-known/jwks.json", "/v1/backends"
_INTERVAL = 0.2  # seconds
_TIMEOUT = 1.0


class Watcher:
    """A thread a replica. One that was killed refuses or ends the connection, which is no answer;
    what counts is that some replica always answers, and that those that are up do in time."""

    def __init__(self, cluster: FailoverCluster, record: Record, story: Story) -> None:
        self._bearer, self._record, self._story = cluster.bearer, record, story
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(name, port), name=f"watch-{name}", daemon=True)
            for name, port in cluster.ports.items()
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(10)

    def _run(self, name: str, port: int) -> None:
        while not self._stop.wait(_INTERVAL):
            for path in (HEALTH, READY, JWKS, BACKENDS):
                try:
                    answer = self._ask(port, path)
                except TimeoutError:
                    self._story.add_bad(Bad(time.time(), name, path, "no answer in time"))
                except OSError:
                    break
                else:
                    self._note(name, path, answer)

    def _ask(self, port: int, path: str) -> Answer:
        """A connection each, so that every worker is asked in its turn."""
        http = Http(port, self._bearer if path == BACKENDS else None, _TIMEOUT)
        try:
            return http.get(path)
        finally:
            http.close()

    def _note(self, name: str, path: str, answer: Answer) -> None:
        now = time.time()
        if answer.status != 200:
            self._story.add_bad(Bad(now, name, path, f"HTTP {answer.status}"))
            return
        self._story.answer(path, now)
        if path == JWKS:
            self._story.jwks_seconds.append(answer.seconds)
            self._record.see([key["kid"] for key in answer.json()["keys"]], now)
        elif path == READY:
            down = frozenset(answer.json()["backends_down"])
            self._story.report(Report(now, name, READY, down, frozenset()))
        elif path == BACKENDS:
            self._story.report(_report(answer, name, now))


def _report(answer: Answer, replica: str, at: float) -> Report:
    down = [one for one in answer.json()["backends"] if not one["available"]]
    return Report(
        at,
        replica,
        BACKENDS,
        frozenset(one["name"] for one in down),
        frozenset(keyset for one in down for keyset in one["cannot_sign"]),
    )
