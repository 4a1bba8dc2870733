"""Checkpoints as they come back from where they were kept: signatures, keys, and their order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc.errors import JoseError
from joserfc.jwk import import_key

from kmsjwks.domain.algorithms import ALGORITHMS
from kmsjwks.domain.audit import GENESIS
from kmsjwks.domain.checkpoints import Checkpoint, parse_checkpoint
from kmsjwks.domain.documents import is_key_of_its_kid
from kmsjwks.domain.errors import BackendProtocolError, InvalidRequest
from kmsjwks.domain.jwk import PublicKey, refuse_private_members
from kmsjwks.domain.jws import read_compact
from kmsjwks.domain.signatures import Verifier, make_verifier

CHECKPOINT_TYP = "kmsjwks-checkpoint+jwt"
CHECKPOINT_MEDIA_TYPE = "application/jose"  # RFC 7515 section 9.2.1


class CheckpointFlaw(StrEnum):
    FORGED = "forged"  # the signature does not verify
    FOREIGN_KEY = "foreign-key"  # by a key that is not among those that were given
    INVALID = "invalid"  # no checkpoint at all
    MISSING = "missing-checkpoint"  # the one before it is not there
    FORKED = "forked"  # two follow the same one


@dataclass(frozen=True, slots=True)
class CheckpointProblem:
    """``source`` is where the checkpoint was read; ``said`` is for people."""

    kind: CheckpointFlaw
    source: str
    said: str

    def __str__(self) -> str:
        return f"{self.source}: {self.kind}: {self.said}"


@dataclass(frozen=True, slots=True)
class ProvedCheckpoint:
    """One whose signature was verified with the key ``kid``."""

    source: str
    kid: str
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class CheckpointProof:
    """``proved`` by time."""

    proved: tuple[ProvedCheckpoint, ...] = ()
    problems: tuple[CheckpointProblem, ...] = ()


class CheckpointKeys:
    """The public keys that checkpoints may be signed with, each for the one ``alg`` it names."""

    def __init__(self, keys: Iterable[Mapping[str, Any]]) -> None:
        """
        Raises:
            InvalidRequest: a key is none that can be used; its kid is no RFC 7638 thumbprint of it.
            PrivateMaterialRefused
        """
        known = list(keys)
        refuse_private_members(known)
        self._verifiers = {str(jwk.get("kid")): _verifier(jwk) for jwk in known}

    def find(self, kid: object) -> tuple[str, Verifier] | None:
        """``alg`` and a verifier."""
        return self._verifiers.get(kid) if isinstance(kid, str) else None

    def __len__(self) -> int:
        return len(self._verifiers)


def _verifier(jwk: Mapping[str, Any]) -> tuple[str, Verifier]:
    kid = str(jwk.get("kid"))[:64]
    if not is_key_of_its_kid(jwk):
        raise InvalidRequest(f"The kid {kid} is not the RFC 7638 thumbprint of its key.")
    alg = jwk.get("alg")
    try:
        key: PublicKey = import_key(dict(jwk)).public_key  # type: ignore[assignment]
        spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (JoseError, ValueError, TypeError, AttributeError) as error:
        raise InvalidRequest(f"The key {kid} is not a public JWK.") from error
    for algorithm in ALGORITHMS:
        if algorithm.jose == alg:
            try:
                return algorithm.jose, make_verifier(algorithm, spki)
            except BackendProtocolError:
                continue  # of another size or curve
    raise InvalidRequest(f"The key {kid} names no algorithm that it can be used with.")


def prove_checkpoints(
    tokens: Iterable[tuple[str, str]], keys: CheckpointKeys, whole: bool = True
) -> CheckpointProof:
    """Verify ``(where it was read, compact JWS)``; the same checkpoint from two places is one.

    ``whole``: all that were ever signed should be there, so one that is missing in between is a
    problem.
    """
    proved: dict[str, ProvedCheckpoint] = {}
    problems: list[CheckpointProblem] = []
    for source, token in tokens:
        found = _prove(source, token, keys)
        if isinstance(found, CheckpointProblem):
            problems.append(found)
        else:
            proved.setdefault(found.checkpoint.sha256, found)
    if whole:
        problems += _breaks(proved)
    ordered = sorted(proved.values(), key=lambda one: (one.checkpoint.time, one.source))
    return CheckpointProof(tuple(ordered), tuple(problems))


def _prove(source: str, token: str, keys: CheckpointKeys) -> ProvedCheckpoint | CheckpointProblem:
    try:
        header, payload, signed, signature = read_compact(token)
    except InvalidRequest:
        said = "this is not a compact JWS"
        return CheckpointProblem(CheckpointFlaw.INVALID, source, said)
    kid = header.get("kid")
    known = keys.find(kid)
    if known is None:
        said = f"its key {str(kid)[:64]} is not among the {len(keys)} that were given"
        return CheckpointProblem(CheckpointFlaw.FOREIGN_KEY, source, said)
    alg, verify = known
    # ``none``, HMAC with the public key and the like end here: the key decides, not the header.
    if header != {"typ": CHECKPOINT_TYP, "alg": alg, "kid": kid}:
        said = f"its header is not that of a checkpoint signed with {alg}"
        return CheckpointProblem(CheckpointFlaw.FORGED, source, said)
    if not verify(signed, signature):
        said = "the signature does not verify"
        return CheckpointProblem(CheckpointFlaw.FORGED, source, said)
    try:
        return ProvedCheckpoint(source, str(kid), parse_checkpoint(payload))
    except InvalidRequest as error:
        return CheckpointProblem(CheckpointFlaw.INVALID, source, str(error))


def _breaks(proved: Mapping[str, ProvedCheckpoint]) -> Iterable[CheckpointProblem]:
    followed: dict[str, str] = {}
    for one in proved.values():
        previous = one.checkpoint.previous
        if previous == GENESIS:
            continue
        if previous not in proved:
            said = f"the checkpoint before it (payload SHA-256 {previous}) is missing"
            yield CheckpointProblem(CheckpointFlaw.MISSING, one.source, said)
        if previous in followed:
            said = f"{followed[previous]} follows the same checkpoint"
            yield CheckpointProblem(CheckpointFlaw.FORKED, one.source, said)
        followed[previous] = one.source
