"""Gathers what `kmsjwks audit verify` proves with: the trail, checkpoints, public keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kmsjwks.cli.session import Session
from kmsjwks.config import Settings
from kmsjwks.domain.audittrail import parse_file_name
from kmsjwks.domain.checkpointproof import (
    CheckpointKeys,
    CheckpointProof,
    prove_checkpoints,
)
from kmsjwks.domain.errors import InvalidRequest, StoreUnavailable
from kmsjwks.domain.jwk import public_jwk
from kmsjwks.services.auditproof import AuditProof, only_of_chains
from kmsjwks.storage.audit_checkpoints import CHECKPOINTS, read_checkpoints, read_keys
from kmsjwks.storage.audit_reader import AuditReader
from kmsjwks.storage.engine import make_engine
from kmsjwks.storage.keystore import SqlKeyStore


@dataclass(frozen=True, slots=True)
class Sources:
    """As the options say; ``directory`` None for the configured one."""

    directory: Path | None = None
    places: tuple[str, ...] = ()
    keys_file: Path | None = None
    ignore_other_chains: bool = False


def prove(sources: Sources, session: Session) -> AuditProof:
    """
    Raises:
        InvalidRequest, AuditUnavailable, PublicationFailed: something given cannot be used.
        ConfigurationError: without a directory.
    """
    settings = session.settings() if sources.directory is None else None
    directory = sources.directory or (settings.audit.directory if settings else Path())
    keys, notes = _keys(sources, settings)
    proof = CheckpointProof()
    if keys is not None:
        tokens, more = _tokens(sources, directory, settings)
        notes += more
        proof = prove_checkpoints(tokens, CheckpointKeys(keys))
    wanted, ignored = list(proof.proved), 0
    if sources.ignore_other_chains:
        kept, ignored = only_of_chains(proof, _chains(directory))
        wanted = list(kept)
        proof = replace(proof, proved=tuple(kept))
        notes.append(f"{ignored} checkpoints of chains that are not here were left out.")
    trail = AuditReader(directory).verify(one.checkpoint for one in wanted)
    if sources.directory is not None and not trail.chains:
        raise InvalidRequest(f"There is no audit file in {directory}, so nothing was proved.")
    notes += [f"{name} is no file of the trail by its name; it was not looked at."
              for name in trail.strangers]  # fmt: skip
    return AuditProof(trail, proof, ignored, tuple(notes))


def _chains(directory: Path) -> set[str]:
    names = (parse_file_name(path.name) for path in directory.glob("*.jsonl"))
    return {name.chain for name in names if name is not None}


def _keys(
    sources: Sources, settings: Settings | None
) -> tuple[Iterable[dict[str, Any]] | None, list[str]]:
    """None where checkpoints cannot be verified."""
    if sources.keys_file is not None:
        return read_keys(sources.keys_file), []
    if settings is None:
        if sources.places:
            raise InvalidRequest(
                "Checkpoints prove nothing without the keys: give --keys FILE, as "
                "'kmsjwks audit keys' printed it when all was well."
            )
        return None, ["No checkpoint was used: give --keys FILE."]
    if settings.audit.checkpoint_keyset is None:
        return None, [settings.audit.checkpoint_advice]
    try:
        store = SqlKeyStore(make_engine(settings.database.url, create=False))
        found = store.keys(settings.audit.checkpoint_keyset)
    except StoreUnavailable as error:
        return None, [f"No checkpoint was used, because the keys cannot be read: {error}"]
    trusted = "Keys were taken from this database; an auditor gives --keys from elsewhere."
    return [public_jwk(key.spki, key.algorithm) for key in found], [trusted]


def _tokens(
    sources: Sources, directory: Path, settings: Settings | None
) -> tuple[list[tuple[str, str]], list[str]]:
    if sources.places:
        endpoint = settings.publication.s3_endpoint if settings else None
        found = [one for place in sources.places for one in _read(place, endpoint)]
        if not found:
            raise InvalidRequest("There is not one checkpoint where --checkpoints points to.")
        return found, []
    own = directory / CHECKPOINTS
    found = list(read_checkpoints(own)) if own.is_dir() else []
    note = (
        "Checkpoints were read from the audit directory: whoever can change the records can remove "
        "them. Give --checkpoints with a copy that was kept elsewhere."
    )
    return found, [note]


def _read(place: str, s3_endpoint: str | None) -> Iterator[tuple[str, str]]:
    if "://" in place:
        from kmsjwks.publishing.collecting import fetch_checkpoints  # noqa: PLC0415  # 4 MB with urllib3, for those who use it

        return fetch_checkpoints(place, s3_endpoint)
    return read_checkpoints(Path(place))
