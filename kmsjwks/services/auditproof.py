"""What the verification of an audit trail proves, until when, and what it does not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kmsjwks.domain.audittrail import ChainReport, Status, TrailReport
from kmsjwks.domain.checkpointproof import CheckpointProof, ProvedCheckpoint


@dataclass(frozen=True, slots=True)
class Coverage:
    """The last checkpoint of a chain: it vouches for records up to ``seq``; ``time`` in seconds."""

    seq: int
    time: int
    kid: str


@dataclass(frozen=True, slots=True)
class AuditProof:
    """``trail`` was verified with what ``checkpoints`` proved; ``ignored`` of these are of chains
    that were not looked for. ``notes`` say what could not be checked."""

    trail: TrailReport
    checkpoints: CheckpointProof
    ignored: int = 0
    notes: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        return self.trail.sound and not self.checkpoints.problems

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(str(one) for one in (*self.trail.problems, *self.checkpoints.problems))

    @property
    def last_checkpoint(self) -> ProvedCheckpoint | None:
        return self.checkpoints.proved[-1] if self.checkpoints.proved else None

    def coverage(self) -> Mapping[str, Coverage]:
        """By chain."""
        covered: dict[str, Coverage] = {}
        for one in self.checkpoints.proved:
            for head in one.checkpoint.heads:
                known = covered.get(head.chain)
                if known is None or head.seq > known.seq:
                    covered[head.chain] = Coverage(head.seq, one.checkpoint.time, one.kid)
        return covered

    def as_members(self) -> dict[str, Any]:
        """For JSON. Times in seconds."""
        covered, last = self.coverage(), self.last_checkpoint
        return {
            "sound": self.sound,
            "proved": list(self.proved()),
            "problems": [
                {"kind": str(one.kind), "file": one.file, "line": one.line, "seq": one.seq,
                 "said": one.said}
                for one in self.trail.problems
            ] + [
                {"kind": str(one.kind), "file": one.source, "line": 0, "seq": None,
                 "said": one.said}
                for one in self.checkpoints.problems
            ],
            "notes": list(self.notes),
            "records": self.trail.records,
            "checkpoints": len(self.checkpoints.proved),
            "last_checkpoint": last.checkpoint.time if last else None,
            "chains": [_chain(one, covered.get(one.chain)) for one in self.trail.chains],
            "strangers": list(self.trail.strangers),
        }  # fmt: skip

    def proved(self) -> tuple[str, ...]:
        """What is proved and what is not, in sentences."""
        covered, chains = self.coverage(), self.trail.chains
        if not chains:
            return ("There is no record here.",)
        said = []
        whole = [one for one in chains if _is_whole(one, covered.get(one.chain))]
        if whole:
            said.append(
                f"{_count(len(whole), 'chain')} of {len(chains)} whole to the last record, by a "
                "checkpoint that covers the end."
            )
        said += [
            sentence
            for one in chains
            if one not in whole and one.problem is None
            for sentence in (_limits(one, covered.get(one.chain)),)
        ]
        known = {one.checkpoint.sha256 for one in self.checkpoints.proved}
        said += [
            f"Chain {one.chain} says that a later checkpoint was signed, which is not here: it was "
            "removed, or its process was killed before it was kept, or keeps it just now."
            for one in chains
            if known and one.announced and one.announced not in known
        ]
        if not covered:
            said.append("Without checkpoints, a whole chain could be removed or made anew unseen.")
        elif last := self.last_checkpoint:
            when = shown(last.checkpoint.time)
            said.append(f"Chains that began after the last checkpoint, {when}, are not proved.")
        return tuple(said)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _is_whole(chain: ChainReport, covered: Coverage | None) -> bool:
    return chain.status is Status.CLOSED and covered is not None and _beyond(chain, covered) == 0


def _beyond(chain: ChainReport, covered: Coverage) -> int:
    return max(chain.records - 1 - covered.seq, 0)


def _limits(chain: ChainReport, covered: Coverage | None) -> str:
    name = f"Chain {chain.chain} ({_count(chain.records, 'record')}, {chain.status})"
    if covered is None:
        if chain.status is Status.CLOSED:
            return f"{name}: no checkpoint; whole unless somebody made all of it anew."
        return f"{name}: no checkpoint; records at its end could be edited or truncated unseen."
    when = shown(covered.time)
    beyond = _beyond(chain, covered)
    if chain.status is Status.CLOSED:
        return (
            f"{name}: proved to seq {covered.seq} by the checkpoint of {when}; the "
            f"{_count(beyond, 'record')} after it could have been made anew unseen."
        )
    return (
        f"{name}: proved to seq {covered.seq} by the checkpoint of {when}; records after it "
        f"({beyond} here) could be edited or truncated unseen."
    )


def _chain(report: ChainReport, covered: Coverage | None) -> dict[str, Any]:
    return {
        "chain": report.chain,
        "status": str(report.status),
        "files": list(report.files),
        "records": report.records,
        "first_time": report.first_time,
        "last_time": report.last_time,
        "proved_to_seq": covered.seq if covered else None,
        "proved_at": covered.time if covered else None,
        "torn": report.torn,
        "problem": str(report.problem) if report.problem else "",
    }


def shown(seconds: float) -> str:
    """RFC 3339 in UTC; what is no time is shown as it is."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return str(seconds)


def only_of_chains(
    proof: CheckpointProof, chains: Iterable[str]
) -> tuple[Sequence[ProvedCheckpoint], int]:
    """Those that speak of these chains alone, and how many do not."""
    known = set(chains)
    kept = [
        one for one in proof.proved if all(head.chain in known for head in one.checkpoint.heads)
    ]
    return kept, len(proof.proved) - len(kept)
