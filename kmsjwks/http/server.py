"""Serving with granian: worker processes, answers for stuck requests, replaced workers.

Granian in WSGI mode is what was measured to be fastest (docs/decisions/0002-wsgi-server.md). Its
WSGI callback is replaced here for two reasons: the environment of the process stays out of the
WSGI environ, and a request whose thread is stuck in a device can be answered from another thread.

What cannot be cured here: a header sent as ``X_Client`` arrives as ``X-Client`` does, and of both
the last one counts. So a header that a proxy is trusted to set has a name without a dash, or its
proxy is known to drop names with underscores (``[mtls]``).
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import granian.server.mp as granian_mp
from granian.constants import HTTPModes, Interfaces
from granian.log import LogLevels

from kmsjwks.bootstrap import Service
from kmsjwks.config import ServerSettings, Settings
from kmsjwks.domain.errors import KmsJwksError
from kmsjwks.domain.ports import ServerHooks
from kmsjwks.http import metrics
from kmsjwks.http.affinity import keep_to_one_cpu, worker_count
from kmsjwks.http.metrics import MetricsServer
from kmsjwks.http.request_ids import UNSAFE
from kmsjwks.http.wsgi import InFlight, Reply, WsgiApp, wsgi_callback

_RESERVED_THREADS = 16  # beyond max_concurrency: for JWKS, metadata and health
_LOOK_AT_SENDERS = 1.0  # seconds
_EXIT_REPLACE = 75  # EX_TEMPFAIL
_REPLACE_GAP = 5.0  # seconds between two workers of one service being replaced
_SOCKET_MODE = 0o660  # the service's group is who may connect, which is the proxy
_PR_SET_PDEATHSIG = 1  # prctl(2)

_log = logging.getLogger(__name__)

# Granian's own messages go to the handlers of the process.
_OWN_LOGGING: dict[str, Any] = {
    "formatters": {},
    "handlers": {},
    "loggers": {"_granian": {"handlers": [], "propagate": True}},
}

LoadApp = Callable[[ServerHooks], WsgiApp]


class AddressUnusable(KmsJwksError):
    code = "address-unusable"
    title = "Address cannot be listened on"


class Server(granian_mp.MPServer):
    """Granian with workers that always come back: its own guard against crash loops would end
    the whole service when a worker is killed twice within seconds."""

    metrics: MetricsServer | None = None

    def startup(self, spawn_target: Any, target_loader: Any) -> None:
        super().startup(spawn_target, target_loader)  # type: ignore[no-untyped-call]
        if self.metrics is not None:
            self.metrics.start()

    def shutdown(self, exit_code: int = 0) -> None:
        if self.metrics is not None:
            self.metrics.stop()
        super().shutdown(exit_code)  # type: ignore[no-untyped-call]

    def _respawn_workers(
        self, workers: Any, spawn_target: Any, target_loader: Any, delay: float = 0
    ) -> None:
        super()._respawn_workers(workers, spawn_target, target_loader, delay)
        self.respawned_wrks.clear()
        time.sleep(0.2)  # a worker that dies at once is tried five times a second, not more


def _spawn_worker(server: ServerSettings, workers: int, number: int, *args: Any) -> None:
    """In the new worker process: use our callback where granian would use its own. ``number`` is
    granian's, from 1."""
    _end_with_the_service()
    keep_to_one_cpu(server, workers, number - 1)
    granian_mp._wsgi_call_wrap = _use_ours  # type: ignore[attr-defined,assignment]
    Server._spawn_wsgi_worker(number, *args)


def _end_with_the_service() -> None:
    """A worker must not outlive a killed service, holding its port."""
    # Inherited handlers set a flag of the service that nobody reads here; the worker's own
    # come when it has loaded.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    service = multiprocessing.parent_process()
    if service is not None and os.getppid() != service.pid:  # it ended before that
        os._exit(0)


def _use_ours(serve: Any, _scope_options: Any, _access_log: Any) -> Any:
    return serve


