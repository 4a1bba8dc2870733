"""Exits non-zero, saying so, unless the TCP port given is valid and free on 127.0.0.1.

Asked before serving: a server that shares its port among workers (SO_REUSEPORT) would share it
with a second copy of itself just as silently.
"""

from __future__ import annotations

import socket
import sys

HIGHEST_PORT = 65535


def problem(text: str) -> str | None:
    """What is wrong with port ``text``, or None."""
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= HIGHEST_PORT):
        return f"PORT={text} is not a port: give a number from 1 to {HIGHEST_PORT}."
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", int(text)))
        except OSError as error:
            return f"Port {text} cannot be used ({error.strerror}). Try another: make run PORT=8081"
    return None


if __name__ == "__main__":
    sys.exit(problem(sys.argv[1]))
