"""Names of documents as they become file names and object keys."""

from __future__ import annotations

from kmsjwks.domain.errors import PublicationFailed

_MAX_SEGMENT = 255  # bytes; the limit of common file systems
_MAX_NAME = 900  # bytes; S3 takes 1024 with the prefix


def check_name(name: str) -> str:
    """An issuer's path is free text: it must not lead out of the place that it is published to.

    Raises:
        PublicationFailed
    """
    segments = name.split("/")
    sound = all(
        segment not in ("", ".", "..") and len(segment.encode()) <= _MAX_SEGMENT
        for segment in segments
    )
    if not sound or not name.isprintable() or "\\" in name or len(name.encode()) > _MAX_NAME:
        raise PublicationFailed(
            f"The document {name[:80]!r} has no name that can be published to a file or bucket. "
            "Choose an issuer with a plain path."
        )
    return name
