"""One session of the pool: opened when first used, its key handles cached, its call timed."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from pkcs11 import Attribute, ObjectClass, Session

from kmsjwks.backends.pkcs11.failures import Remedy, VendorError, remedy
from kmsjwks.domain.errors import BackendUnavailable, KeyNotFound

T = TypeVar("T")
IDLE = math.inf
_DISTURBANCES = 20


class PooledSession:
    """Used by one thread at a time. ``deadline`` (monotonic seconds) tells a watcher, without any
    lock, until when the present call may last; ``IDLE`` between calls."""

    __slots__ = (
        "_guard",
        "_handles",
        "_open",
        "_over",
        "_session",
        "deadline",
        "poisoned",
        "rw",
        "thread",
    )

    def __init__(self, open_session: Callable[[bool], Session]) -> None:
        self._open = open_session
        self._session: Session | None = None
        self._handles: dict[str, Any] = {}
        self.rw = False
        self.deadline = IDLE
        self.thread = 0
        self.poisoned = False
        self._over = True
        self._guard = threading.Lock()

    def run(self, call: Callable[[PooledSession], T], deadline: float) -> T:
        """Call into the module; afterwards say so if the deadline passed meanwhile.

        Until it returns the session is ``busy``, so nobody finalises the module meanwhile.

        Raises:
            BackendUnavailable: the answer came too late to be used.
            PKCS11Error: as the module says.
        """
        self.thread, self._over = threading.get_ident(), False
        self.deadline = deadline
        try:
            result = call(self)
        except VendorError:
            # Whatever failed, an operation or a search may be left open in the session.
            self.drop()
            raise
        finally:
            late = self._end()
            if late:
                self.drop()
            self.poisoned = False
            self.deadline = IDLE
        if late:
            raise BackendUnavailable("The token answered after the deadline.")
        return result

    def _end(self) -> bool:
        """The module answered. From here on nobody answers for this thread; True where somebody
        did."""
        with self._guard:
            self._over = True
            return self.poisoned

    def poison(self, now: float, tell: Callable[[int], None]) -> bool:
        """Give a call up that is overdue at ``now``, and ``tell`` so while its thread cannot go
        on to something else. False where it is not overdue, or was given up before."""
        with self._guard:
            if self._over or self.poisoned or not self.overdue(now):
                return False
            self.poisoned = True
            tell(self.thread)
            return True

    @property
    def busy(self) -> bool:
        return self.deadline is not IDLE

    def overdue(self, now: float) -> bool:
        return self.deadline < now

    def session(self, *, rw: bool = False) -> Session:
        """The session, opened read-only until a call needs it read-write."""
        if self._session is None or (rw and not self.rw):
            self.drop()
            self._session = self._open(rw)
            self.rw = rw
        return self._session

    def drop(self) -> None:
        """Close the session and forget its handles."""
        session, self._session = self._session, None
        self._handles = {}
        if session is not None:
            with suppress(VendorError):  # an error means that it is gone, as wanted
                session.close()

    def find(self, kind: ObjectClass, ref: str, *, rw: bool = False) -> list[Any]:
        """All objects of one class with this CKA_ID. Read to the end: a half-read search blocks
        the session.

        Raises:
            KeyNotFound: the reference is none.
        """
        wanted = {Attribute.CLASS: kind, Attribute.ID: _key_id(ref)}
        return list(self.session(rw=rw).get_objects(wanted))

    def all(self, kind: ObjectClass) -> list[Any]:
        """All objects of one class."""
        return list(self.session().get_objects({Attribute.CLASS: kind}))

    def find_private(self, ref: str) -> Any:
        """
        Raises:
            KeyNotFound: the token is logged in and has no such private key.
            UserNotLoggedIn: it is not; private objects are invisible, so nothing is proved.
        """
        found = self.find(ObjectClass.PRIVATE_KEY, ref)
        if not found:
            self.require_login()
            raise KeyNotFound(
                f"The token has no private key with CKA_ID {ref}. Was it deleted there?"
            )
        return found[0]

    def _held(self, ref: str) -> Any:
        """Looked up once a session: a search costs 12 ms at 500 key pairs."""
        handle = self._handles.get(ref)
        if handle is None:
            handle = self._handles[ref] = self.find_private(ref)
        return handle

    def with_private_key(self, ref: str, use: Callable[[Any], T]) -> T:
        """``use`` a handle; where it turns out stale, look the key up again and use that.

        Raises:
            KeyNotFound: somebody deleted the key.
        """
        try:
            return use(self._held(ref))
        except VendorError as error:
            if remedy(error) is not Remedy.LOOK_UP_AGAIN:
                raise
        self._handles.pop(ref, None)
        return use(self._held(ref))

    def require_login(self) -> None:
        """
        Raises:
            PKCS11Error: UserNotLoggedIn where another session logged out, or the token did;
                others where the connection is lost.
        """
        probe = {
            Attribute.CLASS: ObjectClass.DATA,
            Attribute.TOKEN: False,
            Attribute.PRIVATE: True,
            Attribute.LABEL: "kmsjwks login probe",
            Attribute.VALUE: b"\x00",
        }
        try:
            self.session().create_object(probe).destroy()
        except VendorError as error:
            if remedy(error) is Remedy.RECONNECT:
                raise
            # Any other: a token without data objects, which did not say that we are logged out.


def undisturbed(call: Callable[[PooledSession], T]) -> Callable[[PooledSession], T]:
    """``call`` over many objects, again where one of them is deleted while they are read."""

    def persist(pooled: PooledSession) -> T:
        for _ in range(_DISTURBANCES):
            try:
                return call(pooled)
            except VendorError as error:
                if remedy(error) is not Remedy.LOOK_UP_AGAIN:
                    raise
        return call(pooled)

    return persist


def _key_id(ref: str) -> bytes:
    """CKA_ID from its lower-case hex. Never empty: that would match objects that have none."""
    try:
        key_id = bytes.fromhex(ref)
    except ValueError:
        key_id = b""
    if not key_id or key_id.hex() != ref:
        raise KeyNotFound(f"{ref!r} is not a CKA_ID in lower-case hex.")
    return key_id


def now() -> float:
    """Monotonic seconds, the clock of every deadline here."""
    return time.monotonic()
