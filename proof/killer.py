"""SIGKILL at random moments, for workers and for whole replicas, which are started again."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping
from typing import Protocol

from proof.plan import Plan
from proof.record import Kill, Record
from tests.support.service import Server

_START_PATIENCE = 60.0  # seconds


class Killable(Protocol):
    """Replicas by name, and which of them are ready to sign."""

    @property
    def servers(self) -> Mapping[str, Server]: ...

    def ready(self) -> list[str]: ...


class Killer:
    """A thread. Before it kills a replica it makes sure that another one is ready: with none
    there is nobody who could sign."""

    def __init__(self, cluster: Killable, plan: Plan, record: Record, seed: int) -> None:
        self._cluster, self._plan, self._record = cluster, plan, record
        self._random = random.Random(seed)  # noqa: S311  # repeatable, not secret
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="killer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(_START_PATIENCE + 10)

    def _run(self) -> None:
        while not self._stop.wait(self._random.uniform(*self._plan.kill_gap)):
            self._restart_ended()
            name = self._random.choice(list(self._cluster.servers))
            if not [other for other in self._cluster.ready() if other != name]:
                continue
            if self._random.random() < 0.5:
                self._kill_worker(name)
            else:
                self._kill_replica(name)

    def _restart_ended(self) -> None:
        """As a supervisor does; it is told in the record, since nobody killed it."""
        for name, server in self._cluster.servers.items():
            code = server.process.poll()
            if code is not None:
                self._record.add_own_end(name, code)
                server.kill_all()
                server.launch()

    def _kill_worker(self, name: str) -> None:
        server = self._cluster.servers[name]
        if server.worker_pids():
            server.kill_worker()
            self._record.add_kill(Kill(time.time(), "worker", name))

    def _kill_replica(self, name: str) -> None:
        server = self._cluster.servers[name]
        self._record.add_kill(Kill(time.time(), "replica", name))
        server.kill_all()
        time.sleep(self._random.uniform(*self._plan.restart_after))
        server.launch()
