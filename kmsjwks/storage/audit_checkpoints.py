"""Checkpoints and the keys that prove them, read from files and directories."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kmsjwks.domain.documents import parse_jwks
from kmsjwks.domain.errors import AuditUnavailable, InvalidRequest

CHECKPOINTS = "checkpoints"
"""The directory below the audit directory where a process keeps its own."""

_MAX_TOKEN = 64 * 1024  # bytes
_MAX_KEYS = 16 * 1024 * 1024  # bytes


def kept_checkpoints(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each in a directory, by time; none where there is no directory.

    Raises:
        AuditUnavailable: one cannot be read.
    """
    for path in sorted(directory.glob("checkpoint-*.jws")):
        try:
            with path.open("rb") as file:
                yield path.name, file.read(_MAX_TOKEN)
        except OSError as error:
            raise _unreadable(path, error) from error


def read_checkpoints(place: Path) -> Iterator[tuple[str, str]]:
    """Where it was read and the compact JWS, of each in a directory, or of each line of a file.

    Raises:
        AuditUnavailable: it cannot be read, or is not there.
    """
    if place.is_dir():
        for name, content in kept_checkpoints(place):
            yield name, _text(content)
        return
    try:
        with place.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_MAX_TOKEN), b""), 1):
                if line.strip():
                    yield f"{place.name}:{number}", _text(line)
    except OSError as error:
        raise _unreadable(place, error) from error


def _text(content: bytes) -> str:
    return content.decode("ascii", "replace").strip()


def read_keys(path: Path) -> list[dict[str, object]]:
    """A JWK Set.

    Raises:
        AuditUnavailable: the file cannot be read.
        InvalidRequest: it holds none.
        PrivateMaterialRefused
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_KEYS)
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        return parse_jwks(content)
    except InvalidRequest as error:
        raise InvalidRequest(f"{path}: {error}") from error


def _unreadable(path: Path, error: OSError) -> AuditUnavailable:
    return AuditUnavailable(f"{path} cannot be read: {error.strerror or type(error).__name__}.")
