"""What a serving process gives up at its start: core dumps, new privileges, an open umask."""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import sys

_log = logging.getLogger(__name__)

# prctl(2)
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38


def harden_process() -> None:
    """For this process and those forked from it. To be called before anything is opened."""
    os.umask(0o077)
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except OSError as error:  # a seccomp filter, such as systemd's @resources
        _log.warning("RLIMIT_CORE cannot be set: %s", error)
    if sys.platform == "linux":
        # A core_pattern that is a pipe disregards the limit, but not this (core(5)). It also
        # keeps other processes of this user out of /proc/PID/{environ,mem} and from ptrace(2).
        _prctl(_PR_SET_DUMPABLE, 0)
        # A PIN command or a prepare_command cannot become root; see docs/hardening.md.
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    numbers = (ctypes.c_ulong(number) for number in (value, 0, 0, 0))
    if libc.prctl(option, *numbers) != 0:
        _log.warning("prctl(%d) failed: %s", option, os.strerror(ctypes.get_errno()))


def warn_of_root() -> None:
    """Not refused: in a container, and with a token that root owns, it is common."""
    if os.geteuid() == 0:
        _log.warning(
            "kmsjwks runs as root, which it never needs. Start it as a user of its own "
            "(docs/hardening.md)."
        )
