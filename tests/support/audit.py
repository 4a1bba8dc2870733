"""Reads audit files as a stranger would: from their bytes, with nothing of the service's code."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def verified_events(directory: Path) -> list[dict[str, Any]]:
    """Every record of every file, each file's chain checked: line by line, ``seq`` counts from 0
    and ``prev`` is the SHA-256 of the line before (64 zeros at first)."""
    events = []
    for file in sorted(directory.glob("*.jsonl")):
        previous = "0" * 64
        lines = file.read_bytes().split(b"\n")
        assert lines.pop() == b"", f"{file.name} ends in half a line"
        for number, line in enumerate(lines):
            event: dict[str, Any] = json.loads(line)
            where = f"{file.name}:{number + 1}"
            assert (event["seq"], event["prev"]) == (number, previous), where
            previous = hashlib.sha256(line).hexdigest()
            events.append(event)
    return events
