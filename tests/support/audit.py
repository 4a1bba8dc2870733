"""Reads audit files as a stranger would: from their bytes, with nothing of the service's code."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def verified_records(directory: Path) -> list[dict[str, Any]]:
    """Every record of every chain, which is checked: over all parts of a chain, ``seq`` counts
    from 0 and ``prev`` is the SHA-256 of the line before (64 zeros at first)."""
    records = []
    ends: dict[str, tuple[int, str]] = {}
    for file in sorted(directory.glob("*.jsonl"), key=_chain_and_part):
        chain = _chain_and_part(file)[0]
        lines = file.read_bytes().split(b"\n")
        assert lines.pop() == b"", f"{file.name} ends in half a line"
        for number, line in enumerate(lines):
            record: dict[str, Any] = json.loads(line)
            where = f"{file.name}:{number + 1}"
            seq, previous = ends.get(chain, (0, "0" * 64))
            found = (record["chain"], record["seq"], record["prev"])
            assert found == (chain, seq, previous), where
            ends[chain] = seq + 1, hashlib.sha256(line).hexdigest()
            records.append(record)
    return records


def verified_events(directory: Path) -> list[dict[str, Any]]:
    """The records of released tokens, as ``verified_records``."""
    return [one for one in verified_records(directory) if one["event"] == "jwt.signed"]


def _chain_and_part(file: Path) -> tuple[str, int]:
    _, _, chain, part = file.stem.split("-")
    return chain, int(part)
