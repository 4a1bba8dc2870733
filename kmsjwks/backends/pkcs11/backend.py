"""The KeyBackend over a PKCS#11 token."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from typing import Any, TypeVar

from pkcs11 import MGF, Attribute, ObjectClass
from pkcs11.mechanisms import Mechanism

from kmsjwks.backends.pkcs11 import objects
from kmsjwks.backends.pkcs11.connection import (
    Connection,
    ConnectionLost,
    Connector,
    process_lock,
)
from kmsjwks.backends.pkcs11.failures import Remedy, VendorError, remedy, translate
from kmsjwks.backends.pkcs11.library import Libraries
from kmsjwks.backends.pkcs11.link import Link, LinkHooks
from kmsjwks.backends.pkcs11.mechanisms import offered_algorithms
from kmsjwks.backends.pkcs11.session import PooledSession, now, undisturbed
from kmsjwks.backends.pkcs11.settings import Pkcs11Settings
from kmsjwks.domain.algorithms import Algorithm, Scheme
from kmsjwks.domain.errors import (
    BackendError,
    BackendProtocolError,
    BackendUnavailable,
    UnsupportedAlgorithm,
)
from kmsjwks.domain.ports import BackendKey, BackendStatus, Evidence
from kmsjwks.domain.signatures import digest

T = TypeVar("T")
_SECOND_LOOK = 1.0  # seconds

# DigestInfo prefixes (RFC 8017 section 9.2, note 1): CKM_RSA_PKCS signs DigestInfo || hash.
_DIGEST_INFO = {
    "sha256": bytes.fromhex("3031300d060960864801650304020105000420"),
    "sha384": bytes.fromhex("3041300d060960864801650304020205000430"),
    "sha512": bytes.fromhex("3051300d060960864801650304020305000440"),
}
# The mechanism's default parameter is SHA-1, so hash, mask generation and salt are always given.
_PSS = {
    "sha256": (Mechanism.SHA256, MGF.SHA256, 32),
    "sha384": (Mechanism.SHA384, MGF.SHA384, 48),
    "sha512": (Mechanism.SHA512, MGF.SHA512, 64),
}


class Pkcs11Backend:
    """Custody by one PKCS#11 token. Thread-safe, fork-safe, lazy: loads nothing before first use.

    With ``hooks`` given, calls run in the caller's thread and a stuck one is reported through
    ``hooks.on_stall``; without, each runs in a thread of its own so that the caller always gets
    its answer within the deadline. The first costs nothing per call and is for servers that can
    answer a request from another thread.
    """

    def __init__(
        self, settings: Pkcs11Settings, libraries: Libraries, hooks: LinkHooks | None = None
    ) -> None:
        self._settings = settings
        self._inline = hooks is not None
        self._link = Link(
            Connector(settings, libraries),
            call_timeout=settings.call_timeout,
            replace_after=settings.replace_after,
            hooks=hooks or LinkHooks(),
        )
        self._algorithms: frozenset[Algorithm] | None = None

    @property
    def algorithms(self) -> frozenset[Algorithm]:
        """From the mechanism list, curves tried out with session objects; asked once."""
        if self._algorithms is None:
            self._algorithms = self._call(
                offered_algorithms, "listing its mechanisms", self._settings.generate_timeout
            )
        return self._algorithms

    def create_key(self, alg: Algorithm, *, request_id: str, keyset: str = "") -> BackendKey:  # noqa: ARG002  # a token has no place for it
        if alg not in self.algorithms:
            raise UnsupportedAlgorithm(
                f"The token does not offer {alg.id}. It offers: "
                f"{', '.join(sorted(a.id for a in self.algorithms)) or 'nothing usable'}."
            )
        ref = objects.key_id_for(request_id)
        lock = self._settings.lock_path.with_suffix(".create.lock")
        timeout = self._settings.generate_timeout
        return self._call(
            lambda pooled: self._ensure(pooled, alg, ref),
            f"generating {alg.id}",
            timeout,
            process_lock(lock, timeout),  # two processes with one request_id: one key
        )

    def _ensure(self, pooled: PooledSession, alg: Algorithm, ref: str) -> BackendKey:
        private = pooled.find(ObjectClass.PRIVATE_KEY, ref, rw=True)
        public = pooled.find(ObjectClass.PUBLIC_KEY, ref, rw=True)
        if private and public:
            key = self._read(ref, public[0])
            if key.alg is not alg:
                raise UnsupportedAlgorithm(
                    f"This request_id made a {key.alg.id} key before; it cannot make {alg.id}."
                )
            return key
        pooled.require_login()
        for half in (*private, *public):  # left behind by a process that died in between
            half.destroy()
        return self._generate(pooled, alg, ref)

    def _generate(self, pooled: PooledSession, alg: Algorithm, ref: str) -> BackendKey:
        session: Any = pooled.session(rw=True)
        usage = self._settings
        public, _ = session._generate_keypair(  # generate_keypair() fetches curve parameters first
            id=bytes.fromhex(ref),
            label=objects.label_for(alg, ref),
            store=True,
            private_template=objects.private_template(usage.private_key_usage),
            public_template=objects.public_template(alg, usage.public_key_usage),
            **objects.generation_arguments(alg),
        )
        return BackendKey(ref, alg, objects.spki_of(public, alg))

    @staticmethod
    def _read(ref: str, public: Any) -> BackendKey:
        alg = objects.algorithm_of(public)
        return BackendKey(ref, alg, objects.spki_of(public, alg))

    def get_key(self, ref: str) -> BackendKey:
        def get(pooled: PooledSession) -> BackendKey:
            private = pooled.find_private(ref)
            public = pooled.find(ObjectClass.PUBLIC_KEY, ref)
            return self._read(ref, public[0] if public else private)

        return self._call(get, "reading a public key", self._settings.call_timeout)

    def list_keys(self) -> Iterator[BackendKey]:
        def read_all(pooled: PooledSession) -> list[BackendKey]:
            pooled.require_login()
            private = {bytes(found[Attribute.ID]) for found in pooled.all(ObjectClass.PRIVATE_KEY)}
            ours = []
            for public in pooled.all(ObjectClass.PUBLIC_KEY):
                key_id = bytes(public[Attribute.ID])
                label = str(public[Attribute.LABEL])
                if key_id in private and label.startswith(objects.LABEL_PREFIX):
                    with suppress(BackendProtocolError):
                        ours.append(self._read(key_id.hex(), public))
            return ours

        listing = undisturbed(read_all)
        yield from self._call(listing, "listing keys", self._settings.generate_timeout)

    def sign(self, key: BackendKey, message: bytes) -> bytes:
        alg, ref = key.alg, key.ref
        data, parameter = message, None
        if alg.hash is not None:
            data = digest(alg, message)
            if alg.scheme is Scheme.RSASSA_PKCS1_V1_5:
                data = _DIGEST_INFO[alg.hash] + data
            elif alg.scheme is Scheme.RSASSA_PSS:
                parameter = _PSS[alg.hash]
        mechanism = objects.mechanism(alg.pkcs11_mechanism)

        def sign(handle: Any) -> bytes:
            return bytes(handle.sign(data, mechanism=mechanism, mechanism_param=parameter))

        signature = self._call(
            lambda pooled: pooled.with_private_key(ref, sign),
            "signing",
            self._settings.call_timeout,
        )
        if len(signature) != alg.signature_bytes:
            raise BackendProtocolError(
                f"The token returned a signature of {len(signature)} bytes; {alg.id} has "
                f"{alg.signature_bytes}."
            )
        return signature

    def evidence(self, ref: str) -> Evidence:
        def look(pooled: PooledSession) -> Evidence:
            connection = self._link.connection(now())
            private = pooled.find_private(ref)
            return objects.evidence_of(
                ref, private, connection.token, connection.library.describe()
            )

        return self._call(look, "reading key attributes", self._settings.call_timeout)

    def destroy_key(self, ref: str) -> datetime:
        def destroy(pooled: PooledSession) -> datetime:
            for kind in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY):
                for found in pooled.find(kind, ref, rw=True):
                    found.destroy()
            pooled.require_login()  # otherwise the private object may only have been invisible
            return datetime.now(UTC)

        return self._call(destroy, "destroying a key", self._settings.call_timeout)

    def cancel_destruction(self, ref: str) -> None:
        """A token destroys at once."""
        self.get_key(ref)

    def check(self) -> None:
        self._call(lambda pooled: pooled.require_login(), "answering", self._settings.call_timeout)

    def describe(self) -> dict[str, str]:
        """Module and token, for an administrator's eyes."""

        def look(_: PooledSession) -> dict[str, str]:
            connection = self._link.connection(now())
            token = connection.token
            return {
                **connection.library.describe(),
                "token_label": token.label.strip(),
                "token_serial": token.serial.decode("ascii", "replace").strip(),
                "token_model": token.model.strip(),
                "token_manufacturer": token.manufacturer_id.strip(),
                "sessions": str(len(connection.pool)),
            }

        return self._call(look, "describing itself", self._settings.call_timeout)

    def status(self) -> BackendStatus:
        return self._link.status()

    def close(self) -> None:
        self._link.close()

    def _call(
        self,
        function: Callable[[PooledSession], T],
        doing: str,
        timeout: float,
        guard: AbstractContextManager[object] | None = None,
    ) -> T:
        """``guard`` is held by the thread that calls, even when nobody waits for it any more."""

        def attempt() -> T:
            if guard is None:
                return self._attempt(function, doing, now() + timeout)
            with guard:
                return self._attempt(function, doing, now() + timeout)

        try:
            return attempt() if self._inline else _in_thread(attempt, timeout)
        except BackendError:
            raise
        except Exception as error:  # python-pkcs11 fails to decode what some modules say
            raise BackendProtocolError(
                f"The token's answer while {doing} is not understood ({type(error).__name__})."
            ) from error

    def _attempt(self, function: Callable[[PooledSession], T], doing: str, deadline: float) -> T:
        """Every call here is idempotent, so what a new session or login can cure is tried again
        within the same deadline. More than once again, because one fault can show in steps: a
        call that fails in the midst of a logout, then a session that is not logged in."""
        for last in (False, False, True):
            connection = self._link.connection(deadline)
            try:
                return connection.call(function, deadline)
            except ConnectionLost:
                continue
            except VendorError as error:
                cure = remedy(error)
                if cure is Remedy.RECONNECT or (last and self._is_deaf(connection, cure)):
                    self._link.lost(connection)
                if last or cure is Remedy.NONE:
                    raise translate(error, doing) from error
        raise ConnectionLost

    @staticmethod
    def _is_deaf(connection: Connection, cure: Remedy) -> bool:
        """What fails in every session may be one key's trouble alone: others keep the connection
        as long as it answers anything."""
        if cure is not Remedy.NEW_SESSION:
            return False
        try:
            connection.call(lambda pooled: pooled.require_login(), now() + _SECOND_LOOK)
        except (VendorError, BackendUnavailable):
            return True
        return False


def _in_thread(call: Callable[[], T], timeout: float) -> T:
    """Run in a daemon thread and wait; a thread that the module never returns is left behind.

    Raises:
        BackendUnavailable: no answer in ``timeout`` seconds.
    """
    results: list[T] = []
    failures: list[Exception] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:  # handed to the waiting thread
            failures.append(error)

    thread = threading.Thread(target=run, name="kmsjwks-pkcs11-call", daemon=True)
    thread.start()
    thread.join(timeout)
    if results:
        return results[0]
    if failures:
        raise failures[0]
    raise BackendUnavailable("The PKCS#11 module did not answer within the deadline.")
