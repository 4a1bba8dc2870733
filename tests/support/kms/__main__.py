"""``python -m tests.support.kms --port N``: the fake in this process, until it is killed."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tests.support.kms.server import KmsServer
from tests.support.kms.store import Settings


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.kms")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--state", type=Path, help="file in which keys survive a restart")
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON, see store.Settings")
    asked = parser.parse_args()
    KmsServer(asked.port, asked.state, Settings(**asked.settings)).serve_forever()


if __name__ == "__main__":
    main()
