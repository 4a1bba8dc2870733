"""What `doctor` does: a backend's own examination, or everything a backend must do tried with a
key made for it and destroyed; and keys that nobody knows."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

from kmsjwks.domain.algorithms import Algorithm, find_algorithm
from kmsjwks.domain.errors import BackendError, KeyNotFound, KeyPendingDeletion
from kmsjwks.domain.keys import Key, KeyState
from kmsjwks.domain.ports import BackendKey, Evidence, Finding, KeyBackend, SelfExamining
from kmsjwks.domain.signatures import make_verifier

OPEN = "open"
"""The check without which no other is tried: does the backend answer and let us in?"""

ORPHANS = "orphans"
"""The check that finds keys which nobody knows: warnings, where ``ok``."""

_TRIED_FIRST = ("ES256", "RS256", "Ed25519", "ES384", "ES256K")
_MESSAGE = b"kmsjwks doctor"


def diagnose(backend: KeyBackend, used: Sequence[Key] = ()) -> Iterator[Finding]:
    """Check by check, so that one that hangs is seen to hang; stops where going on is pointless.

    A backend that examines itself tries its own throw-away key, so none is made here; it may try
    permissions on the keys that are ``used``, too.
    """
    if isinstance(backend, SelfExamining):
        yield from backend.examine([BackendKey(k.ref, k.algorithm, k.spki) for k in used])
        return
    try:
        backend.check()
        yield Finding(OPEN, True, "the backend answers and lets us in")
        offered = backend.algorithms
    except BackendError as error:
        yield Finding(OPEN, False, str(error))
        return
    yield Finding("algorithms", bool(offered), ", ".join(sorted(a.id for a in offered)) or "none")
    algorithm = _throw_away_algorithm(offered)
    if algorithm is not None:
        yield from _try_key(backend, algorithm)


def keys_in_use(backend_name: str, keys: Iterable[Key]) -> list[Key]:
    """Those of the backend that sign or stand by."""
    states = (KeyState.ACTIVE, KeyState.PRE_ACTIVATION)
    return [key for key in keys if key.backend == backend_name and key.state in states]


def find_unusable(backend_name: str, backend: KeyBackend, keys: Iterable[Key]) -> Iterator[Finding]:
    """The keys that sign or stand by, each asked for: a disabled key shows nowhere else before
    somebody needs it."""
    used = keys_in_use(backend_name, keys)
    for key in used:
        try:
            held = backend.get_key(key.ref)
        except BackendError as error:
            yield Finding(
                "keys", False, f"{key.state.value} key {key.kid} of {key.keyset}: {error}"
            )
            continue
        if held.spki != key.spki:
            said = f"the backend has another key under the reference of {key.kid} of {key.keyset}"
            yield Finding("keys", False, said)
    if used:
        yield Finding("keys", True, f"{len(used)} that sign or stand by were asked for")


def find_orphans(name: str, backend: KeyBackend, known: Sequence[Key]) -> Iterator[Finding]:
    """Keys of ours in the backend ``name`` that the database does not know. One that a creation
    in progress is about to record shows here too, hence a warning and no failure."""
    refs = {key.ref for key in known if key.backend == name}
    try:
        orphans = sorted(key.ref for key in backend.list_keys() if key.ref not in refs)
    except BackendError as error:
        yield Finding(ORPHANS, False, str(error))
        return
    for ref in orphans:
        yield Finding(
            ORPHANS,
            True,
            f"the key {ref} is ours by its marks, but not in the database. Where another "
            "installation shares this backend under the same name, or the database was restored "
            "from an old copy, that is why: put that right first. Otherwise nothing uses it: "
            "destroy it with the backend's own tools.",
        )


def _throw_away_algorithm(offered: frozenset[Algorithm]) -> Algorithm | None:
    for name in _TRIED_FIRST:
        if find_algorithm(name) in offered:
            return find_algorithm(name)
    return min(offered, key=lambda algorithm: algorithm.key_bits, default=None)


def _try_key(backend: KeyBackend, algorithm: Algorithm) -> Iterator[Finding]:
    try:
        key = backend.create_key(
            algorithm, request_id=f"doctor-{uuid.uuid4().hex}", keyset="doctor"
        )
    except BackendError as error:
        yield Finding("generate", False, str(error))
        return
    yield Finding("generate", True, f"{algorithm.id} key, reference {key.ref}")
    try:
        signature = backend.sign(key, _MESSAGE)
        valid = make_verifier(key.alg, key.spki)(_MESSAGE, signature)
        yield Finding(
            "sign",
            valid,
            "the signature verifies" if valid else "the signature does not verify with the key",
        )
        yield _custody(backend.evidence(key.ref))
    except BackendError as error:
        yield Finding("sign", False, str(error))
    finally:
        yield _destroyed(backend, key.ref)


def _custody(evidence: Evidence) -> Finding:
    told = ", ".join(f"{name}={value}" for name, value in evidence.attributes.items())
    where = ", ".join(f"{name} {value}" for name, value in evidence.custody.items() if value)
    reading = "refused" if evidence.extraction_refused else "NOT REFUSED"
    said = f"{told}; reading the private value: {reading}; {where}"
    if evidence.findings:
        said += f"; wrong: {'; '.join(evidence.findings)}"
    return Finding("custody", evidence.sound, said)


def _destroyed(backend: KeyBackend, ref: str) -> Finding:
    try:
        final = backend.destroy_key(ref)
        backend.get_key(ref)
    except KeyPendingDeletion:
        return Finding("destroy", True, _waiting(final))
    except KeyNotFound:
        waits = final > datetime.now(UTC)
        return Finding("destroy", True, _waiting(final) if waits else "the throw-away key is gone")
    except BackendError as error:
        return Finding("destroy", False, f"{error} The throw-away key {ref} may be left over.")
    return Finding("destroy", False, f"the throw-away key {ref} is still there")


def _waiting(final: datetime) -> str:
    return (
        "the throw-away key serves nothing any more; its destruction could be cancelled until "
        f"{final.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    )
