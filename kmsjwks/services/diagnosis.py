"""What `doctor` does: try everything a backend must do, with a key made for it and destroyed."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

from kmsjwks.domain.algorithms import Algorithm, find_algorithm
from kmsjwks.domain.errors import BackendError, KeyNotFound
from kmsjwks.domain.ports import Evidence, Finding, KeyBackend
from kmsjwks.domain.signatures import make_verifier

_TRIED_FIRST = ("ES256", "RS256", "Ed25519", "ES384", "ES256K")
_MESSAGE = b"kmsjwks doctor"


def diagnose(backend: KeyBackend) -> Iterator[Finding]:
    """Check by check, so that one that hangs is seen to hang; stops where going on is pointless."""
    try:
        backend.check()
        yield Finding("open", True, "the token is there and we are logged in")
        offered = backend.algorithms
    except BackendError as error:
        yield Finding("open", False, str(error))
        return
    yield Finding("algorithms", bool(offered), ", ".join(sorted(a.id for a in offered)) or "none")
    algorithm = _throw_away_algorithm(offered)
    if algorithm is not None:
        yield from _try_key(backend, algorithm)


def _throw_away_algorithm(offered: frozenset[Algorithm]) -> Algorithm | None:
    for name in _TRIED_FIRST:
        if find_algorithm(name) in offered:
            return find_algorithm(name)
    return min(offered, key=lambda algorithm: algorithm.key_bits, default=None)


def _try_key(backend: KeyBackend, algorithm: Algorithm) -> Iterator[Finding]:
    try:
        key = backend.create_key(algorithm, request_id=f"doctor-{uuid.uuid4().hex}")
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
        backend.destroy_key(ref)
        backend.get_key(ref)
    except KeyNotFound:
        return Finding("destroy", True, "the throw-away key is gone")
    except BackendError as error:
        return Finding("destroy", False, f"{error} The throw-away key {ref} may be left over.")
    return Finding("destroy", False, f"the throw-away key {ref} is still there")
