"""Takes what may be a secret out of the environment of the serving process, and out of /proc."""

from __future__ import annotations

import ctypes
import logging
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, urlsplit

_log = logging.getLogger(__name__)

# Kept, because libraries and PKCS#11 modules read them while the service runs. All else goes:
# nobody can list what other people call a secret.
_KEPT = re.compile(
    r"""
    PATH | HOME | USER | LOGNAME | SHELL | PWD | HOSTNAME | TERM | TMPDIR | TZ | TZDIR
    | LANG | LANGUAGE | LC_\w+ | LD_LIBRARY_PATH | LD_PRELOAD | MALLOC_\w+ | PYTHON\w+ | VIRTUAL_ENV
    | COVERAGE_\w+ | XDG_\w+ | \w+_DIRECTORY | NOTIFY_SOCKET | INVOCATION_ID | JOURNAL_STREAM
    | SSL_CERT_FILE | SSL_CERT_DIR | OPENSSL_\w+ | REQUESTS_CA_BUNDLE | CURL_CA_BUNDLE
    | (HTTP|HTTPS|ALL|NO)_PROXY | PG\w+ | AWS_\w+
    | SOFTHSM2_CONF | P11_KIT_\w+ | OPENSC_\w+ | NSS_\w+ | TPM2_PKCS11_\w+ | PROMETHEUS_\w+
    | ChrystokiConfigurationPath | CKNFAST_\w+ | NFAST_\w+ | CLOUDHSM_\w+
    """,
    re.VERBOSE | re.IGNORECASE,
)
_SECRET_NAME = re.compile(r"pass(word|wd|phrase)|secret|token|pin|access_?key|credential", re.I)
_PATH_NAME = re.compile(r"_(FILE|DIR|DIRECTORY|PATH|URI)$|^PGPASSFILE$", re.IGNORECASE)
_CREDENTIALS_IN_URL = re.compile(r"//[^/]*@")

_ENV_START, _ENV_END = 47, 48  # proc_pid_stat(5), fields 50 and 51, counted after the name


def scrub_environment() -> dict[str, str]:
    """Leave in the environment only what is known to be needed and no secret; what was there.

    The block that the kernel shows in ``/proc/PID/environ`` is overwritten too: removing a
    variable leaves that block as it was. Processes forked later inherit both. To be called while
    the process has one thread.
    """
    before = dict(os.environ)
    for name, value in before.items():
        if _is_kept(name, value):
            os.environ[name] = value  # setenv(3) copies it out of the block
        else:
            del os.environ[name]
    if not _overwrite_block():
        _log.warning(
            "The environment that this process was started with may still be seen by its user; "
            "give secrets in files."
        )
    gone = sorted(before.keys() - os.environ.keys())
    _log.debug("Variables taken out of the environment: %s", ", ".join(gone) or "none")
    return before


def _is_kept(name: str, value: str) -> bool:
    if not _KEPT.fullmatch(re.sub(r"\s", "?", name)) or _CREDENTIALS_IN_URL.search(value):
        return False
    return bool(_PATH_NAME.search(name)) or not _SECRET_NAME.search(name)


def _overwrite_block() -> bool:
    """Whether the block is empty now; also where a system shows none."""
    shown = Path("/proc/self/environ")
    # A process always sees its own addresses here; setting others (PR_SET_MM) needs privileges.
    with suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        start, end = int(fields[_ENV_START]), int(fields[_ENV_END])
        block = shown.read_bytes()
        if 0 < start < end and ctypes.string_at(start, end - start) == block:
            ctypes.memset(start, 0, end - start)
        return not shown.read_bytes().strip(b"\0")
    return False


def with_password(url: str, environ: Mapping[str, str]) -> str:
    """A PostgreSQL URL that no longer needs libpq to read ``PGPASSWORD`` from the environment."""
    password = environ.get("PGPASSWORD")
    if not password or not url.startswith("postgresql"):
        return url
    with suppress(ValueError):
        parts = urlsplit(url)
        if parts.password is None and "password=" not in parts.query:
            mark = "&" if parts.query else "?"
            return f"{url}{mark}password={quote(password, safe='')}"
    return url
