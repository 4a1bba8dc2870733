"""Loading and initialising a PKCS#11 module so that threads survive it."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Protocol

from pkcs11._pkcs11 import lib as _PyKcs11Library
from pkcs11.types import Token

from kmsjwks.backends.pkcs11.failures import VendorError, describe, not_initialised
from kmsjwks.backends.pkcs11.settings import InitMode
from kmsjwks.domain.errors import BackendUnavailable

_CKF_OS_LOCKING_OK = 2
_CKR_OK = 0
_CKR_ARGUMENTS_BAD = 0x7
_CKR_NEED_TO_CREATE_THREADS = 0x9
_CKR_CANT_LOCK = 0xA
_CKR_ALREADY_INITIALIZED = 0x191
_NULL_INSTEAD = (_CKR_ARGUMENTS_BAD, _CKR_NEED_TO_CREATE_THREADS, _CKR_CANT_LOCK)


class _InitializeArgs(ctypes.Structure):
    """CK_C_INITIALIZE_ARGS (PKCS#11 3.0 section 3.7)."""

    _fields_ = (
        ("CreateMutex", ctypes.c_void_p),
        ("DestroyMutex", ctypes.c_void_p),
        ("LockMutex", ctypes.c_void_p),
        ("UnlockMutex", ctypes.c_void_p),
        ("flags", ctypes.c_ulong),
        ("pReserved", ctypes.c_char_p),
    )


class _FunctionListHead(ctypes.Structure):
    """The first entries of CK_FUNCTION_LIST: version, C_Initialize, C_Finalize."""

    _fields_ = (
        ("version", ctypes.c_ubyte * 2),
        ("C_Initialize", ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.c_void_p)),
        ("C_Finalize", ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.c_void_p)),
    )


class InitializeFailed(BackendUnavailable):
    """C_Initialize answered with an error; ``rv`` is the CK_RV."""

    def __init__(self, rv: int) -> None:
        super().__init__(f"The PKCS#11 module refused C_Initialize (CK_RV 0x{rv:X}).")
        self.rv = rv


class _LockingLibrary(_PyKcs11Library):
    """python-pkcs11's library, initialised with CKF_OS_LOCKING_OK.

    Its own ``initialize`` passes NULL, upon which a module may switch its mutexes off (PKCS#11
    3.0 section 5.4); SoftHSM does, and crashes under threads. ctypes releases the GIL around
    both calls, so a module that hangs in them does not stop this process.
    """

    functions: _FunctionListHead
    reserved: bytes | None

    def initialize(self) -> None:
        args = _InitializeArgs(None, None, None, None, _CKF_OS_LOCKING_OK, self.reserved)
        rv = int(self.functions.C_Initialize(ctypes.addressof(args)))
        if rv not in (_CKR_OK, _CKR_ALREADY_INITIALIZED):
            raise InitializeFailed(rv)

    def finalize(self) -> None:
        self.functions.C_Finalize(None)


def _function_list(path: str) -> _FunctionListHead:
    pointer = ctypes.POINTER(_FunctionListHead)()
    try:
        rv = ctypes.CDLL(path).C_GetFunctionList(ctypes.byref(pointer))
    except (OSError, AttributeError) as error:
        raise BackendUnavailable(
            f"{path} is not a PKCS#11 module that can be loaded. Check module_path."
        ) from error
    if rv != _CKR_OK:
        raise InitializeFailed(rv)
    return pointer.contents


def _locking_library(
    path: str, functions: _FunctionListHead, reserved: str | None
) -> _PyKcs11Library:
    members = {"functions": functions, "reserved": reserved.encode() if reserved else None}
    kind: type[_PyKcs11Library] = type("LockingLibrary", (_LockingLibrary,), members)
    return kind(path)


class User(Protocol):
    """Something with calls in the module."""

    usable: bool

    def in_flight(self) -> bool: ...


