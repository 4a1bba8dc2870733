"""One login at one token: a pool of sessions that is used until it is lost, then replaced."""

from __future__ import annotations

import fcntl
import os
import queue
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pkcs11 import Session
from pkcs11.exceptions import UserNotLoggedIn
from pkcs11.types import Token

from kmsjwks.backends.pkcs11.failures import Remedy, VendorError, remedy, translate
from kmsjwks.backends.pkcs11.library import Libraries, Library
from kmsjwks.backends.pkcs11.login import login
from kmsjwks.backends.pkcs11.refused import RefusedPin
from kmsjwks.backends.pkcs11.session import PooledSession, now
from kmsjwks.backends.pkcs11.settings import Pkcs11Settings
from kmsjwks.domain.errors import BackendUnavailable

T = TypeVar("T")
_CLOSE_PATIENCE = 1.0  # seconds
_WAIT_SLICE = 0.05  # seconds between looks at whether the connection is still good


class ConnectionLost(BackendUnavailable):
    """Somebody found the connection broken before the call began; nothing was asked."""

    def __init__(self) -> None:
        super().__init__("The connection to the token was lost.")


class Connection:
    """``usable`` is cleared by whoever finds it broken; a new connection replaces it."""

    def __init__(self, library: Library, token: Token, anchor: Session, sessions: int) -> None:
        self.library, self.token = library, token
        # Closing the session that logged in logs every session out: it stays open, unused.
        self._anchor = anchor
        self.usable = True
        size = 1 if library.serial else sessions
        self.pool = tuple(PooledSession(self._open) for _ in range(size))
        self._idle: queue.SimpleQueue[PooledSession] = queue.SimpleQueue()
        for pooled in self.pool:
            self._idle.put(pooled)
        library.add_user(self)

    def _open(self, rw: bool) -> Session:
        return self.token.open(rw=rw)

    def call(self, function: Callable[[PooledSession], T], deadline: float) -> T:
        """Run ``function`` with an idle session.

        Raises:
            ConnectionLost: before it began.
            BackendUnavailable: no session came free in time, or the answer came too late.
            PKCS11Error: as the module says.
        """

        def begin(pooled: PooledSession) -> T:
            # Asked when the session is already marked busy: whoever clears `usable` and then
            # sees no session busy may finalise the module.
            if not self.usable:
                raise ConnectionLost
            return function(pooled)

        pooled = self._acquire(deadline)
        try:
            serial = self.library.serial
            if serial is None:
                return pooled.run(begin, deadline)
            if not serial.acquire(timeout=max(0.0, deadline - now())):
                raise BackendUnavailable("The PKCS#11 module is busy.")
            try:
                return pooled.run(begin, deadline)
            finally:
                serial.release()
        finally:
            self._idle.put(pooled)

    def _acquire(self, deadline: float) -> PooledSession:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            pass
        while self.usable:
            left = deadline - now()
            if left <= 0:
                raise BackendUnavailable("Every session with the token is busy.")
            try:
                return self._idle.get(timeout=min(left, _WAIT_SLICE))
            except queue.Empty:
                continue
        raise ConnectionLost

    def in_flight(self) -> bool:
        return any(pooled.busy for pooled in self.pool)

    def close_sessions(self) -> None:
        """Only when nothing is in flight. The login stays: C_Logout would hit every session of
        this process, also another backend's on the same token."""
        serial = self.library.serial
        if serial is not None and not serial.acquire(timeout=_CLOSE_PATIENCE):
            return
        try:
            for pooled in self.pool:
                pooled.drop()
        finally:
            if serial is not None:
                serial.release()

    def drain(self, deadline: float) -> bool:
        """Stop using it and wait for the calls in flight. False: some did not return."""
        self.usable = False
        while self.in_flight():
            if now() >= deadline:
                return False
            time.sleep(0.002)
        return True


class Connector:
    """Opens connections. Every attempt after the first initialises the module afresh, because
    after a token process died nothing less helps."""

    def __init__(self, settings: Pkcs11Settings, libraries: Libraries) -> None:
        self._settings, self._libraries = settings, libraries
        self._tried: Library | None = None
        self.entered_at: float | None = None  # monotonic seconds; while the module is asked

    def __call__(self) -> Connection:
        """Load, initialise, find the token, log in. Serialised across processes: some modules
        rewrite token files at login.

        Raises:
            BackendUnavailable: retryable.
            BackendDenied: wrong or missing PIN; must not be tried again.
        """
        settings = self._settings
        with process_lock(settings.lock_path, settings.call_timeout):
            _prepare(settings)
            self.entered_at = now()
            try:
                library = self._libraries.load(
                    settings.module_path, settings.init, settings.reserved, settings.environment
                )
                with library.opening(settings.call_timeout):
                    again, self._tried = library is self._tried, library
                    return self._open(library, again)
            finally:
                self.entered_at = None

    def _open(self, library: Library, again: bool) -> Connection:
        settings = self._settings
        if again:
            library.reinitialise()
        try:
            token = library.find_token(settings.token_label, settings.token_serial)
            refused = RefusedPin(settings.lock_path.with_suffix(".refused"))
            anchor = login(token, self._read_pin if settings.pin else None, refused)
        except VendorError as error:
            if remedy(error) is Remedy.RECONNECT and not isinstance(error, UserNotLoggedIn):
                library.suspect()
            raise translate(error, "opening the token") from error
        return Connection(library, token, anchor, settings.sessions)

    def _read_pin(self) -> str:
        """The time that the PIN's source takes is not the module's."""
        assert self._settings.pin is not None
        self.entered_at = None
        try:
            return self._settings.pin.read()
        finally:
            self.entered_at = now()


def _prepare(settings: Pkcs11Settings) -> None:
    if not settings.prepare_command:
        return
    try:
        subprocess.run(  # noqa: S603  # the operator's own command, no shell
            settings.prepare_command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=settings.generate_timeout,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise BackendUnavailable(
            f"The prepare_command {settings.prepare_command[0]} failed; run it by hand."
        ) from error


@contextmanager
def process_lock(path: Path, timeout: float) -> Iterator[None]:
    """flock over processes and threads alike; freed by the kernel when its holder dies."""
    deadline = now() + timeout
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BackendUnavailable(
            f"The lock file {path} cannot be opened: {error.strerror}."
        ) from error
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if now() >= deadline:
                    raise BackendUnavailable(
                        "Another process has been opening the token for too long."
                    ) from None
                time.sleep(0.005)
        yield
    finally:
        # Closing is not enough: a process forked meanwhile holds the same lock.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
