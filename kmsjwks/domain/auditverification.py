"""Verification of a whole audit trail: its chains, what they say of each other, checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kmsjwks.domain.audit import ChainHead
from kmsjwks.domain.auditchain import announced_by, verify_chain
from kmsjwks.domain.audittrail import (
    ChainReport,
    Kind,
    Problem,
    Status,
    TrailFile,
    TrailReport,
    parse_file_name,
)
from kmsjwks.domain.checkpoints import Checkpoint


def verify_trail(files: Iterable[TrailFile], checkpoints: Iterable[Checkpoint] = ()) -> TrailReport:
    """Check every chain; offline, with memory for one line and the names of the files.

    ``checkpoints`` are those whose signatures were verified. One that names a chain which is not
    there makes that chain a missing one: hand over those only whose chains should be there.
    """
    chains, strangers = _chains(files)
    claims: dict[str, dict[int, frozenset[str]]] = {}
    for head in _claimed_heads(chains, checkpoints):
        known = claims.setdefault(head.chain, {})
        known[head.seq] = known.get(head.seq, frozenset()) | {head.sha256}
    reports = [verify_chain(chain, parts, claims.get(chain, {})) for chain, parts in chains.items()]
    reports += [_lost(chain, claims[chain]) for chain in sorted(claims.keys() - chains.keys())]
    return TrailReport(tuple(reports), tuple(strangers))


def _chains(files: Iterable[TrailFile]) -> tuple[Mapping[str, list[TrailFile]], list[str]]:
    """By the time that they began; the parts of each in order."""
    named, strangers = [], []
    for file in files:
        name = parse_file_name(file.name)
        if name is None:
            strangers.append(file.name)
        else:
            named.append((name, file))
    named.sort(key=lambda one: (one[0].chain, one[0].part, one[0].made))
    chains: dict[str, list[TrailFile]] = {}
    for name, file in sorted(named, key=lambda one: one[0].part):
        chains.setdefault(name.chain, []).append(file)
    return dict(sorted(chains.items(), key=lambda one: one[1][0].name)), strangers


def _claimed_heads(
    chains: Mapping[str, Sequence[TrailFile]], checkpoints: Iterable[Checkpoint]
) -> Iterable[ChainHead]:
    for checkpoint in checkpoints:
        yield from checkpoint.heads
    for parts in chains.values():
        for line in parts[0].lines():
            head = announced_by(parts[0].name, line)
            if head is not None:
                yield head
            break


def _lost(chain: str, claims: Iterable[int]) -> ChainReport:
    said = f"no file of this chain is there; it had {max(claims) + 1} records at least"
    problem = Problem(Kind.MISSING_FILE, f"audit-*-{chain}-*.jsonl", 0, 0, said)
    return ChainReport(chain, (), 0, None, None, None, Status.BROKEN, problem)
