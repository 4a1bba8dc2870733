"""What the C library's allocator is told, so that a worker takes no more memory than it uses."""

from __future__ import annotations

import ctypes
import gc
import threading
from contextlib import suppress

_M_ARENA_MAX = -8  # mallopt(3)
_ARENAS = 2  # by default glibc makes eight a core: what one thread freed, another cannot use
_SETTLED = 10.0  # seconds after a start; keys are loaded by then, and devices open


def prepare() -> None:
    """In the service, before workers are forked: what was made only to be checked is let go."""
    gc.collect()
    with suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)


def trim_when_settled() -> None:
    """In a worker: give back, once, what loading a thousand keysets took for a moment."""
    timer = threading.Timer(_SETTLED, _trim)
    timer.daemon = True
    timer.start()


def _trim() -> None:
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
