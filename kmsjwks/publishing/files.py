"""Documents as files, for a web server or a CDN's origin to serve."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from kmsjwks.domain.documents import Document
from kmsjwks.domain.errors import PublicationFailed
from kmsjwks.publishing.names import check_name

# RFC 8414 section 3 puts one issuer's document below another's, which a file cannot be.
_NESTED = ".well-known/oauth-authorization-server"
_MODE = 0o644  # public data, for a web server that runs as another user


class DirectoryTarget:
    """Every document, under its URL path; below that as ``index.json`` for RFC 8414 metadata.

    Headers are the web server's business.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def __str__(self) -> str:
        return f"{self._root}/"

    def publish(self, name: str, document: Document) -> bool:
        path = self._root / check_name(name)
        nested = name == _NESTED or name.startswith(f"{_NESTED}/")
        return _replace(path / "index.json" if nested else path, document.body)


class FileTarget:
    """One document, the one called ``name``, in the file ``path``; others are passed over."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name

    def __str__(self) -> str:
        return str(self._path)

    def publish(self, name: str, document: Document) -> bool:
        return name == self._name and _replace(self._path, document.body)


def _replace(path: Path, body: bytes) -> bool:
    try:
        if _content(path) == body:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, body)
    except OSError as error:
        raise PublicationFailed(
            f"{path} could not be written: {error.strerror or error}. Its directory must belong to "
            "the service's user and have room."
        ) from error
    return True


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _write(path: Path, body: bytes) -> None:
    """All or nothing. A name of its own for the new file: other processes write too."""
    descriptor, new = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(body)
            file.flush()
            os.fchmod(file.fileno(), _MODE)
            os.fsync(file.fileno())
        Path(new).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(new).unlink()
        raise