def _load_worker(
    load: LoadApp, settings: Settings, workers: int
) -> Callable[[Reply, dict[str, Any]], None]:
    in_flight = InFlight(UNSAFE if settings.rotation.development else {})
    threading.Thread(
        target=_watch_senders, args=(in_flight,), name="kmsjwks-senders", daemon=True
    ).start()
    hooks = ServerHooks(
        on_stall=in_flight.answer_for,
        on_audit_stall=in_flight.answer_for_audit,
        replace_process=partial(replace_worker, settings.state.directory),
        workers=workers,
    )
    return wsgi_callback(load(hooks), in_flight)


def _watch_senders(in_flight: InFlight) -> None:
    while True:
        time.sleep(_LOOK_AT_SENDERS)
        in_flight.answer_stalled_senders()


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
    wanted = {key.backend for ready in snapshot.keysets.values() for key in ready.keys}
    for name in sorted(wanted & service.backends.keys()):
        try:
            service.backends[name].check()
        except KmsJwksError as error:
            _log.error("The backend %s is not available: %s", name, error)


def replace_worker(state: Path) -> None:
    """End this worker, finalising nothing, as soon as no other one is being replaced."""
    descriptor = os.open(state / "replace.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # freed when its holder has gone
    last = os.fstat(descriptor)
    if last.st_size:
        time.sleep(max(0.0, min(_REPLACE_GAP, last.st_mtime + _REPLACE_GAP - time.time())))
    os.write(descriptor, b".")
    os._exit(_EXIT_REPLACE)


def refuse_taken_address(host: str, port: int, how: str = "--host and --port") -> None:
    """Workers share the port with SO_REUSEPORT, so two services would share it unnoticed.

    Raises:
        AddressUnusable
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, address in found:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except OSError as error:
        raise AddressUnusable(
            f"Cannot listen on {host}:{port}: {error.strerror}. "
            f"Stop what uses it, or choose another with {how}."
        ) from error


def prepare_unix_socket(path: Path) -> None:
    """Remove what a killed service left there.

    Raises:
        AddressUnusable: a service listens on it, or it is no socket.
    """
    if not path.exists():
        return
    if not path.is_socket():
        raise AddressUnusable(f"{path} is not a socket. Choose another server.unix_socket.")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        except OSError as error:
            raise AddressUnusable(f"Cannot listen on {path}: {error.strerror}.") from error
        else:
            raise AddressUnusable(
                f"Another service listens on {path}. Stop it, or choose another server.unix_socket."
            )


def _metrics_server(settings: Settings) -> MetricsServer | None:
    """
    Raises:
        AddressUnusable
    """
    host, port = settings.metrics.host, settings.metrics.port
    if port is None:
        return None
    refuse_taken_address(host, port, "[metrics] host and port")
    metrics.prepare(settings)
    return MetricsServer(host, port, _end_with_the_service)


def serve(settings: Settings, load: LoadApp) -> None:
    """Serve until SIGTERM or SIGINT. ``load`` runs in each worker; it must be picklable.

    Raises:
        AddressUnusable: another program listens there, or it is not ours to listen on.
    """
    server = settings.server
    if server.unix_socket is None:
        refuse_taken_address(server.host, server.port)
    else:
        prepare_unix_socket(server.unix_socket)
    metrics_server = _metrics_server(settings)
    # Forked workers share this process's settings; nothing here has threads or an open device.
    multiprocessing.set_start_method("fork", force=True)
    settings.state.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    workers = worker_count(server)
    granian = Server(
        target="kmsjwks",
        address=server.host,
        port=server.port,
        uds=server.unix_socket,
        uds_permissions=_SOCKET_MODE,
        interface=Interfaces.WSGI,
        workers=workers,
        blocking_threads=server.max_concurrency + _RESERVED_THREADS,
        http=HTTPModes.http1,
        respawn_failed_workers=True,
        workers_kill_timeout=max(1, round(server.shutdown_timeout)),
        log_level=LogLevels.error,
        log_dictconfig=_OWN_LOGGING,
    )
    granian.metrics = metrics_server
    granian.serve(
        spawn_target=partial(_spawn_worker, server, workers),
        target_loader=partial(_load_worker, load, settings, workers),
        wrap_loader=False,
    )
