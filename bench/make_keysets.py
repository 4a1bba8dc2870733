"""``python -m bench.make_keysets CONFIG FILE``: [[name, algorithm, backend, issuer path], ...]

In a process of its own: SoftHSM must not be loaded by the one that measures.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import closing
from pathlib import Path

from kmsjwks.bootstrap import build, prepare_database
from kmsjwks.config import load
from kmsjwks.domain.algorithms import find_algorithm
from kmsjwks.domain.timing import RotationSchedule
from kmsjwks.domain.tokens import TokenRules
from kmsjwks.services.acting import Actor
from kmsjwks.services.keysets import KeysetSpec


def main() -> None:
    settings = load(Path(sys.argv[1]), environ={})
    prepare_database(settings)
    with closing(build(settings, dict(os.environ))) as service:
        for name, algorithm, backend, issuer in json.loads(Path(sys.argv[2]).read_text()):
            rules = TokenRules(settings.server.base_url + issuer)
            spec = KeysetSpec(name, find_algorithm(algorithm), backend, rules, RotationSchedule())
            service.keysets.create(spec, Actor("bench"))


if __name__ == "__main__":
    main()
