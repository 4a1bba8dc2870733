"""Where the bench finds and keeps its things."""

from __future__ import annotations

from pathlib import Path

BENCH = Path(__file__).parent
ROOT = BENCH.parent
OUT = BENCH / "out"
CACHE = BENCH / ".cache"
PEERS = CACHE / "peers"  # a virtual environment
NODE = CACHE / "node"
