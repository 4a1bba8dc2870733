"""Would a fresh process reach the token? Asked when this one is stuck in the module."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace

from kmsjwks.backends.pkcs11.backend import Pkcs11Backend
from kmsjwks.backends.pkcs11.library import Libraries
from kmsjwks.backends.pkcs11.settings import Pkcs11Settings
from kmsjwks.domain.errors import BackendError


def probe_in_fresh_process(settings: Pkcs11Settings) -> bool:
    """Open the token in a spawned process and ask it once; killed when it does not answer."""
    # A lock of its own: this process may be stuck while it holds the usual one.
    settings = replace(
        settings, lock_path=settings.lock_path.with_suffix(".probe.lock"), prepare_command=()
    )
    process = multiprocessing.get_context("spawn").Process(
        target=_probe, args=(settings,), daemon=True
    )
    process.start()
    process.join(settings.call_timeout * 2 + 5.0)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode == 0


def _probe(settings: Pkcs11Settings) -> None:
    backend = Pkcs11Backend(settings, Libraries())
    try:
        backend.check()
    except BackendError:
        raise SystemExit(1) from None
