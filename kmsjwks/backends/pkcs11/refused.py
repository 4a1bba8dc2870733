"""A PIN that a token refused is remembered, so that no process presents it again: tokens lock."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from pathlib import Path


class RefusedPin:
    """A file (0600) beside the lock file, used while holding that lock. It holds a keyed hash."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def matches(self, serial: str, pin: str) -> bool:
        """Whether the token with this serial refused this very PIN."""
        try:
            known = json.loads(self.path.read_text("ascii"))
            salt, mac = bytes.fromhex(known["salt"]), str(known["mac"])
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return hmac.compare_digest(mac, _mac(salt, serial, pin))

    def remember(self, serial: str, pin: str) -> None:
        """
        Raises:
            OSError
        """
        salt = secrets.token_bytes(16)
        known = {"salt": salt.hex(), "mac": _mac(salt, serial, pin)}
        self.path.unlink(missing_ok=True)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(known, file)

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)


def _mac(salt: bytes, serial: str, pin: str) -> str:
    return hashlib.scrypt(
        pin.encode() + b"\x00" + serial.encode(), salt=salt, n=2**14, r=8, p=1, dklen=32
    ).hex()
