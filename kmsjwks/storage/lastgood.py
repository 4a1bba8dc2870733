"""The last known good documents on disk: served when the database is down at a start."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmsjwks.domain import strictjson
from kmsjwks.domain.documents import (
    JWKS_MEDIA_TYPE,
    METADATA_MEDIA_TYPE,
    Document,
    is_key_of_its_kid,
    make_document,
    parse_jwks,
)
from kmsjwks.domain.errors import InvalidRequest, KmsJwksError

_FORMAT = 1
_MAX_BYTES = 64 * 1024 * 1024
_LOCK_PATIENCE = 1.0  # seconds; the holder may be stopped, and the caller keeps keys fresh
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Saved:
    revision: int
    taken_at: float  # seconds since the epoch
    documents: Mapping[str, Document]

    def is_older_than(self, other: _Saved) -> bool:
        """By both measures: a restored database counts revisions from lower down again, and a
        clock may be set back, but hardly both at once."""
        return self.revision <= other.revision and self.taken_at < other.taken_at


class LastGoodDocuments:
    """One file that the worker processes of a service on one machine share. Thread-safe.

    Public data, readable by all. What is damaged or was tampered with is not served.
    """

    def __init__(self, path: Path) -> None:
        """``path``: the file; its directory is made when it is first written. A file of the same
        name with ``.lock`` and, while writing, one with ``.new`` are beside it."""
        self._path = path
        self._lock = threading.Lock()
        self._held: Mapping[str, Document] | None = None
        self._failing = False

    def save(self, documents: Mapping[str, Document], *, revision: int, taken_at: float) -> None:
        """Keep them, unless the file holds the same or newer ones. Never raises.

        Call it after every refresh: it costs nothing while ``documents`` is the object of the last
        call, and tries again what failed. ``revision`` is the store's, ``taken_at`` in seconds
        since the epoch.
        """
        with self._lock:
            try:
                if documents is self._held and self._path.exists():
                    return
                self._replace(_Saved(revision, taken_at, documents))
                self._held = documents
                if self._failing:
                    _log.info("The last known good documents are kept on disk again.")
                self._failing = False
            except (OSError, KmsJwksError) as error:
                if not self._failing:
                    _log.error(
                        "The last known good documents cannot be kept in %s (%s). The service goes "
                        "on; if it starts while the database is down, it has older ones or none.",
                        self._path,
                        error,
                    )
                self._failing = True

    def load(self) -> dict[str, Document]:
        """URL path -> document; empty where there is no file, or none that may be served."""
        try:
            saved = self._read()
        except FileNotFoundError:
            return {}
        except (OSError, KmsJwksError) as error:
            _log.error("The last known good documents in %s are not used: %s", self._path, error)
            return {}
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(saved.taken_at))
        _log.info("%d last known good documents, of %s.", len(saved.documents), since)
        return dict(saved.documents)

    def _replace(self, new: _Saved) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self._path.with_name(f"{self._path.name}.lock")):
            held = self._read_if_good()
            if held is not None and (held.documents == new.documents or new.is_older_than(held)):
                return
            _write(self._path, _encode(new))

    def _read_if_good(self) -> _Saved | None:
        try:
            return self._read()
        except (OSError, KmsJwksError):
            return None  # to be written afresh

    def _read(self) -> _Saved:
        with os.fdopen(
            os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb"
        ) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InvalidRequest("It is not a regular file.")
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise InvalidRequest("It is too large.")
        return _decode(data)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Held by one process; the kernel frees it when that dies."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + _LOCK_PATIENCE
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise OSError("another process has it locked")
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write(path: Path, data: bytes) -> None:
    """All or nothing, also when the machine stops. Under the lock, so that one name will do for
    the new file and a crash leaves one at most."""
    new = path.with_name(f"{path.name}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(new, flags, 0o644), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _encode(saved: _Saved) -> bytes:
    """No ETag: it follows from the body. The digests tell a damaged file from a good one."""
    documents = {
        path: {
            "media_type": document.media_type,
            "cache_control": document.cache_control,
            "sha256": hashlib.sha256(document.body).hexdigest(),
            "issuer": document.issuer,
            "body": document.body.decode(),
        }
        for path, document in saved.documents.items()
    }
    return strictjson.dumps(
        {
            "format": _FORMAT,
            "revision": saved.revision,
            "taken_at": saved.taken_at,
            "documents": documents,
        }
    )


def _decode(data: bytes) -> _Saved:
    """
    Raises:
        MalformedJson, InvalidRequest, PrivateMaterialRefused.
    """
    content = strictjson.loads(data)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise InvalidRequest("It is not a file of this version.")
    revision, taken_at = content.get("revision"), content.get("taken_at")
    documents = content.get("documents")
    if not (isinstance(revision, int) and isinstance(taken_at, int | float)):
        raise InvalidRequest("It does not say of when it is.")
    if not 0 <= taken_at < 2**40 or not isinstance(documents, dict):
        raise InvalidRequest("It holds no documents, or is of no possible time.")
    return _Saved(
        revision, taken_at, {path: _document(path, documents[path]) for path in documents}
    )


def _document(path: str, stored: Any) -> Document:
    names = ("media_type", "cache_control", "sha256", "body")
    if not isinstance(stored, dict) or not all(isinstance(stored.get(n), str) for n in names):
        raise InvalidRequest(f"The document of {path!r} is incomplete.")
    cache_control, body = stored["cache_control"], stored["body"].encode()
    if not path.startswith("/") or not (cache_control.isascii() and cache_control.isprintable()):
        raise InvalidRequest(f"The path or the headers of {path!r} are not sound.")
    if hashlib.sha256(body).hexdigest() != stored["sha256"]:
        raise InvalidRequest(f"The document of {path!r} is damaged.")
    if stored["media_type"] == JWKS_MEDIA_TYPE:
        _check_jwks(path, body)
    elif stored["media_type"] == METADATA_MEDIA_TYPE:
        _check_metadata(path, body)
    else:
        raise InvalidRequest(f"The document of {path!r} has an unknown media type.")
    issuer = stored.get("issuer", "")  # files of older versions have none
    if not isinstance(issuer, str):
        raise InvalidRequest(f"The issuer of {path!r} is none.")
    return make_document(body, stored["media_type"], cache_control, issuer)


def _check_jwks(path: str, body: bytes) -> None:
    for jwk in parse_jwks(body):
        if not all(isinstance(value, str) for value in jwk.values()):
            raise InvalidRequest(f"A key of {path!r} is not one that this service publishes.")
        if jwk.get("use") != "sig" or "alg" not in jwk or not is_key_of_its_kid(jwk):
            raise InvalidRequest(f"A key of {path!r} does not match its kid.")


def _check_metadata(path: str, body: bytes) -> None:
    metadata = strictjson.loads(body)
    members = metadata if isinstance(metadata, dict) else {}
    if not all(isinstance(members.get(name), str) for name in ("issuer", "jwks_uri")):
        raise InvalidRequest(f"The document of {path!r} is not issuer metadata.")
