"""Metrics on an address of their own, collected over all workers in a process of its own.

A scrape costs the workers nothing, and is answered however busy or stuck they are.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kmsjwks.config import Settings

_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # prometheus-client's
_RESTART_GAP = 1.0  # seconds
_STOP_PATIENCE = 2.0  # seconds
_log = logging.getLogger(__name__)


def prepare(settings: Settings) -> None:
    """In the service, before workers are forked and before prometheus-client is imported: an empty
    directory for the values, named in the environment."""
    directory = settings.state.directory / f"metrics-{settings.metrics.port}"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True, mode=0o700)
    os.environ[_VARIABLE] = str(directory)


class MetricsServer:
    """A process that answers scrapes, started anew when it ends before the service does."""

    def __init__(self, host: str, port: int, in_child: Callable[[], None]) -> None:
        """``in_child`` is called first in the process: it must not outlive the service."""
        self._address, self._in_child = (host, port), in_child
        self._stopping = threading.Event()
        self._process: Any = None

    def start(self) -> None:
        """After the workers are forked: this starts a thread."""
        threading.Thread(target=self._keep, name="kmsjwks-metrics", daemon=True).start()

    def stop(self) -> None:
        self._stopping.set()
        if self._process is not None:
            self._process.terminate()
            self._process.join(_STOP_PATIENCE)

    def _keep(self) -> None:
        context = multiprocessing.get_context("fork")
        while not self._stopping.is_set():
            self._process = context.Process(
                target=_serve, args=(self._address, self._in_child), daemon=True
            )
            self._process.start()
            self._process.join()
            if not self._stopping.wait(_RESTART_GAP):
                _log.error("The process that serves the metrics ended; it is started anew.")


def _serve(address: tuple[str, int], in_child: Callable[[], None]) -> None:
    in_child()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the service ends us when it has ended
    from prometheus_client import CollectorRegistry, start_wsgi_server  # noqa: PLC0415

    registry = CollectorRegistry()
    registry.register(_LiveWorkers(Path(os.environ[_VARIABLE])))
    _, thread = start_wsgi_server(address[1], address[0], registry)
    while thread.is_alive():
        time.sleep(1)


class _LiveWorkers:
    """Everything that workers counted, ended ones included; states of living ones only."""

    def __init__(self, directory: Path) -> None:
        from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415

        self._directory = directory
        self._values = MultiProcessCollector(None, str(directory))  # type: ignore[no-untyped-call]

    def collect(self) -> Iterator[Any]:
        self._forget_ended()
        yield from self._values.collect()  # type: ignore[no-untyped-call]

    def _forget_ended(self) -> None:
        for file in self._directory.glob("gauge_live*_*.db"):
            pid = file.stem.rpartition("_")[2]
            if not _lives(int(pid)):
                file.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    """By a signal that is none: with ``hidepid``, /proc hides processes that are not dumpable."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
