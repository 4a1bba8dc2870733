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

from pkcs11 import PROTECTED_AUTH, Session, TokenFlag
from pkcs11.exceptions import UserAlreadyLoggedIn
from pkcs11.types import Token

from kmsjwks.backends.pkcs11.failures import VendorError, translate
from kmsjwks.backends.pkcs11.library import Libraries, Library
from kmsjwks.backends.pkcs11.session import PooledSession, now
from kmsjwks.backends.pkcs11.settings import Pkcs11Settings
from kmsjwks.domain.errors import BackendDenied, BackendUnavailable

T = TypeVar("T")
_WAIT_SLICE = 0.05  # seconds between looks at whether the connection is still good


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
            BackendUnavailable: no session came free in time, or the answer came too late.
            PKCS11Error: as the module says.
        """
        pooled = self._acquire(deadline)
        try:
            serial = self.library.serial
            if serial is None:
                return pooled.run(function, deadline)
            if not serial.acquire(timeout=max(0.0, deadline - now())):
                raise BackendUnavailable("The PKCS#11 module is busy.")
            try:
                return pooled.run(function, deadline)
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
        raise BackendUnavailable("The connection to the token was lost.")

    def in_flight(self) -> bool:
        return any(pooled.busy for pooled in self.pool)

    def close_sessions(self) -> None:
        """Only when nothing is in flight. The login stays: C_Logout would hit every session of
        this process, also another backend's on the same token."""
        for pooled in self.pool:
            pooled.drop()

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
            library = self._libraries.load(
                settings.module_path, settings.init, settings.reserved, settings.environment
            )
            if library is self._tried:
                library.reinitialise()
            self._tried = library
            try:
                token = library.find_token(settings.token_label, settings.token_serial)
                anchor = _login(token, settings)
            except VendorError as error:
                raise translate(error, "opening the token") from error
        return Connection(library, token, anchor, settings.sessions)


def _login(token: Token, settings: Pkcs11Settings) -> Session:
    """One attempt, never repeated: real tokens lock after a few wrong PINs."""
    _refuse_last_try(token)
    if settings.pin is not None:
        pin: object = settings.pin.read()
    elif token.flags & TokenFlag.PROTECTED_AUTHENTICATION_PATH:
        pin = PROTECTED_AUTH
    elif token.flags & TokenFlag.LOGIN_REQUIRED:
        raise BackendDenied(
            f"The token {token.label!r} requires a login; set pin_file, pin_env_file or "
            "pin_command."
        )
    else:
        return token.open()
    try:
        return token.open(user_pin=pin)
    except UserAlreadyLoggedIn:
        return token.open()


def _refuse_last_try(token: Token) -> None:
    if token.flags & TokenFlag.USER_PIN_LOCKED:
        raise BackendDenied(f"The user PIN of the token {token.label!r} is locked.")
    if token.flags & TokenFlag.USER_PIN_FINAL_TRY:
        raise BackendDenied(
            f"The token {token.label!r} has one PIN try left; it is not used up here. Log in once "
            "by hand with the right PIN, then restart."
        )


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
        os.close(descriptor)
