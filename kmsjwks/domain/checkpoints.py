"""Checkpoints: what is signed and kept elsewhere, so that a cut-off tail of the trail shows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from kmsjwks.domain import strictjson
from kmsjwks.domain.audit import GENESIS, ChainHead
from kmsjwks.domain.errors import InvalidRequest

KIND = "kmsjwks.audit.checkpoint"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """First the head of one process's chain at ``time`` (seconds), then the ends of chains that
    others left open. ``previous`` is the SHA-256 of the payload of the process's checkpoint before,
    in hex; ``GENESIS`` for the first."""

    time: int
    heads: tuple[ChainHead, ...]
    previous: str = GENESIS

    def payload(self) -> bytes:
        """What is signed: compact JSON with its members in this order."""
        return strictjson.dumps(
            {
                "kind": KIND,
                "time": self.time,
                "previous": self.previous,
                "heads": [
                    {"chain": head.chain, "seq": head.seq, "head": head.sha256}
                    for head in self.heads
                ],
            }
        )

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.payload()).hexdigest()


def parse_checkpoint(payload: bytes) -> Checkpoint:
    """The inverse of ``payload``; whoever calls it has verified the signature.

    Raises:
        InvalidRequest: it is not one, to the byte.
    """
    try:
        members = strictjson.loads(payload)
        heads = tuple(
            ChainHead(str(one["chain"]), int(one["seq"]), str(one["head"]))
            for one in members["heads"]
        )
        checkpoint = Checkpoint(int(members["time"]), heads, str(members["previous"]))
    except (TypeError, KeyError, ValueError) as error:
        raise InvalidRequest("This is not the payload of an audit checkpoint.") from error
    if checkpoint.payload() != payload:
        raise InvalidRequest("This is not the payload of an audit checkpoint as it is written.")
    return checkpoint


def first_gap(checkpoints: Iterable[Checkpoint], previous: str = GENESIS) -> Checkpoint | None:
    """The first of one process's checkpoints, in order, that does not follow the one before it;
    ``previous`` is what the first must follow."""
    for checkpoint in checkpoints:
        if checkpoint.previous != previous:
            return checkpoint
        previous = checkpoint.sha256
    return None
