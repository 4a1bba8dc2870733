"""Serving with granian: worker processes, answers for stuck requests, replaced workers.

Granian in WSGI mode is what was measured to be fastest (docs/decisions/0002-wsgi-server.md). Its
WSGI callback is wrapped here for three reasons: the environment of the process stays out of the
WSGI environ, header names with underscores are dropped (a proxy cannot be told from a spoofer
otherwise), and a request whose thread is stuck in a device can be answered from another thread.
"""

from __future__ import annotations

import fcntl
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import granian.server.mp as granian_mp
from granian.constants import HTTPModes, Interfaces
from granian.log import LogLevels

from kmsjwks.bootstrap import Service
from kmsjwks.config import Settings
from kmsjwks.domain.errors import BackendUnavailable, KmsJwksError
from kmsjwks.domain.ports import ServerHooks
from kmsjwks.http.problems import problem_of

_RESERVED_THREADS = 16  # beyond max_concurrency: for JWKS, metadata and health
_EXIT_REPLACE = 75  # EX_TEMPFAIL
_REPLACE_GAP = 5.0  # seconds between two workers of one service being replaced

_log = logging.getLogger(__name__)

# Granian's own messages go to the handlers of the process.
_OWN_LOGGING: dict[str, Any] = {
    "formatters": {},
    "handlers": {},
    "loggers": {"_granian": {"handlers": [], "propagate": True}},
}

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Any]
LoadApp = Callable[[ServerHooks], WsgiApp]


class Reply(Protocol):
    """Granian's handle for one response; only the first answer counts."""

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None: ...

    def response_iter(self, status: int, headers: list[tuple[str, str]], body: Any) -> None: ...


class InFlight:
    """Which thread is serving which response. One dict operation a request; the GIL is the lock."""

    def __init__(self) -> None:
        self._replies: dict[int, Reply] = {}

    def begin(self, reply: Reply) -> int:
        ident = threading.get_ident()
        self._replies[ident] = reply
        return ident

    def end(self, ident: int) -> None:
        self._replies.pop(ident, None)

    def answer_for(self, ident: int) -> None:
        """503 for a request whose thread does not come back; what the thread says later is
        dropped by the server."""
        reply = self._replies.pop(ident, None)
        if reply is not None:
            stuck = BackendUnavailable("The PKCS#11 module does not answer.", retry_after=2)
            body, status, headers = problem_of(stuck, "")
            reply.response_bytes(status, list(headers.items()), body)


class _Response:
    """The ``start_response`` of PEP 3333."""

    __slots__ = ("headers", "status")

    def __init__(self) -> None:
        self.status, self.headers = 200, list[tuple[str, str]]()

    def __call__(
        self, status: str, headers: list[tuple[str, str]], _exc_info: object = None
    ) -> Callable[[bytes], object]:
        self.status, self.headers = int(status[:3]), headers
        return lambda _: None


def wsgi_callback(app: WsgiApp, in_flight: InFlight) -> Callable[[Reply, dict[str, Any]], None]:
    """What granian calls for each request, in a thread of its pool."""
    base = {
        "SCRIPT_NAME": "",
        "SERVER_SOFTWARE": "kmsjwks",
        "wsgi.errors": _Discard(),
        "wsgi.input_terminated": True,
        "wsgi.multiprocess": True,
        "wsgi.multithread": True,
        "wsgi.run_once": False,
        "wsgi.version": (1, 0),
    }

    def serve(reply: Reply, scope: dict[str, Any]) -> None:
        ident = in_flight.begin(reply)
        try:
            response = _Response()
            body = app(base | scope, response)
            try:
                data = b"".join(body)
            finally:
                close = getattr(body, "close", None)
                if close is not None:
                    close()
        finally:
            in_flight.end(ident)
        reply.response_bytes(response.status, response.headers, data)

    return serve


class _Discard:
    """``wsgi.errors``: everything worth saying goes through logging."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


class Server(granian_mp.MPServer):
    """Granian with workers that always come back: its own guard against crash loops would end
    the whole service when a worker is killed twice within seconds."""

    def _respawn_workers(
        self, workers: Any, spawn_target: Any, target_loader: Any, delay: float = 0
    ) -> None:
        super()._respawn_workers(workers, spawn_target, target_loader, delay)
        self.respawned_wrks.clear()
        time.sleep(0.2)  # a worker that dies at once is tried five times a second, not more


def _spawn_worker(*args: Any) -> None:
    """In the new worker process: use our callback where granian would use its own."""
    granian_mp._wsgi_call_wrap = _use_ours  # type: ignore[attr-defined,assignment]
    Server._spawn_wsgi_worker(*args)


def _use_ours(serve: Any, _scope_options: Any, _access_log: Any) -> Any:
    return serve


def _load_worker(load: LoadApp, state: Path) -> Callable[[Reply, dict[str, Any]], None]:
    in_flight = InFlight()
    hooks = ServerHooks(
        on_stall=in_flight.answer_for, replace_process=partial(replace_worker, state)
    )
    return wsgi_callback(load(hooks), in_flight)


def start_warming(service: Service) -> None:
    """Load keys and open devices now rather than with the first request, in a thread: a device
    that hangs must not keep the worker from serving the JWKS."""
    threading.Thread(target=_warm, args=(service,), name="kmsjwks-warm", daemon=True).start()


def _warm(service: Service) -> None:
    try:
        snapshot = service.snapshots.current()
    except KmsJwksError as error:
        _log.error("No keys are known yet: %s", error)
        return
    wanted = {ready.active.key.backend for ready in snapshot.keysets.values() if ready.active}
    for name in sorted(wanted):
        try:
            service.backends[name].check()
        except KmsJwksError as error:
            _log.error("The backend %s is not available: %s", name, error)


def replace_worker(state: Path) -> None:
    """End this worker at once, finalising nothing, unless another one was just replaced."""
    descriptor = os.open(state / "replace.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return
    if os.fstat(descriptor).st_size and time.time() - os.fstat(descriptor).st_mtime < _REPLACE_GAP:
        os.close(descriptor)
        return
    os.write(descriptor, b".")
    os._exit(_EXIT_REPLACE)


def serve(settings: Settings, load: LoadApp) -> None:
    """Serve until SIGTERM or SIGINT. ``load`` runs in each worker; it must be picklable."""
    server = settings.server
    # Forked workers share this process's settings; nothing here has threads or an open device.
    multiprocessing.set_start_method("fork", force=True)
    settings.state.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    Server(
        target="kmsjwks",
        address=server.host,
        port=server.port,
        interface=Interfaces.WSGI,
        workers=server.workers or os.cpu_count() or 1,
        blocking_threads=server.max_concurrency + _RESERVED_THREADS,
        http=HTTPModes.http1,
        respawn_failed_workers=True,
        workers_kill_timeout=max(1, round(server.shutdown_timeout)),
        log_level=LogLevels.error,
        log_dictconfig=_OWN_LOGGING,
    ).serve(
        spawn_target=_spawn_worker,
        target_loader=partial(_load_worker, load, settings.state.directory),
        wrap_loader=False,
    )