class Library:
    """One loaded and initialised module of this process.

    ``serial`` is a lock to hold during every call where the module was initialised with NULL
    and so promises no thread safety; None where it locks by itself.
    """

    def __init__(self, path: str, init: InitMode, reserved: str | None) -> None:
        """
        Raises:
            BackendUnavailable: the file is no PKCS#11 module, or C_Initialize failed.
        """
        self.path = path
        self.serial: threading.Lock | None = None
        self._users: weakref.WeakSet[User] = weakref.WeakSet()
        self._opening = threading.Lock()
        self._lib = self._load(init, reserved)

    def _load(self, init: InitMode, reserved: str | None) -> _PyKcs11Library:
        if init != "null":
            functions = _function_list(self.path)
            try:
                return _locking_library(self.path, functions, reserved)
            except InitializeFailed as error:
                if init == "locking" or error.rv not in _NULL_INSTEAD:
                    raise
            except VendorError as error:
                # p11-kit-client keeps state per caller of C_GetFunctionList: what ctypes
                # initialised is not what python-pkcs11 holds.
                if init == "locking" or not not_initialised(error):
                    raise self._unloadable(error) from error
                functions.C_Finalize(None)
        self.serial = threading.Lock()
        try:
            return _PyKcs11Library(self.path)
        except VendorError as error:
            raise self._unloadable(error) from error

    def _unloadable(self, error: VendorError) -> BackendUnavailable:
        return BackendUnavailable(
            f"The PKCS#11 module {self.path} cannot be used: {describe(error)}. Check the path, "
            "the module's own configuration and that its service runs."
        )

    @contextmanager
    def opening(self, timeout: float) -> Iterator[None]:
        """Only one thread (re)initialises, looks for tokens and logs in: the module is global to
        the process, and C_Finalize must not meet another call. ``timeout`` in seconds.

        Raises:
            BackendUnavailable: another backend of this process has been at it for too long.
        """
        with ExitStack() as held:
            for lock in (self._opening, *([self.serial] if self.serial else [])):
                if not lock.acquire(timeout=timeout):
                    raise BackendUnavailable(f"{self.path} does not answer while it is opened.")
                held.callback(lock.release)
            yield

    def add_user(self, user: User) -> None:
        self._users.add(user)

    def reinitialise(self) -> None:
        """C_Finalize and C_Initialize, unless somebody else uses the module well.

        Raises:
            BackendUnavailable: a call is still in flight, or the module does not come back.
        """
        users = list(self._users)
        if any(user.usable for user in users):
            return
        if any(user.in_flight() for user in users):
            raise BackendUnavailable("A call into the PKCS#11 module has not returned yet.")
        # python-pkcs11 holds the GIL in C_Finalize: a module that hangs there would freeze the
        # whole process. So it is asked something harmless first, without the GIL.
        with suppress(VendorError):
            self._lib.get_slots()
        with suppress(VendorError):  # a token process that died cannot be told good-bye
            self._lib.finalize()
        try:
            self._lib.initialize()
        except VendorError as error:
            raise self._unloadable(error) from error

    def suspect(self) -> None:
        """Somebody could not connect. If the module as a whole is broken, say so to its other
        users, who may be idle and would keep it from being initialised again."""
        try:
            self._lib.get_slots()
        except VendorError:
            for user in list(self._users):
                user.usable = False

    def find_token(self, label: str | None, serial: str | None) -> Token:
        """
        Raises:
            BackendUnavailable: no such token, or more than one.
            PKCS11Error: as the module says.
        """
        found = [
            token
            for token in self._lib.get_tokens()
            if (label is None or token.label == label)
            and (serial is None or token.serial.decode("ascii", "replace").strip() == serial)
        ]
        wanted = " and ".join(
            f"{what} {value!r}" for what, value in (("label", label), ("serial", serial)) if value
        )
        if not found:
            raise BackendUnavailable(f"{self.path} shows no token with {wanted}.")
        if len(found) > 1:
            raise BackendUnavailable(
                f"{self.path} shows {len(found)} tokens with {wanted}; add token_serial."
            )
        return found[0]

    def describe(self) -> dict[str, str]:
        """Manufacturer, description and versions as C_GetInfo tells them."""
        return {
            "module": self.path,
            "library_manufacturer": self._lib.manufacturer_id.strip(),
            "library_description": self._lib.library_description.strip(),
            "library_version": ".".join(str(part) for part in self._lib.library_version),
            "cryptoki_version": ".".join(str(part) for part in self._lib.cryptoki_version),
            "initialised": "NULL, calls serialised" if self.serial else "CKF_OS_LOCKING_OK",
        }


class Libraries:
    """The modules loaded in this process. A module is global to a process, so they are shared.

    Entries are never dropped: unloading a module that has threads or sessions is not safe.
    """

    def __init__(self) -> None:
        self._entries: dict[tuple[int, str], _Entry] = {}

    def load(
        self, path: str, init: InitMode, reserved: str | None, environment: Mapping[str, str]
    ) -> Library:
        """Load once per process, with ``environment`` set before. A module that hangs keeps no
        other one from being loaded.

        Raises:
            BackendUnavailable: the module cannot be loaded or initialised.
        """
        # setdefault is atomic, so this needs no lock that a fork could copy while it is held.
        entry = self._entries.setdefault((os.getpid(), os.path.realpath(path)), _Entry())
        with entry.lock:
            if entry.library is None:
                os.environ.update(environment)
                entry.library = Library(path, init, reserved)
            return entry.library


class _Entry:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.library: Library | None = None
